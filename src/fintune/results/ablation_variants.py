"""The runs of an ablation, gathered by what they change: one variant for each overlay on each model."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from statsmodels.stats.multitest import multipletests

from fintune.results.cells import Cell
from fintune.results.runs import LeftOut
from fintune.results.statistics import ALPHA, Pair, compare_pairs


@dataclass
class Variant:
    """The runs of one overlay on one model, and how they compare with the unchanged recipe.

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
        """The identity of its runs, which holds every key that the recipe states."""
        return self.cell.runs[0].identity

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
    def cache_bytes(self) -> int | None:
        """Of keys and values in float32, for one token of context; None for a model that is not built here."""
        shape = self.recipe.get("tiny_config")
        if shape is None:
            return None
        heads = self.recipe.get("key_value_heads") or shape["num_key_value_heads"]
        return 2 * shape["num_hidden_layers"] * heads * shape["head_dim"] * 4

    @property
    def seconds_per_step(self) -> float | None:
        """Per optimizer step; None where every run was resumed, whose seconds are only those of its last part."""
        trained = [run.result["training"] for run in self.cell.runs]
        found = [
            one["train_runtime"] / one["steps"] for one in trained if one.get("steps") and not one["resumed_from"]
        ]
        return float(np.mean(found)) if found else None

    @property
    def best(self) -> tuple[float, float] | None:
        """(epoch, validation accuracy) where the first seed's was highest first."""
        log = [entry for entry in self.cell.runs[0].result["training"]["log"] if "eval_accuracy" in entry]
        if not log:
            return None
        top = max(log, key=lambda entry: (entry["eval_accuracy"], -entry["epoch"]))
        return top["epoch"], top["eval_accuracy"]


def of_the_same_rows(runs: list) -> tuple[list, list[LeftOut]]:
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


def of_the_same_recipe(runs: list, folder: Path) -> tuple[list, list[LeftOut]]:
    """Of each name, the runs of the recipe that was run last: only its seeds are pooled. The others by name."""
    kept, left_out = [], []
    for key in dict.fromkeys((run.result["task"], run.name) for run in runs):
        mine = [run for run in runs if (run.result["task"], run.name) == key]
        latest = max(mine, key=lambda run: (folder / run.path / "metrics.json").stat().st_mtime).cell_key
        kept += [run for run in mine if run.cell_key == latest]
        why = "another recipe than the latest run of that name"
        left_out += [LeftOut(run.path, why) for run in mine if run.cell_key != latest]
    return kept, left_out


def read_variants(runs: list, parameters: dict) -> list[Variant]:
    """The sweep's variants that have runs, in its order, those of a model together.

    Args:
        parameters: of the sweep's YAML.
    """
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
    """Whether that is the name of a model in this sweep: there are runs of it with one of the sweep's overlays."""
    endings = [f"{overlay}{encoder}" for overlay in parameters["overlay"]["values"] for encoder in ("", "-encoder")]
    return any(f"{stem}-{ending}" in by_name for ending in endings)


def tested(variants: list[Variant], base: list | None) -> list[Variant]:
    """Each variant against the recipe, with Holm's correction over all of them."""
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
