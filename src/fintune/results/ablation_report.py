"""docs/ablations.md: what the runs of `fintune ablations` show, and what they do not."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from fintune.errors import UserError
from fintune.files import write_text
from fintune.recipe.layers import read_layer
from fintune.results.ablation_figures import draw
from fintune.results.ablation_variants import Variant, of_the_same_recipe, of_the_same_rows, read_variants
from fintune.results.runs import LeftOut, read_runs
from fintune.results.tables import as_text, base_name, markdown_table, points, short

Columns = dict[str, Callable[[Variant], str]]  # header -> text of a variant


def write(
    runs: Path,
    docs: Path,
    sweeps: dict[str, dict],
    overlays: Path,
    decoding: Path | None = None,
    task: str | None = None,
) -> None:
    """Write docs/ablations.md and docs/ablations/*.png, one section for each sweep that has runs.

    Args:
        runs: searched for runs/<task>/ablations/.
        sweeps: name -> content of its YAML.
        overlays: folder of the YAMLs that the sweeps name.
        decoding: a result of benchmarks/decode.py.
        task: in place of the sweeps' task.

    Raises:
        UserError: no sweep has runs.
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
        names = [overlay for overlay in parameters["overlay"]["values"] if overlay != "none"]
        varied = {key for overlay in names for key in read_layer(overlays / f"{overlay}.yaml")}
        seen |= {id(run): run for variant in variants for run in variant.cell.runs}
        picture = docs / "ablations" / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(sweep["name"], varied, variants, picture)
        sections.append(section(sweep, varied, variants, picture.relative_to(docs)))
        if "key_value_heads" in varied and decoding and decoding.is_file():
            sections[-1] += decode_table(json.loads(decoding.readas_text(encoding="utf-8")))
    if not sections:
        raise UserError(f"{runs}: no finished run of an ablation; `make ablations` trains them")
    missing = [left for left in left_out if "ablations" in Path(left.path).parts]
    lines = [*head(list(seen.values()), missing), *chain.from_iterable(sections)]
    write_text(docs / "ablations.md", "\n".join(lines) + "\n")
    print(f"written: {docs / 'ablations.md'}, {len(sections)} of {len(sweeps)} questions, {len(seen)} runs")


def head(runs: list, missing: list[LeftOut]) -> list[str]:
    first = runs[0].result
    models = ", ".join(sorted({f"`{base_name(run.result)}`" for run in runs}))
    data, machines = first["data"], [run.result["machine"] for run in runs]
    commits = " and ".join(sorted({(one["git"] or "unknown")[:12] for one in machines}))
    where = " and ".join(
        sorted(
            {
                f"{one['processor']}, {one['cores']} core{'s' * (one['cores'] > 1)} per run, {one['gpu'] or 'no GPU'}"
                for one in machines
            }
        )
    )
    lines = [
        "# Ablations",
        "",
        "<!-- written by `fintune ablations --report` from runs/; edits here are overwritten -->",
        "",
        f"The paper's open questions, answered for {models} on {first['task']} ({data['source']} data, SHA-256 "
        f"`{data['sha256'][:12]}`): {len(runs)} runs of `make ablations`, {where}, commit {commits}. "
        f"Accuracies are on the {len(runs[0].rows)} test rows, means over the seeds where there are several, "
        "with a 95 % interval over rows and seeds.",
        "",
        "A difference from the recipe is called real when exact McNemar, corrected by Holm within a question and "
        "model, and the paired bootstrap both say so at 5 %. Everything else is inside noise.",
    ]
    if "tiny" in models:
        lines += [
            "",
            "`tiny` has 3 million parameters and is trained from scratch: what holds for it need not hold for "
            "Qwen3-8B, for which `make ablations MODEL=qwen3-8b` answers.",
        ]
    if missing:
        lines += ["", *(f"- left out: {left.path}: {left.reason}" for left in missing)]
    return lines


def columns(varied: set[str]) -> Columns:
    """A table's columns beyond the accuracy, by the recipe keys that the sweep varies."""
    if "train_share" in varied:
        return {"training rows": lambda v: f"{v.training_rows:,}"}
    found: Columns = {
        "trained parameters": lambda v: short(v.trained_parameters),
        "spread of the loss, nats": lambda v: as_text(v.late_losses, ".3f"),
        "gradient norm, median": lambda v: as_text(v.gradient_norm, ".2f"),
        "largest": lambda v: as_text(max(v.log("grad_norm"), default=None), ".1f"),
        "s per optimizer step": lambda v: as_text(v.seconds_per_step, ".3f"),
    }
    if "lora_r" in varied:
        found["scale of the adapter"] = lambda v: as_text(v.scale, ".2f")
    if "key_value_heads" in varied:
        found["cache, bytes per token"] = lambda v: as_text(v.cache_bytes, ",d")
    if "num_train_epochs" in varied:
        found["best epoch"] = lambda v: as_text(v.best and v.best[0], ".2f")
        found["validation there"] = lambda v: as_text(v.best and v.best[1], ".4f")
    return found


def section(sweep: dict, varied: set[str], variants: list[Variant], picture: Path) -> list[str]:
    headers = ["variant", "seeds", "accuracy (95 % interval)", "against the recipe, points"]
    further = columns(varied)
    many = len({variant.model for variant in variants}) > 1
    rows = []
    for variant in variants:
        low, high = variant.cell.interval
        label = f"{variant.model}, {variant.label}" if many else variant.label
        against = "" if variant.pair is None else f"{points(variant.pair.difference)}, {variant.pair.verdict}"
        accuracy = f"{variant.cell.metric('accuracy'):.4f} ({low:.4f} to {high:.4f})"
        shown = [label, str(len(variant.cell.runs)), accuracy, against, *(show(variant) for show in further.values())]
        rows.append(shown)
    first = variants[0].cell.runs[0]
    ran = {"auto", *(variant.model for variant in variants)}
    absent = [f"`{model}`" for model in sweep["parameters"]["model"]["values"] if model not in ran]
    models = ", ".join(f"`{model}`" for model in dict.fromkeys(variant.model for variant in variants))
    return [
        "",
        f"## {sweep['name']}",
        "",
        verdict(variants),
        "",
        *markdown_table([*headers, *further], rows),
        "",
        f"![{sweep['name']}]({picture})",
        "",
        f"*{models}, {first.result['task']}, {len(first.rows)} test rows; bars are 95 % intervals, small dots "
        "individual seeds.*",
        "",
        f"**Not shown**: {sweep['description'].strip()}",
        *(
            [f"\n**Not run**: {', '.join(absent)}; `make ablations` gives the reason where it skips them."]
            if absent
            else []
        ),
    ]


def verdict(variants: list[Variant]) -> str:
    """The outcome in one sentence."""
    tested_ones = [variant for variant in variants if variant.pair is not None]
    real = [variant for variant in tested_ones if variant.pair.real]
    if not tested_ones:
        return "Nothing is compared here: the unchanged recipe was not run."
    if not real and len(tested_ones) == 1:
        return f"{tested_ones[0].label} does not differ from the recipe by more than noise."
    if not real:
        return f"None of {len(tested_ones)} variants differs from the recipe by more than noise."
    many = len({variant.model for variant in variants}) > 1
    named = ", ".join(
        f"{variant.model + ', ' if many else ''}{variant.label} ({points(variant.pair.difference)} points)"
        for variant in real
    )
    if len(real) == len(tested_ones):
        return f"All of them differ from the recipe by more than noise: {named}."
    differ = "variants differ" if len(real) > 1 else "variants differs"
    return f"{len(real)} of {len(tested_ones)} {differ} from the recipe by more than noise: {named}."


def decode_table(report: dict) -> list[str]:
    """The cost of generating a token, from a result of benchmarks/decode.py."""
    rows = [
        [
            str(row["key_value_heads"]),
            str(row["batch"]),
            f"{row['context']:,}",
            as_text(row.get("decode_ms"), ".1f"),
            as_text(row.get("cache_mib"), ",.0f"),
        ]
        for row in report["decoding"]
    ]
    machine = report["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    return [
        "",
        f"Decoding one more token after a context, random weights in the shape of `{report['model']}` ({where}, "
        "medians of 16 tokens). Labels are scored without decoding, in one forward, where the cache hardly matters:",
        "",
        *markdown_table(["key-value heads", "batch", "context, tokens", "ms per token", "cache, MiB"], rows),
    ]
