"""The questions that the paper leaves open: each is a grid of configs/sweeps/, trained here or by W&B.

What `fintune ablations` does: runs go to runs/<task>/ablations/, their report to docs/ablations.md.
"""

import os
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import yaml

from fintune import machine
from fintune.data.load import load_data
from fintune.errors import UserError
from fintune.model.kv_heads import shareable
from fintune.recipe.identity import plain
from fintune.recipe.layers import read_layers, read_task
from fintune.results.ablation_variants import NONE, shape_of
from fintune.results.jobs import Job, checkout, run_all
from fintune.results.suite import Baseline, cannot_read, cannot_run, finished

FIRST = "share"  # the question that a user asks first
SLOWER = 3  # times that padded rows take of rows behind one copy of their instruction


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Attributes:
        model: stem of a recipe in configs/ or configs/baselines/, or a recipe's path.
        overlay: stem of a YAML in configs/ablations/, or `none`.
        seed: None for a linear model, which has none.
    """

    task: str
    model: str
    overlay: str
    seed: int | None

    @property
    def task_file(self) -> Path:
        return checkout() / f"data/{self.task}.yaml"

    @property
    def baseline(self) -> Baseline:
        if (recipe := recipe_of(self.model)) is None:
            raise UserError(f"--model {self.model}: no such recipe in configs/ or configs/baselines/, nor a file")
        return Baseline.of(recipe)

    @property
    def layers(self) -> list[Path]:
        """The model's recipe, and the overlay on it."""
        if self.overlay == NONE:
            return [self.baseline.recipe]
        path = checkout() / f"configs/ablations/{self.overlay}.yaml"
        if not path.is_file():
            raise UserError(f"--overlay {self.overlay}: no configs/ablations/{self.overlay}.yaml")
        return [self.baseline.recipe, path]

    @property
    def name(self) -> str:
        seed = [] if self.seed is None else [f"seed{self.seed}"]
        return "-".join([*(path.stem for path in self.layers), *seed])

    @property
    def folder(self) -> Path:
        return Path("runs", self.task, "ablations", self.name)

    def command(self) -> list[str]:
        words = [str(self.task_file), *map(str, self.layers), "--output_dir", str(self.folder)]
        if self.seed is not None:
            words += ["--seed", str(self.seed)]
        return [sys.executable, str(checkout() / self.baseline.script), *words, *self.baseline.flags(self.folder)]

    def merged(self) -> dict:
        """The keys that the run states, as its recipe.yaml will hold them."""
        layer = read_layers([self.task_file, *self.layers])
        return layer if self.seed is None else layer | {"seed": self.seed}

    def cannot_exist(self) -> str | None:
        """Why this model has no such run."""
        layer = self.merged()
        if self.overlay != NONE and plain(layer) == plain(replace(self, overlay=NONE).merged()):
            return "the recipe states that itself"
        heads = layer.get("key_value_heads")
        if heads is None:
            return None
        shape = shape_of(layer)
        queries, native = shape["num_attention_heads"], shape["num_key_value_heads"]
        if heads == native:
            return f"the model has {native} key-value heads already"
        if not shareable(queries, native, heads):
            return f"{queries} query heads and {native} key-value heads cannot share {heads}"
        return None

    @property
    def cost(self) -> float:
        """How long the run takes, in epochs over all rows, to tell long runs from short ones."""
        layer = self.merged()
        if self.baseline.script != "train_sft.py":
            return 0.0
        padded = SLOWER if layer.get("batching") == "padded" else 1
        return float(layer.get("num_train_epochs", 3)) * float(layer.get("train_share") or 1) * padded


