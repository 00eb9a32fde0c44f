"""The questions that the paper leaves open: each is a grid of configs/sweeps/, trained here or by W&B.

What `fintune ablations` does: runs go to runs/<task>/ablations/, their report to docs/ablations.md.
"""

import os
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from fintune import machine
from fintune.data.load import load_data
from fintune.errors import UserError
from fintune.model.kv_heads import shareable
from fintune.recipe.layers import read_layers, read_task
from fintune.results.jobs import Job, checkout, run_all
from fintune.results.suite import Baseline, cannot_read, cannot_run, finished

NONE = "none"  # the overlay of an unchanged recipe


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
        configs = checkout() / "configs"
        for path in (configs / f"{self.model}.yaml", configs / f"baselines/{self.model}.yaml", Path(self.model)):
            if path.is_file():
                return Baseline.of(path)
        raise UserError(f"--model {self.model}: no such recipe in configs/ or configs/baselines/, nor a file")

    @property
    def layers(self) -> list[Path]:
        """The model's recipe and the overlay; an encoder takes the overlay's `-encoder` variant if there is one."""
        baseline = self.baseline
        if self.overlay == NONE:
            return [baseline.recipe]
        names = [f"{self.overlay}-encoder"] * (baseline.script == "train_cls.py") + [self.overlay]
        for name in names:
            if (path := checkout() / f"configs/ablations/{name}.yaml").is_file():
                return [baseline.recipe, path]
        raise UserError(f"--overlay {self.overlay}: no configs/ablations/{self.overlay}.yaml")

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
        heads, shape = layer.get("key_value_heads"), layer.get("tiny_config")
        if heads is None:
            return None
        if shape is None:
            from transformers import AutoConfig

            base, revision = layer["model_name_or_path"], layer.get("model_revision")
            shape = AutoConfig.from_pretrained(base, revision=revision).to_dict()
        queries, native = shape["num_attention_heads"], shape["num_key_value_heads"]
        if heads == native:
            return f"the model has {native} key-value heads already"
        if not shareable(queries, native, heads):
            return f"{queries} query heads and {native} key-value heads cannot share {heads}"
        return None


def run_ablations(
    questions: list[str],
    model: str,
    task: str | None,
    seeds: int,
    encoder: str | None,
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
        encoder: a recipe of train_cls.py in place of `bert-base` in the grids.
        at_once: runs side by side; None for one per core on a CPU, one on a GPU.
        overlay: trains this one run, whatever the questions: stem of a YAML in configs/ablations/, or `none`.
        seed: of that one run.

    Raises:
        UserError: a name is unknown, a number is not positive, or this is not a checkout of the repository.
        SystemExit: 1 when a run failed, 128 + signal when stopped.
    """
    if seeds < 1 or (at_once is not None and at_once < 1):
        raise UserError("--seeds and --at-once take a number from 1 on")
    named = {"auto": machine.choose_model(machine.free_gpu_gib())[0] if model == "auto" else model}
    named |= {"bert-base": encoder} if encoder else {}
    if overlay:
        points = [point(task or "sentiment", named.get(model, model), overlay, seed)]
    else:
        points = grid(sweeps(questions), named, task, seeds)

    # What can run here is known before anything trains
    jobs, skipped, data = [], 0, {}
    for one in points:
        if one.task not in data:
            data[one.task] = load_data(read_task(one.task_file), allow_sample=True)
        baseline, rows = one.baseline, data[one.task]
        reason = cannot_run(baseline) or cannot_read(baseline, rows) or one.cannot_exist()
        reason = reason or finished(one.folder, baseline.identity(one.merged(), rows))
        if reason:
            print(f"skip {one.task}/{one.name}: {reason}")
            skipped += 1
        else:
            jobs.append(Job(f"{one.task}/{one.name}", one.command(), one.folder.with_name(f"{one.name}.log")))
    if len(jobs) == 1:
        jobs[0].log = None
    at_once = at_once or (1 if machine.free_gpu_gib() else os.cpu_count() or 1)
    failed = run_all(jobs, max(1, min(at_once, len(jobs))))
    print(f"ablations: {len(jobs) - len(failed)} trained, {skipped} skipped, {len(failed)} failed")
    if failed:
        print("failed: " + ", ".join(failed), file=sys.stderr)
        sys.exit(1)


def write_report(questions: list[str], task: str | None) -> None:
    """Write docs/ablations.md and its figures from what is in runs/; trains nothing.

    Args:
        questions: stems of YAMLs in configs/sweeps/; empty for all of them.
        task: in place of the sweeps' task.

    Raises:
        UserError: a question is unknown, or none has a finished run.
    """
    from fintune.results.ablation_report import write  # with matplotlib, which training does not need

    root = checkout()
    decoding = next(iter(sorted(root.glob("benchmarks/results/*-decode.json"))), None)
    write(Path("runs"), root / "docs", sweeps(questions), root / "configs/ablations", decoding, task)


def sweeps(names: list[str]) -> dict[str, dict]:
    """Name -> content of the sweep files."""
    folder = checkout() / "configs/sweeps"
    paths = [folder / f"{name}.yaml" for name in names] or sorted(folder.glob("*.yaml"))
    for path in paths:
        if not path.is_file():
            known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            raise UserError(f"{path.stem}: no such question; there are {known}")
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}


def grid(found: dict[str, dict], named: dict[str, str], task: str | None, seeds: int) -> list[Point]:
    """Every run of the sweeps once, in their order.

    Args:
        named: model in a sweep -> the one that takes its place.
    """
    points = {}
    for sweep in found.values():
        keys = sweep["parameters"]
        for model, overlay, seed in product(
            keys["model"]["values"], keys["overlay"]["values"], keys["seed"]["values"][:seeds]
        ):
            one = point(task or keys["task"]["value"], named.get(model, model), overlay, seed)
            points[one.folder] = one
    return list(points.values())


def point(task: str, model: str, overlay: str, seed: int) -> Point:
    """A run of the grid, without a seed for a model that has none."""
    linear = Point(task, model, NONE, None).baseline.script == "train_linear.py"
    return Point(task, model, overlay, None if linear else seed)
