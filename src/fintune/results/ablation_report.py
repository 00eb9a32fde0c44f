"""docs/ablations.md and its figures: what the runs of ablations.py show, and what they do not."""

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import matplotlib
import numpy as np
from statsmodels.stats.multitest import multipletests

from fintune.errors import UserError
from fintune.files import write_text, write_whole
from fintune.results.runs import ALPHA, Cell, LeftOut, Pair, compare_pairs, read_runs
from fintune.results.tables import base_name, markdown_table, points, short

matplotlib.use("agg")  # no screen needed
import matplotlib.pyplot as plt

BLUE, ORANGE, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"  # told apart by colour-blind eyes too


@dataclass
class Variant:
    """The runs of one overlay on one model, and how they compare with the recipe as it stands.

    Attributes:
        label: the overlay's name, or `recipe`.
        pair: this minus the recipe; None for the recipe itself, or where it was not run.
    """

    label: str
    model: str
    cell: Cell
    pair: Pair | None = None

    @property
    def recipe(self) -> dict:
        return self.cell.runs[0].recipe

    def log(self, key: str) -> list[float]:
        """The values of a key in the training logs of all seeds."""
        logs = [run.result["training"]["log"] for run in self.cell.runs]
        return [float(entry[key]) for log in logs for entry in log if key in entry]

    @property
    def late_losses(self) -> float | None:
        """Standard deviation of the logged training losses in the last third of a run, mean over the seeds."""
        spreads = []
        for run in self.cell.runs:
            losses = [float(entry["loss"]) for entry in run.result["training"]["log"] if "loss" in entry]
            if len(losses) < 6:
                return None
            spreads.append(np.std(losses[-len(losses) // 3 :], ddof=1))
        return float(np.mean(spreads))

    @property
    def scale(self) -> float | None:
        """What the adapter's product is multiplied by."""
        rank, alpha = self.recipe.get("lora_r"), self.recipe.get("lora_alpha")
        if not rank:
            return None
        return alpha / (math.sqrt(rank) if self.recipe.get("use_rslora") else rank)

    @property
    def cache_bytes(self) -> int | None:
        """Of keys and values, for one token of context."""
        shape = self.recipe.get("tiny_config")
        if shape is None:
            return None
        heads = self.recipe.get("key_value_heads") or shape["num_key_value_heads"]
        return 2 * shape["num_hidden_layers"] * heads * shape["head_dim"] * 4

    @property
    def seconds_an_update(self) -> float | None:
        """None where every run was resumed: its seconds are those of its last part."""
        trained = [run.result["training"] for run in self.cell.runs]
        found = [
            one["train_runtime"] / one["updates"] for one in trained if one.get("updates") and not one["resumed_from"]
        ]
        return float(np.mean(found)) if found else None


def write(
    runs: Path, docs: Path, sweeps: dict[str, dict], decoding: Path | None = None, task: str | None = None
) -> None:
    """Write docs/ablations.md and docs/ablations/*.png, one section for each sweep that has runs.

    Args:
        runs: searched for runs/<task>/ablations/.
        decoding: a result of benchmarks/decode.py.
        task: in place of the sweeps'.

    Raises:
        UserError: there is none.
    """
    found, left_out = read_runs(runs)
    found, others = of_the_same_rows([run for run in found if run.study])
    found, more = of_the_same_recipe(found, runs)
    left_out += others + more
    sections, seen = [], {}
    for name, sweep in sweeps.items():
        parameters = sweep["parameters"] | ({"task": {"value": task}} if task else {})
        variants = read_variants(found, parameters)
        if not variants:
            continue
        seen |= {id(run): run for variant in variants for run in variant.cell.runs}
        picture = docs / "ablations" / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(name, sweep, variants, picture)
        sections.append(section(name, sweep, variants, picture.relative_to(docs)))
        if name == "kv-heads" and decoding and decoding.is_file():
            sections[-1] += decode_table(json.loads(decoding.read_text(encoding="utf-8")))
    if not sections:
        raise UserError(f"{runs}: no finished run of an ablation; `make ablations` trains them")
    missing = [left for left in left_out if "ablations" in Path(left.path).parts]
    lines = [*head(list(seen.values()), missing), *chain.from_iterable(sections)]
    write_text(docs / "ablations.md", "\n".join(lines) + "\n")
    print(f"written: {docs / 'ablations.md'}, {len(sections)} of {len(sweeps)} questions, {len(seen)} runs")


def of_the_same_rows(runs: list) -> tuple[list, list[LeftOut]]:
    """Of each task the runs on the rows that most runs saw, and the others by name."""
    kept, left_out = [], []
    for task in sorted({run.result["task"] for run in runs}):
        mine = [run for run in runs if run.result["task"] == task]
        usual = Counter((run.data_key, run.row_key) for run in mine).most_common(1)[0][0]
        for run in mine:
            if (run.data_key, run.row_key) == usual:
                kept.append(run)
            else:
                left_out.append(LeftOut(run.path, "other rows than most of this task's ablations"))
    return kept, left_out


def of_the_same_recipe(runs: list, folder: Path) -> tuple[list, list[LeftOut]]:
    """Of each name the runs of the recipe that was run last: seeds are pooled of one alone. The others by name."""
    kept, left_out = [], []
    for key in dict.fromkeys((run.result["task"], run.name) for run in runs):
        mine = [run for run in runs if (run.result["task"], run.name) == key]
        latest = max(mine, key=lambda run: (folder / run.path / "metrics.json").stat().st_mtime).cell_key
        kept += [run for run in mine if run.cell_key == latest]
        why = "another recipe than the latest run of that name"
        left_out += [LeftOut(run.path, why) for run in mine if run.cell_key != latest]
    return kept, left_out


def read_variants(runs: list, parameters: dict) -> list[Variant]:
    """The sweep's variants that have runs, in its order, those of a model together."""
    variants = []
    task = parameters["task"]["value"]
    overlays = parameters["overlay"]["values"]
    by_name = {}
    for run in runs:
        if run.result["task"] == task:
            by_name.setdefault(run.name, []).append(run)
    known = {str(value) for value in overlays}
    stems = sorted({name for name in by_name if not any(name.endswith(f"-{overlay}") for overlay in known)})
    stems = [stem for stem in stems if is_model(stem, parameters, by_name)]
    for stem in stems:
        base = by_name.get(stem) if "none" in known else None
        mine = []
        for overlay in overlays:
            for name in (stem,) if overlay == "none" else (f"{stem}-{overlay}", f"{stem}-{overlay}-encoder"):
                if name in by_name:
                    cell = Cell(name, sorted(by_name[name], key=lambda run: run.seed))
                    mine.append(Variant("recipe" if overlay == "none" else overlay, stem, cell))
        variants += tested(mine, base)
    return variants


def is_model(stem: str, parameters: dict, by_name: dict) -> bool:
    """Whether runs of that name are a model's in this sweep: it has one of the sweep's overlays."""
    endings = [f"{overlay}{encoder}" for overlay in parameters["overlay"]["values"] for encoder in ("", "-encoder")]
    return any(f"{stem}-{ending}" in by_name for ending in endings)


def tested(variants: list[Variant], base: list | None) -> list[Variant]:
    """Each variant against the recipe, Holm's correction over them."""
    others = [variant for variant in variants if variant.label != "recipe"]
    if not base or not others:
        return variants
    recipe = Cell("recipe", sorted(base, key=lambda run: run.seed))
    pairs = []
    for variant in others:
        cells = (variant.cell, recipe)
        pairs += compare_pairs([cell.correct for cell in cells], [cell.run.correct for cell in cells])
    corrected = multipletests([pair.p for pair in pairs], alpha=ALPHA, method="holm")[1]
    for variant, pair, p in zip(others, pairs, corrected, strict=True):
        variant.pair = replace(pair, p_holm=float(p))
    return variants


def head(runs: list, missing: list[LeftOut]) -> list[str]:
    first = runs[0].result
    models = ", ".join(sorted({f"`{base_name(run.result)}`" for run in runs}))
    data, machines = first["data"], [run.result["machine"] for run in runs]
    commits = " and ".join(sorted({(one["git"] or "unknown")[:12] for one in machines}))
    where = " and ".join(
        sorted(
            {
                f"{one['processor']}, {one['cores']} core{'s' * (one['cores'] > 1)} a run, {one['gpu'] or 'no GPU'}"
                for one in machines
            }
        )
    )
    lines = [
        "# Ablations",
        "",
        "<!-- written by `ablations.py --report` from runs/; what is typed here is lost -->",
        "",
        f"The paper's open questions, asked of {models} on {first['task']} ({data['source']} data, SHA-256 "
        f"`{data['sha256'][:12]}`): {len(runs)} runs of `make ablations`, {where}, commit {commits}. "
        f"Accuracies are of the {len(runs[0].rows)} test rows, means over the seeds where there are several, "
        "with a 95 % interval over rows and seeds.",
        "",
        "A difference to the recipe is called real when exact McNemar, corrected by Holm within a question and model, "
        "and the paired bootstrap both say so at 5 %. Everything else is inside noise, and no reason to choose.",
    ]
    if "tiny" in models:
        lines += [
            "",
            "`tiny` has 3 million parameters and starts from nothing: what holds for it need not hold for Qwen3-8B, "
            "which `make ablations MODEL=qwen3-8b` asks.",
        ]
    if missing:
        lines += ["", *(f"- left out: {left.path}: {left.reason}" for left in missing)]
    return lines


def section(name: str, sweep: dict, variants: list[Variant], picture: Path) -> list[str]:
    headers = ["variant", "seeds", "accuracy (95 % interval)", "against the recipe, points"]
    columns = {
        "trained parameters": lambda v: short(v.cell.mean("model", "trained_parameters")),
        "spread of the loss, nats": lambda v: _form(v.late_losses, ".3f"),
        "gradient norm, median": lambda v: _form(np.median(v.log("grad_norm")) if v.log("grad_norm") else None, ".2f"),
        "largest": lambda v: _form(max(v.log("grad_norm"), default=None), ".1f"),
        "s an update": lambda v: _form(v.seconds_an_update, ".3f"),
    }
    if name == "rank":
        columns["scale of the adapter"] = lambda v: _form(v.scale, ".2f")
    if name == "kv-heads":
        columns["cache, bytes a token"] = lambda v: _form(v.cache_bytes, ",d")
    if name == "share":
        columns = {"training rows": lambda v: f"{v.cell.runs[0].result['data']['rows']['train']:,}"}
    if name == "epochs":
        columns |= {
            "best epoch": lambda v: _form(best(v)[0] if best(v) else None, ".2f"),
            "validation there": lambda v: _form(best(v)[1] if best(v) else None, ".4f"),
        }
    many = len({variant.model for variant in variants}) > 1
    rows = []
    for variant in variants:
        low, high = variant.cell.interval
        label = f"{variant.model}, {variant.label}" if many else variant.label
        against = "" if variant.pair is None else f"{points(variant.pair.difference)}, {variant.pair.verdict}"
        accuracy = f"{variant.cell.metric('accuracy'):.4f} ({low:.4f} to {high:.4f})"
        shown = [label, str(len(variant.cell.runs)), accuracy, against, *(show(variant) for show in columns.values())]
        rows.append(shown)
    first = variants[0].cell.runs[0]
    ran = {"auto", *(variant.model for variant in variants)}
    absent = [f"`{model}`" for model in sweep["parameters"]["model"]["values"] if model not in ran]
    models = " and ".join(f"`{model}`" for model in dict.fromkeys(variant.model for variant in variants))
    return [
        "",
        f"## {sweep['name']}",
        "",
        verdict(variants),
        "",
        *markdown_table([*headers, *columns], rows),
        "",
        f"![{sweep['name']}]({picture})",
        "",
        f"*{models}, {first.result['task']}, {len(first.rows)} test rows; bars are 95 % intervals, small dots single "
        "seeds.*",
        "",
        f"**Not shown**: {sweep['description'].strip()}",
        *([f"\n**Not run**: {', '.join(absent)}; `make ablations` says why where it skips them."] if absent else []),
    ]


def verdict(variants: list[Variant]) -> str:
    """What came out, in a sentence that the numbers write."""
    tested_ones = [variant for variant in variants if variant.pair is not None]
    real = [variant for variant in tested_ones if variant.pair.real]
    if not tested_ones:
        return "Nothing is compared here: the recipe itself was not run beside it."
    if not real and len(tested_ones) == 1:
        return f"{tested_ones[0].label} does not differ from the recipe by more than noise."
    if not real:
        return f"None of {len(tested_ones)} variants differs from the recipe by more than noise."
    many = len({variant.model for variant in variants}) > 1
    named = ", ".join(
        f"{variant.model + ', ' if many else ''}{variant.label} ({points(variant.pair.difference)} points)"
        for variant in real
    )
    return (
        f"{len(real)} of {len(tested_ones)} variants differ from the recipe by more than noise: {named}."
        if len(real) < len(tested_ones)
        else f"All of them differ from the recipe by more than noise: {named}."
    )


def best(variant: Variant) -> tuple[float, float] | None:
    """(epoch, validation accuracy) where it was highest first, of the first seed."""
    log = [entry for entry in variant.cell.runs[0].result["training"]["log"] if "eval_accuracy" in entry]
    if not log:
        return None
    top = max(log, key=lambda entry: (entry["eval_accuracy"], -entry["epoch"]))
    return top["epoch"], top["eval_accuracy"]


def _form(number, form: str) -> str:
    return "–" if number is None else format(number, form)


def draw(name: str, sweep: dict, variants: list[Variant], path: Path) -> None:
    panels = 1 if name == "share" else 2
    figure, axes = plt.subplots(1, panels, figsize=(4 + 3 * panels, 3.6), layout="constrained", squeeze=False)
    left, right = axes[0, 0], axes[0, -1]
    if name == "epochs":
        curves(variants, left, right)
    elif name == "share":
        by_rows(variants, left)
    elif name == "rank":
        by_rank(variants, left, right)
    else:
        dots(variants, left, "accuracy", lambda v: v.cell.metric("accuracy"), intervals=True)
        title, value = {
            "neftune": ("standard deviation of the loss, nats, last third", lambda v: v.late_losses),
            "kv-heads": ("key-value cache, bytes a token", lambda v: v.cache_bytes),
            "modules": ("trained parameters", lambda v: v.cell.mean("model", "trained_parameters")),
        }.get(name, ("seconds an update", lambda v: v.seconds_an_update))
        dots(variants, right, title, value)
    model = " and ".join(dict.fromkeys(variant.model for variant in variants))
    figure.suptitle(f"{sweep['name']}  ({model}, {variants[0].cell.runs[0].result['task']})", fontsize=11)
    write_whole(path, lambda place: figure.savefig(place, dpi=130, format="png", metadata={"Software": None}))
    plt.close(figure)


def dots(variants: list[Variant], axes, title: str, value, intervals: bool = False) -> None:
    where = list(range(len(variants)))[::-1]
    for at, variant in zip(where, variants, strict=True):
        number = value(variant)
        if number is None:
            continue
        colour = ORANGE if variant.label == "recipe" else BLUE
        if intervals:
            low, high = variant.cell.interval
            axes.plot([low, high], [at, at], color=colour, alpha=0.6)
            seeds = [run.metrics["accuracy"] for run in variant.cell.runs]
            axes.plot(seeds, [at + 0.18] * len(seeds), ".", color=colour, alpha=0.5, markersize=4)
        axes.plot([number], [at], "o", color=colour)
    axes.set_yticks(where, [variant.label for variant in variants])
    axes.set_xlabel(title)
    axes.set_ylim(-0.6, len(variants) - 0.4)
    if not intervals:
        axes.set_xlim(left=0)
    axes.grid(alpha=0.3, axis="x")


def by_rank(variants: list[Variant], left, right) -> None:
    for stabilised, colour, label in ((True, BLUE, "rsLoRA, α / √r"), (False, ORANGE, "LoRA, α / r")):
        mine = sorted(
            (v for v in variants if bool(v.recipe.get("use_rslora")) == stabilised), key=lambda v: v.recipe["lora_r"]
        )
        ranks = [v.recipe["lora_r"] for v in mine]
        middle = [v.cell.metric("accuracy") for v in mine]
        ends = [[m - v.cell.interval[0] for m, v in zip(middle, mine, strict=True)]]
        ends += [[v.cell.interval[1] - m for m, v in zip(middle, mine, strict=True)]]
        apart = 0.97 if colour == BLUE else 1.03  # or one bar would hide the other
        left.errorbar([rank * apart for rank in ranks], middle, ends, fmt="o-", color=colour, label=label, capsize=3)
        right.plot(ranks, [np.median(v.log("grad_norm")) for v in mine], "o-", color=colour, label=label)
    for axes, title in ((left, "accuracy"), (right, "gradient norm, median over updates")):
        axes.set_xscale("log", base=2)
        axes.set_xticks([4, 8, 16, 32, 64], ["4", "8", "16", "32", "64"])
        axes.set(xlabel="rank", ylabel=title)
        axes.grid(alpha=0.3)
        axes.margins(y=0.15)
        axes.legend(fontsize=8, ncols=2)


def by_rows(variants: list[Variant], axes) -> None:
    models = list(dict.fromkeys(variant.model for variant in variants))
    for model, colour in zip(models, (BLUE, ORANGE, GREEN, PINK, "#666666"), strict=False):
        mine = sorted(
            (v for v in variants if v.model == model), key=lambda v: v.cell.runs[0].result["data"]["rows"]["train"]
        )
        rows = [v.cell.runs[0].result["data"]["rows"]["train"] for v in mine]
        axes.plot(rows, [v.cell.metric("accuracy") for v in mine], "o-", color=colour, label=model)
        axes.fill_between(rows, *zip(*(v.cell.interval for v in mine), strict=True), color=colour, alpha=0.12)
    axes.set_xscale("log")
    axes.set_xticks(rows, [f"{count:,}" for count in rows])
    axes.minorticks_off()
    axes.set(xlabel="training rows", ylabel="accuracy, with 95 % interval")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def curves(variants: list[Variant], left, right) -> None:
    for variant, colour in zip(variants, (BLUE, ORANGE, GREEN, PINK), strict=False):
        log = variant.cell.runs[0].result["training"]["log"]
        name = f"{variant.model}, {variant.label}"
        for axes, key in ((left, "eval_accuracy"), (right, "loss"), (right, "eval_loss")):
            curve = [(entry["epoch"], float(entry[key])) for entry in log if key in entry]
            if curve:
                style = "--" if key == "eval_loss" else "-"
                kind = {"eval_loss": ", validation", "loss": ", training"}.get(key, "")
                axes.plot(*zip(*curve, strict=True), style, color=colour, label=name + kind, linewidth=1.3)
    left.set(xlabel="epoch", ylabel="validation accuracy")
    right.set(xlabel="epoch", ylabel="loss, nats a label token", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)


def decode_table(report: dict) -> list[str]:
    """What a token costs to generate, of benchmarks/decode.py."""
    rows = [
        [
            str(row["key_value_heads"]),
            str(row["batch"]),
            f"{row['context']:,}",
            _form(row.get("decode_ms"), ".1f"),
            _form(row.get("cache_mib"), ",.0f"),
        ]
        for row in report["decoding"]
    ]
    machine = report["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    return [
        "",
        f"Decoding one more token behind a context, random weights in the shape of `{report['model']}` ({where}, "
        "medians of 16 tokens). Labels are scored without decoding, in one forward, where the cache hardly matters:",
        "",
        *markdown_table(["key-value heads", "batch", "context, tokens", "ms a token", "cache, MiB"], rows),
    ]
