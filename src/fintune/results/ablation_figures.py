"""The figures of docs/ablations.md."""

from pathlib import Path

import matplotlib

from fintune.files import write_whole
from fintune.results.ablation_variants import Variant

matplotlib.use("agg")  # no screen needed
import matplotlib.pyplot as plt

BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#666666"  # distinct when colour-blind


STYLE = {"font.size": 11, "legend.fontsize": 9.5, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}


def draw(title: str, varied: set[str], variants: list[Variant], path: Path) -> None:
    """Write one sweep's figure.

    Args:
        varied: recipe keys that the sweep varies: they decide what is shown.
    """
    one_panel = "train_share" in varied
    lines = bool({"num_train_epochs", "train_share", "lora_r"} & varied)
    size = (6.75 if one_panel else 10, 4 if lines else min(4, 1.6 + 0.55 * len(variants)))  # inches
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 1 if one_panel else 2, figsize=size, layout="constrained", squeeze=False)
        left, right = axes[0, 0], axes[0, -1]
        if "num_train_epochs" in varied:
            curves(variants, left, right)
        elif "train_share" in varied:
            by_rows(variants, left)
        elif "lora_r" in varied:
            by_rank(variants, left, right)
        else:
            accuracies(variants, left)
            costs(varied, variants, right)
        if lines:
            figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        models = ", ".join(dict.fromkeys(variant.model for variant in variants))
        task = variants[0].cell.runs[0].result["task"]
        figure.suptitle(f"{title}  ({models}, {task})", fontsize=12, wrap=True)
        write_whole(path, lambda place: figure.savefig(place, dpi=200, format="png", metadata={"Software": None}))
        plt.close(figure)


def accuracies(variants: list[Variant], axes) -> None:
    """One line per variant, the recipe on top: mean, 95 % interval, and the seeds where there are several."""
    for height, variant in zip(_heights(variants, axes), variants, strict=True):
        colour = _colour(variant)
        axes.plot(variant.cell.interval, [height, height], color=colour, alpha=0.6)
        axes.plot([variant.cell.metric("accuracy")], [height], "o", color=colour)
        seeds = [run.metrics["accuracy"] for run in variant.cell.runs]
        if len(seeds) > 1:
            axes.plot(seeds, [height + 0.18] * len(seeds), ".", color=colour, alpha=0.5, markersize=4)
    axes.set_xlabel("accuracy")


def costs(varied: set[str], variants: list[Variant], axes) -> None:
    """What else the varied key changes, beside the accuracies."""
    if "neftune_noise_alpha" in varied:
        title, values = "spread of the loss in the last third, nats", [v.late_losses for v in variants]
    elif "key_value_heads" in varied:
        title, values = "key-value cache, bytes per token", [v.cache_bytes for v in variants]
    elif "lora_target_modules" in varied:
        title, values = (
            "trained parameters, millions",
            [v.trained_parameters and v.trained_parameters / 1e6 for v in variants],
        )
    else:
        title, values = "seconds per optimizer step", [v.seconds_per_step for v in variants]
    for height, variant, value in zip(_heights(variants, axes), variants, values, strict=True):
        if value is not None:
            axes.plot([value], [height], "o", color=_colour(variant))
    axes.tick_params(labelleft=False)  # as in the left panel
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(title)
    axes.set_xlim(0, 1.08 * max([value for value in values if value is not None], default=1))


def _heights(variants: list[Variant], axes) -> list[int]:
    """The variants' places on the vertical axis, named there; the first is on top."""
    heights = list(range(len(variants)))[::-1]
    many = len({variant.model for variant in variants}) > 1
    axes.set_yticks(heights, [f"{v.model}, {v.label}" if many else v.label for v in variants])
    axes.set_ylim(-0.6, len(variants) - 0.4)
    axes.grid(visible=False, axis="y")
    return heights


def _colour(variant: Variant) -> str:
    return ORANGE if variant.label == "recipe" else BLUE


def by_rank(variants: list[Variant], left, right) -> None:
    """Accuracy and gradient norm against the rank, with and without rank stabilisation."""
    for stabilised, colour, label in ((True, BLUE, "rsLoRA, α / √r"), (False, ORANGE, "LoRA, α / r")):
        mine = sorted(
            (v for v in variants if bool(v.recipe.get("use_rslora")) == stabilised), key=lambda v: v.recipe["lora_r"]
        )
        ranks = [v.recipe["lora_r"] for v in mine]
        means = [v.cell.metric("accuracy") for v in mine]
        low = [mean - v.cell.interval[0] for mean, v in zip(means, mine, strict=True)]
        high = [v.cell.interval[1] - mean for mean, v in zip(means, mine, strict=True)]
        aside = 0.97 if stabilised else 1.03  # or one bar would hide the other
        left.errorbar(
            [rank * aside for rank in ranks], means, [low, high], fmt="o-", color=colour, label=label, capsize=3
        )
        right.plot(ranks, [v.gradient_norm for v in mine], "o-", color=colour, label=label)
    ranks = sorted({v.recipe["lora_r"] for v in variants})
    for axes, title in ((left, "accuracy, with 95 % interval"), (right, "gradient norm, median over steps")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.set(xlabel="rank", ylabel=title)


def by_rows(variants: list[Variant], axes) -> None:
    """Accuracy against the number of training rows, one line per model."""
    models = list(dict.fromkeys(variant.model for variant in variants))
    for model, colour in zip(models, (BLUE, ORANGE, GREEN, PINK, GREY), strict=False):
        mine = sorted((v for v in variants if v.model == model), key=lambda v: v.training_rows)
        rows = [v.training_rows for v in mine]
        axes.plot(rows, [v.cell.metric("accuracy") for v in mine], "o-", color=colour, label=model)
        axes.fill_between(rows, *zip(*(v.cell.interval for v in mine), strict=True), color=colour, alpha=0.12)
    ticks = sorted({variant.training_rows for variant in variants})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axes.minorticks_off()
    axes.set(xlabel="training rows", ylabel="accuracy, with 95 % interval")


def curves(variants: list[Variant], left, right) -> None:
    """Validation accuracy, and training and validation loss, against the epoch; of each variant's first seed."""
    for variant, colour in zip(variants, (BLUE, ORANGE, GREEN, PINK), strict=False):
        log = variant.cell.runs[0].result["training"]["log"]
        for axes, key, style in ((left, "eval_accuracy", "-"), (right, "loss", "-"), (right, "eval_loss", "--")):
            curve = [(entry["epoch"], float(entry[key])) for entry in log if key in entry]
            if curve:
                label = f"{variant.model}, {variant.label}"
                axes.plot(*zip(*curve, strict=True), style, color=colour, label=label, linewidth=1.4)
    left.set(xlabel="epoch", ylabel="validation accuracy")
    right.set(xlabel="epoch", ylabel="loss, nats per label token", yscale="log")
    right.set_title("solid: training, dashed: validation", fontsize=10)
