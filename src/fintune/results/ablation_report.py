"""docs/ablations.md: what the runs of `fintune ablations` show, and what they do not."""

import json
from itertools import chain
from pathlib import Path

from fintune.errors import UserError
from fintune.files import write_text
from fintune.model.kv_heads import shareable
from fintune.recipe.identity import plain
from fintune.recipe.layers import read_layer
from fintune.results.ablation_figures import draw
from fintune.results.ablation_tables import answer, caption, decode_table, tables
from fintune.results.ablation_variants import (
    NONE,
    Variant,
    model_of,
    of_the_same_recipe,
    of_the_same_rows,
    read_variants,
    shape_of,
)
from fintune.results.runs import LeftOut, Run, read_runs


def write(
    runs: Path,
    docs: Path,
    sweeps: dict[str, dict],
    overlays: Path,
    decoding: Path | None = None,
    model: str | None = None,
    task: str | None = None,
) -> None:
    """Write docs/ablations.md and docs/ablations/*.png: one section for each sweep, with or without runs.

    Args:
        runs: searched for runs/<task>/ablations/.
        sweeps: name -> content of its YAML, in the order of the page.
        overlays: folder of the YAMLs that the sweeps name.
        decoding: a result of benchmarks/decode.py.
        model: stem of the recipe that took the place of `auto`; None for the one of most runs.
        task: in place of the sweeps' task.

    Raises:
        UserError: no sweep has runs.
    """
    found, left_out = read_runs(runs)
    found, others = of_the_same_rows([run for run in found if run.study])
    found, more = of_the_same_recipe(found, runs)
    left_out += others + more
    model = model or model_of(found, sweeps)
    sections, used, answered = [], {}, 0
    for name, sweep in sweeps.items():
        parameters = sweep["parameters"] | ({"task": {"value": task}} if task else {})
        variants, strange = read_variants(found, parameters, model, overlays)
        left_out += [left for left in strange if left not in left_out]
        sections += ["", f"## {sweep['name']}", ""]
        if len(variants) < 2:
            how = f"make ablations{f' MODEL={model}' * bool(model)} ARGS={name}"
            sections.append(f"**Not run**: {runs} has no two finished runs of it to compare; `{how}` trains them.")
            continue
        answered += 1
        used |= {run.path: run for variant in variants for run in variant.cell.runs}
        varied = keys_of(parameters, overlays)
        if "key_value_heads" in varied:
            shape = _shape(runs / variants[0].cell.runs[0].path)
            for variant in variants:
                variant.shape = shape
        picture = docs / "ablations" / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(sweep["name"], varied, variants, picture)
        sections += section(sweep, varied, variants, picture.relative_to(docs), runs)
        if "key_value_heads" in varied and decoding and decoding.is_file():
            sections += decode_table(json.loads(decoding.read_text(encoding="utf-8")))
        absent = [f"`{name}`" for name in not_run(parameters, variants, model, overlays)]
        if absent:
            sections += ["", f"**Not run**: {', '.join(absent)}; `make ablations` trains them, or says why it cannot."]
    if not answered:
        raise UserError(f"{runs}: no finished run of an ablation; `make ablations` trains them")
    missing = [left for left in left_out if "ablations" in Path(left.path).parts]
    write_text(docs / "ablations.md", "\n".join(chain(head(list(used.values()), model, missing), sections)) + "\n")
    print(f"written: {docs / 'ablations.md'}, {answered} of {len(sweeps)} questions, {len(used)} runs")


def keys_of(parameters: dict, overlays: Path) -> list[str]:
    """The recipe keys that a sweep varies, in the order of its overlays."""
    names = [overlay for overlay in parameters["overlay"]["values"] if overlay != NONE]
    return list(dict.fromkeys(key for name in names for key in read_layer(overlays / f"{name}.yaml")))


def not_run(parameters: dict, variants: list[Variant], model: str | None, overlays: Path) -> list[str]:
    """What a sweep asks for and has no run of, though it can exist: models, and overlays of those that have runs."""
    names = []
    for name in parameters["model"]["values"]:
        stem = model if name == "auto" else name
        mine = {variant.overlay: variant for variant in variants if variant.model == stem}
        if not mine:
            names += [stem] if stem else []
            continue
        for overlay in parameters["overlay"]["values"]:
            if overlay not in mine and (overlay == NONE or _can_exist(read_layer(overlays / f"{overlay}.yaml"), mine)):
                names.append(stem if overlay == NONE else f"{stem}-{overlay}")
    return names


def _can_exist(overlay: dict, mine: dict[str, Variant]) -> bool:
    """Whether an overlay changes the recipe, and its heads fit the model; as `fintune ablations` decides it."""
    shape, heads = next(iter(mine.values())).shape, overlay.get("key_value_heads")
    if heads and shape:
        own = shape["num_key_value_heads"]
        return heads != own and shareable(shape["num_attention_heads"], own, heads)
    recipe = mine.get(NONE)
    return recipe is None or any(plain(value) != recipe.recipe.get(key) for key, value in overlay.items())


def _shape(run: Path) -> dict | None:
    try:
        return shape_of(read_layer(run / "recipe.yaml"))
    except (UserError, OSError):
        return None


def head(runs: list[Run], model: str | None, missing: list[LeftOut]) -> list[str]:
    """The page's title, what it rests on, how to read it, and what was left out."""
    first = runs[0].result
    data = first["data"]
    whose = f"asked of `{model}`" if model else "asked of the baselines"
    lines = [
        "# Ablations",
        "",
        "<!-- written by `fintune ablations --report` from runs/; edits here are overwritten -->",
        "",
        f"The questions that the paper leaves open, {whose} on {first['task']}: {len(runs)} runs of "
        f"`make ablations` on {data['source']} data (SHA-256 `{data['sha256'][:12]}`), all tested on the same "
        f"{len(runs[0].rows)} rows. The line below each figure says on what it was measured.",
        "",
        "Accuracies are means over the seeds, with a 95 % interval over rows and seeds. A difference from the recipe "
        "is called real when exact McNemar, corrected by Holm within a question, and the paired bootstrap both say so "
        "at 5 %. Everything else is inside noise, which does not prove that there is no difference. Runs may have "
        "shared a machine, so their seconds compare with each other at best; [speed.md](speed.md) has times.",
    ]
    if model == "tiny":
        lines += [
            "",
            "`tiny` has 3 million parameters and is trained from scratch: what holds for it need not hold for a "
            "pretrained model, for which `make ablations MODEL=smollm2-135m` answers.",
        ]
    if missing:
        lines += ["", *(f"- left out: {left.path}: {left.reason}" for left in missing)]
    return lines


def section(sweep: dict, varied: list[str], variants: list[Variant], picture: Path, runs: Path) -> list[str]:
    """Answer, figure, what it was measured on, tables, and what the runs do not show."""
    return [
        answer(varied, variants),
        "",
        f"![{sweep['name']}]({picture})",
        "",
        f"*{caption(variants, runs)}*",
        "",
        *tables(varied, variants),
        "",
        f"**Not shown**: {sweep['description'].strip()}",
    ]
