"""The runs of an ablation, gathered by what they change: one variant for each overlay on each model."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from statsmodels.stats.multitest import multipletests

from fintune.model.wheel import find_model
from fintune.recipe.identity import differences
from fintune.recipe.layers import TINY, read_layer
from fintune.results.cells import Cell
from fintune.results.runs import LeftOut, Run
from fintune.results.statistics import ALPHA, Pair, compare_pairs

NONE = "none"  # the overlay of an unchanged recipe


@dataclass
class Variant:
    """The runs of one overlay on one model, and how they compare with the unchanged recipe.

    Attributes:
        overlay: its stem, or `none` for the recipe as it is.
        model: stem of the recipe.
        pair: this minus the recipe; None for the recipe itself, or where it was not run.
        shape: the model's config.json, for its heads; None where it cannot be had.
    """

    overlay: str
    model: str
    cell: Cell
    pair: Pair | None = None
    shape: dict | None = None

    @property
    def is_recipe(self) -> bool:
        return self.overlay == NONE

    @property
    def recipe(self) -> dict:
        """The identity of its runs, which holds every key that the recipe states."""
        return self.cell.runs[0].identity

    def log(self, key: str) -> list[float]:
        """The values of a key in the training logs of all seeds."""
        logs = [run.result["training"]["log"] for run in self.cell.runs]
        return [float(entry[key]) for log in logs for entry in log if key in entry]

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(epoch, value) of a key in the first seed's training log."""
        log = self.cell.runs[0].result["training"]["log"]
        return [(entry["epoch"], float(entry[key])) for entry in log if key in entry]

    @property
    def validation(self) -> float | None:
        """Accuracy on the validation split of the model that is tested, mean over the seeds."""
        found = [_validation(run.result["training"]) for run in self.cell.runs]
        return None if None in found else float(np.mean(found))

    @property
    def late_losses(self) -> float | None:
        """Standard deviation of the logged training losses in the last third of a run, mean over the seeds.

        Each of them is a mean over the `logging_steps` of the recipe. None where fewer than six were logged.
        """
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
    def training_rows(self) -> int:
        return self.cell.runs[0].result["data"]["rows"]["train"]

    @property
    def trained_parameters(self) -> float | None:
        return self.cell.mean("model", "trained_parameters")

    @property
    def gradient_norm(self) -> float | None:
        """Median over the logged optimizer steps of all seeds."""
        return float(np.median(self.log("grad_norm"))) if self.log("grad_norm") else None

    @property
    def key_value_heads(self) -> int | None:
        return self.recipe.get("key_value_heads") or (self.shape and self.shape["num_key_value_heads"])

    @property
    def cache_bytes(self) -> int | None:
        """Of keys and values in float32, for one token of context; None where the model's shape is not known."""
        if self.shape is None:
            return None
        size = self.shape.get("head_dim") or self.shape["hidden_size"] // self.shape["num_attention_heads"]
        return 2 * self.shape["num_hidden_layers"] * self.key_value_heads * size * 4

    @property
    def seconds_per_step(self) -> float | None:
        """Per optimizer step; None where every run was resumed, whose seconds are only those of its last part."""
        trained = [run.result["training"] for run in self.cell.runs]
        found = [
            one["train_runtime"] / one["steps"] for one in trained if one.get("steps") and not one["resumed_from"]
        ]
        return float(np.mean(found)) if found else None

    @property
    def lowest_loss(self) -> float | None:
        """The epoch at which the first seed's validation loss was lowest."""
        curve = self.curve("eval_loss")
        return min(curve, key=lambda point: point[1])[0] if curve else None


def _validation(training: dict) -> float | None:
    """Of the weights that are tested: the best ones where they were kept, else the last."""
    if "best_eval_accuracy" in training:
        return training["best_eval_accuracy"]
    found = [entry["eval_accuracy"] for entry in training["log"] if "eval_accuracy" in entry]
    return found[-1] if found else None


def shape_of(layer: dict) -> dict:
    """A language model's config.json: of the recipe, of the package that carries it, or of the Hub.

    Args:
        layer: keys of the recipe, merged.

    Raises:
        UserError: it comes from a package that is not installed.
        OSError: it comes from the Hub, which cannot be reached.
    """
    if layer["model_name_or_path"] == TINY:
        return layer["tiny_config"]
    from transformers import AutoConfig

    revision = layer.get("model_revision")
    base, _ = find_model(layer["model_name_or_path"], revision, layer.get("wheel"))
    return AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False).to_dict()


