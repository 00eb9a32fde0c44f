"""The figures of docs/ablations.md, made to be read at the width of a page: 1,700 pixels, shown at half of that."""

from pathlib import Path

import matplotlib

from fintune.files import write_whole
from fintune.results.ablation_names import name_of, rate, share
from fintune.results.ablation_variants import Variant

matplotlib.use("agg")  # no screen needed
import matplotlib.pyplot as plt

# distinct when colour-blind (Okabe and Ito), and each with a marker of its own
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#666666")
MARKERS = ("o", "s", "^", "D", "v")
PLAIN, RECIPE = COLOURS[0], COLOURS[1]
WIDTH, DPI = 8.5, 200  # inches, pixels an inch
STYLE = {
    "font.size": 10.5,
    "legend.fontsize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
TEST = "test accuracy (95 % interval)"


def draw(title: str, varied: list[str], variants: list[Variant], path: Path) -> None:
    """Write one sweep's figure.

    Args:
        varied: recipe keys that the sweep varies: they decide what is shown.
    """
    one_panel = "train_share" in varied
    lines = bool({"num_train_epochs", "train_share", "lora_r", "learning_rate"} & set(varied))
    height = 4.4 if one_panel else 4.0 if lines else 1.7 + 0.42 * len(variants)  # inches
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, 1 if one_panel else 2, figsize=(WIDTH, height), layout="constrained", squeeze=False
        )
        figure.get_layout_engine().set(w_pad=0.1)  # inches: numbers at the ends of two axes stay apart
        left, right = axes[0, 0], axes[0, -1]
        if "num_train_epochs" in varied:
            by_epochs(varied, variants, left, right)
        elif "train_share" in varied:
            by_rows(variants, left)
        elif "lora_r" in varied:
            by_rank(variants, left, right)
        elif "learning_rate" in varied:
            by_rate(variants, left, right)
        else:
            accuracies(varied, variants, left)
            costs(varied, variants, right)
        named = {}  # of both panels, each name once
        for panel in axes[0]:
            named |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        if named:
            columns = 3 if one_panel else 4
            figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, frameon=False)
        first = variants[-1].cell.runs[0]
        figure.suptitle(
            f"{title}\n{variants[-1].model}, {first.result['task']}, {len(first.rows)} test rows", fontsize=11
        )
        write_whole(path, lambda place: figure.savefig(place, dpi=DPI, format="png", metadata={"Software": None}))
        plt.close(figure)


def errors(variants: list[Variant]) -> list[list[float]]:
    """Lengths of the interval's two arms for each variant's accuracy."""
    ends = [(v.cell.metric("accuracy"), *v.cell.interval) for v in variants]
    return [[max(0.0, mean - low) for mean, low, _ in ends], [max(0.0, high - mean) for mean, _, high in ends]]


def accuracies(varied: list[str], variants: list[Variant], axes) -> None:
    """One line per variant, the first on top: mean and 95 % interval."""
    for height, variant in zip(_heights(varied, variants, axes), variants, strict=True):
        axes.errorbar(
            [variant.cell.metric("accuracy")],
            [height],
            xerr=errors([variant]),
            fmt="o",
            color=_colour(variant),
            capsize=3,
        )
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(TEST)


def costs(varied: list[str], variants: list[Variant], axes) -> None:
    """What else the varied key changes, beside the accuracies."""
    if "neftune_noise_alpha" in varied:
        title, values = "spread of the loss in the last third, nats", [v.late_losses for v in variants]
    elif "key_value_heads" in varied:
        title, values = "key-value cache, KiB per token", [v.cache_bytes and v.cache_bytes / 1024 for v in variants]
    elif "lora_target_modules" in varied:
        millions = [v.trained_parameters and v.trained_parameters / 1e6 for v in variants]
        title, values = "trained parameters, millions", millions
    else:
        title, values = "seconds per optimizer step", [v.seconds_per_step for v in variants]
    for height, variant, value in zip(_heights(varied, variants, axes), variants, values, strict=True):
        if value is not None:
            axes.plot([value], [height], "o", color=_colour(variant))
    if not any(values):
        axes.text(0.5, 0.5, "not logged", ha="center", transform=axes.transAxes)
    axes.tick_params(labelleft=False)  # as in the left panel
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(title)
    axes.set_xlim(0, 1.08 * max([value for value in values if value is not None], default=1))


def _heights(varied: list[str], variants: list[Variant], axes) -> list[int]:
    """The variants' places on the vertical axis, named there; the first is on top."""
    heights = list(range(len(variants)))[::-1]
    axes.set_yticks(heights, [name_of(variant, varied) for variant in variants])
    axes.set_ylim(-0.6, len(variants) - 0.4)
    axes.grid(visible=False, axis="y")
    return heights


def _colour(variant: Variant) -> str:
    return RECIPE if variant.is_recipe else PLAIN