def run_ablations(
    questions: list[str],
    model: str,
    task: str | None,
    seeds: int,
    at_once: int | None,
    overlay: str | None,
    seed: int,
) -> None:
    """Train the runs of some questions' grids, or one run, that are not finished yet.

    Finished runs are skipped, and so is what this machine cannot run, each with the reason. An interrupted run is
    resumed. A run that fails does not stop the others; the exit code is then 1.

    Args:
        questions: stems of YAMLs in configs/sweeps/; empty for all of them.
        model: in place of `auto` in the grids; `auto` chooses by the machine's GPU memory.
        task: in place of the grids' task.
        seeds: number of seeds of each grid, at most.
        at_once: runs side by side, on a GPU too, the longest first; None for one per core on a CPU, one on a GPU.
        overlay: trains this one run, whatever the questions: stem of a YAML in configs/ablations/, or `none`.
        seed: of that one run.

    Raises:
        UserError: a name is unknown, a number is not positive, or this is not a checkout of the repository.
        SystemExit: 1 when a run failed, 128 + signal when stopped.
    """
    if seeds < 1 or (at_once is not None and at_once < 1):
        raise UserError("--seeds and --at-once take a number from 1 on")
    if model == "auto":
        model = machine.choose_model(machine.free_gpu_gib())[0]
    if overlay:
        points = [point(task or "sentiment", model, overlay, seed)]
    else:
        points = grid(sweeps(questions), model, task, seeds)

    # What can run here is known before anything trains, and takes memory
    waiting, skipped, data, unfit = [], 0, {}, {}
    for one in points:
        if one.task not in data:
            data[one.task] = load_data(read_task(one.task_file), allow_sample=True)
        baseline, rows = one.baseline, data[one.task]
        if one.model not in unfit:
            unfit[one.model] = cannot_run(baseline)
        reason = unfit[one.model] or cannot_read(baseline, rows) or one.cannot_exist()
        reason = reason or finished(one.folder, baseline.identity(one.merged(), rows))
        if reason:
            print(f"skip {one.task}/{one.name}: {reason}")
            skipped += 1
        else:
            waiting.append(one)
    at_once = at_once or (1 if machine.free_gpu_gib() else os.cpu_count() or 1)
    at_once = max(1, min(at_once, len(waiting)))
    if at_once > 1:  # or a long run that starts last is waited for alone
        waiting.sort(key=lambda one: one.cost, reverse=True)
    jobs = [
        Job(
            f"{one.task}/{one.name}",
            one.command(),
            one.folder.with_name(f"{one.name}.log") if len(waiting) > 1 else None,
        )
        for one in waiting
    ]
    failed = run_all(jobs, at_once)
    print(f"ablations: {len(jobs) - len(failed)} trained, {skipped} skipped, {len(failed)} failed")
    if failed:
        print("failed: " + ", ".join(failed), file=sys.stderr)
        sys.exit(1)


def write_report(model: str, task: str | None) -> None:
    """Write docs/ablations.md and its figures from what is in runs/; trains nothing.

    Args:
        model: stem of the recipe that took the place of `auto`; `auto` for the one that most runs are of.
        task: in place of the sweeps' task.

    Raises:
        UserError: no question has a finished run.
    """
    from fintune.results.ablation_report import write  # with matplotlib, which training does not need

    root = checkout()
    decoding = next(iter(sorted(root.glob("benchmarks/results/*-decode.json"))), None)
    stem = None if model == "auto" else Path(model).stem
    write(Path("runs"), root / "docs", sweeps([]), root / "configs/ablations", decoding, stem, task)


def sweeps(names: list[str]) -> dict[str, dict]:
    """Name -> content of the sweep files; empty for all of them, the first question first."""
    folder = checkout() / "configs/sweeps"
    known = sorted((path.stem for path in folder.glob("*.yaml")), key=lambda name: (name != FIRST, name))
    for name in names:
        if name not in known:
            raise UserError(f"{name}: no such question; there are {', '.join(known)}")
    found = {name: (folder / f"{name}.yaml").read_text(encoding="utf-8") for name in names or known}
    return {name: yaml.safe_load(text) for name, text in found.items()}


def recipe_of(model: str) -> Path | None:
    """The recipe of a model's name; None where there is none."""
    configs = checkout() / "configs"
    paths = (configs / f"{model}.yaml", configs / f"baselines/{model}.yaml", Path(model))
    return next((path for path in paths if path.is_file()), None)


def grid(found: dict[str, dict], model: str, task: str | None, seeds: int) -> list[Point]:
    """Every run of the sweeps once, in their order, of the models that have a recipe here.

    Args:
        model: takes the place of `auto`.
    """
    points = {}
    for sweep in found.values():
        keys = sweep["parameters"]
        for name, overlay, seed in product(
            keys["model"]["values"], keys["overlay"]["values"], keys["seed"]["values"][:seeds]
        ):
            if name != "auto" and recipe_of(name) is None:
                continue
            one = point(task or keys["task"]["value"], model if name == "auto" else name, overlay, seed)
            points[one.folder] = one
    return list(points.values())


def point(task: str, model: str, overlay: str, seed: int) -> Point:
    """A run of the grid, without a seed for a model that has none."""
    linear = Point(task, model, NONE, None).baseline.script == "train_linear.py"
    return Point(task, model, overlay, None if linear else seed)