def of_the_same_rows(runs: list[Run]) -> tuple[list[Run], list[LeftOut]]:
    """Of each task, the runs on the rows that most runs saw; the others by name."""
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


def of_the_same_recipe(runs: list[Run], folder: Path) -> tuple[list[Run], list[LeftOut]]:
    """Of each name, the runs of the recipe that was run last: only its seeds are pooled. The others by name."""
    kept, left_out = [], []
    for key in dict.fromkeys((run.result["task"], run.name) for run in runs):
        mine = [run for run in runs if (run.result["task"], run.name) == key]
        latest = max(mine, key=lambda run: (folder / run.path / "metrics.json").stat().st_mtime).cell_key
        kept += [run for run in mine if run.cell_key == latest]
        why = "another recipe than the latest run of that name"
        left_out += [LeftOut(run.path, why) for run in mine if run.cell_key != latest]
    return kept, left_out


def model_of(runs: list[Run], sweeps: dict[str, dict]) -> str | None:
    """The recipe that took the place of `auto`: of those with an overlay of the sweeps, the one of most runs."""
    keys = [sweep["parameters"] for sweep in sweeps.values()]
    overlays = {overlay for key in keys for overlay in key["overlay"]["values"]}
    named = {model for key in keys for model in key["model"]["values"]}
    stems = [run.name.removesuffix(f"-{o}") for run in runs for o in overlays if run.name.endswith(f"-{o}")]
    counts = Counter(stem for stem in stems if stem not in named)
    return counts.most_common(1)[0][0] if counts else None


def read_variants(
    runs: list[Run], parameters: dict, model: str | None, overlays: Path
) -> tuple[list[Variant], list[LeftOut]]:
    """The sweep's variants that have runs, in its order, those of a model together; and what does not belong to them.

    Args:
        parameters: of the sweep's YAML.
        model: stem of the recipe that took the place of `auto`.
        overlays: folder of the YAMLs that the sweep names.
    """
    variants, left_out = [], []
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        if run.result["task"] == parameters["task"]["value"]:
            by_name.setdefault(run.name, []).append(run)
    for name in parameters["model"]["values"]:
        stem, mine = (model if name == "auto" else name), []
        for overlay in parameters["overlay"]["values"]:
            found = by_name.get(stem if overlay == NONE else f"{stem}-{overlay}", [])
            if found and overlay != NONE and stem in by_name:
                turned = {"seed", "min_steps", *read_layer(overlays / f"{overlay}.yaml")}
                others = differences(found[0].identity, by_name[stem][0].identity, besides=tuple(turned))
                if others:
                    why = f"differs from the runs of {stem} in {', '.join(others)} too; train both again"
                    left_out += [LeftOut(run.path, why) for run in found]
                    continue
            if found:
                mine.append(Variant(overlay, stem, Cell(stem, sorted(found, key=lambda run: str(run.seed)))))
        variants += against_the_recipe(mine)
    return variants, left_out


def against_the_recipe(variants: list[Variant]) -> list[Variant]:
    """The variants of one model, each against its recipe, with Holm's correction over all of them."""
    base = next((variant for variant in variants if variant.is_recipe), None)
    others = [variant for variant in variants if not variant.is_recipe]
    if base:
        for variant, pair in zip(others, paired([(variant, base) for variant in others]), strict=True):
            variant.pair = pair
    return variants


def paired(couples: list[tuple[Variant, Variant]]) -> list[Pair]:
    """The first minus the second of each couple, with Holm's correction over all couples."""
    pairs = []
    for couple in couples:
        cells = [variant.cell for variant in couple]
        pairs += compare_pairs([cell.correct for cell in cells], [cell.run.correct for cell in cells])
    if not pairs:
        return []
    corrected = multipletests([pair.p for pair in pairs], alpha=ALPHA, method="holm")[1]
    return [replace(pair, p_holm=float(p)) for pair, p in zip(pairs, corrected, strict=True)]