def by_rank(variants: list[Variant], left, right) -> None:
    """Accuracy and gradient norm against the rank, with and without rank stabilisation."""
    for number, (stabilised, label) in enumerate(
        ((True, "rsLoRA, scaled by α / √r"), (False, "LoRA, scaled by α / r"))
    ):
        mine = sorted(
            (v for v in variants if bool(v.recipe.get("use_rslora")) == stabilised), key=lambda v: v.recipe["lora_r"]
        )
        if not mine:
            continue
        look = {"color": COLOURS[number], "marker": MARKERS[number], "label": label}
        ranks = [v.recipe["lora_r"] for v in mine]
        aside = [rank * (0.97 if stabilised else 1.03) for rank in ranks]  # or one bar would hide the other
        left.errorbar(aside, [v.cell.metric("accuracy") for v in mine], errors(mine), capsize=3, **look)
        right.plot(ranks, [v.gradient_norm for v in mine], **look)
    own = {
        v.recipe["lora_r"]: "\nrecipe: rsLoRA" if v.recipe.get("use_rslora") else "\nrecipe: LoRA"
        for v in _own(variants)
    }
    for axes, title in ((left, TEST), (right, "gradient norm, median over steps")):
        _ticks(axes, {v.recipe["lora_r"]: str(v.recipe["lora_r"]) for v in variants}, own)
        axes.set(xlabel="rank", ylabel=title)
    right.set_ylim(0, 1.1 * max((v.gradient_norm for v in variants if v.gradient_norm), default=1))


def by_rows(variants: list[Variant], axes) -> None:
    """Accuracy against the number of training rows, one line per model; the recipe's model last, and boldest."""
    models = list(dict.fromkeys(variant.model for variant in variants))[::-1]
    for number, model in enumerate(models):
        mine = sorted((v for v in variants if v.model == model), key=lambda v: v.training_rows)
        aside = 1.018 ** (number - (len(models) - 1) / 2)  # intervals beside each other
        axes.errorbar(
            [v.training_rows * aside for v in mine],
            [v.cell.metric("accuracy") for v in mine],
            errors(mine),
            fmt="-",
            marker=MARKERS[number % 5],
            color=COLOURS[number % 5],
            linewidth=2.2 if number == 0 else 1.3,
            capsize=2.5,
            elinewidth=1,
            label=model,
        )
    shares = {v.training_rows: f"{v.training_rows:,}\n{share(v.recipe['train_share'])}" for v in variants}
    own = {v.training_rows: " (recipe)" for v in _own(variants)}
    _ticks(axes, shares, own)
    axes.set(xlabel="labels to train on", ylabel=TEST)


def by_rate(variants: list[Variant], left, right) -> None:
    """Accuracy on validation, which chooses, and on test, against the learning rate; one line per batch size."""
    best = max((v for v in variants if v.validation is not None), key=lambda v: v.validation, default=None)
    for number, rows in enumerate(sorted({v.recipe["per_device_train_batch_size"] for v in variants})):
        mine = [v for v in variants if v.recipe["per_device_train_batch_size"] == rows]
        mine.sort(key=lambda v: v.recipe["learning_rate"])
        own = " (recipe)" * any(v.is_recipe for v in mine)
        look = {"color": COLOURS[number % 5], "marker": MARKERS[number % 5], "label": f"{rows} rows a step{own}"}
        rates = [v.recipe["learning_rate"] for v in mine]
        scored = [(v.recipe["learning_rate"], v.validation) for v in mine if v.validation is not None]
        if scored:
            left.plot(*zip(*scored, strict=True), **look)
        aside = [rate_ * 1.03 ** (2 * number - 1) for rate_ in rates]
        right.errorbar(aside, [v.cell.metric("accuracy") for v in mine], errors(mine), capsize=3, **look)
    if best:
        place = (best.recipe["learning_rate"], best.validation)
        left.plot(*place, "o", markersize=15, fillstyle="none", color="black", label="best on validation")
    own = {v.recipe["learning_rate"]: "\nrecipe" for v in _own(variants)}
    for axes, title in ((left, "validation accuracy"), (right, TEST)):
        _ticks(axes, {v.recipe["learning_rate"]: rate(v.recipe["learning_rate"]) for v in variants}, own)
        axes.set(xlabel="learning rate", ylabel=title)


def by_epochs(varied: list[str], variants: list[Variant], left, right) -> None:
    """Accuracy against the number of epochs, each run with a schedule of its own; and the runs' validation losses."""
    mine = sorted(variants, key=lambda v: v.recipe["num_train_epochs"])
    epochs = [v.recipe["num_train_epochs"] for v in mine]
    left.plot(epochs, [v.cell.metric("accuracy") for v in mine], color=COLOURS[-1], linewidth=1)
    _ticks(
        left, {count: f"{count:g}" for count in epochs}, {v.recipe["num_train_epochs"]: "\nrecipe" for v in _own(mine)}
    )
    left.set(xlabel="epochs of the run", ylabel=TEST)
    for number, variant in enumerate(mine):
        look = {"color": COLOURS[number % 5], "marker": MARKERS[number % 5]}
        place = [variant.recipe["num_train_epochs"]], [variant.cell.metric("accuracy")]
        left.errorbar(*place, errors([variant]), capsize=3, **look)
        if curve := variant.curve("eval_loss"):
            right.plot(*zip(*curve, strict=True), label=name_of(variant, varied), **look)
    right.set_xlim(left=0)
    right.locator_params(axis="x", integer=True)
    right.set(xlabel="epoch within the run", ylabel="validation loss, nats per token")


def _own(variants: list[Variant]) -> list[Variant]:
    """The unchanged recipe, where it was run: of the last model alone."""
    return [v for v in variants if v.is_recipe and v.model == variants[-1].model]


def _ticks(axes, names: dict[float, str], own: dict[float, str]) -> None:
    """A logarithmic axis with the values that were run, the recipe's own marked."""
    axes.set_xscale("log")
    places = sorted(names)
    axes.set_xticks(places, [names[place] + own.get(place, "") for place in places])
    axes.minorticks_off()
    axes.margins(x=0.09)
