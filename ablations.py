"""The paper's open questions: each is a grid of configs/sweeps/, trained here or by W&B, and answered in docs/.

    python ablations.py [neftune rank ...] [--model tiny] [--seeds 5]      # make ablations MODEL=tiny SEEDS=5
    python ablations.py --overlay rank-16 --seed 42 --model tiny           # one run, as `wandb agent` calls it
    python ablations.py --report                                           # docs/ablations.md from what is in runs/

Runs land in runs/<task>/ablations/. Finished ones are skipped; what was stopped goes on where it was.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml
from fintune.kv_heads import shareable
from fintune.ladder import Rung, Work, cannot_read, cannot_run, finished, run_all

from fintune import ablation_report, machine
from fintune.data import load_data
from fintune.errors import UserError, run
from fintune.recipe import layered, read_layer, read_task

ROOT = Path(__file__).parent
NONE = "none"  # the overlay that is none: the recipe as it stands


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Attributes:
        model: stem of a recipe in configs/ or configs/baselines/, or a recipe's path.
        seed: None for a linear model, which has none.
    """

    task: str
    model: str
    overlay: str
    seed: int | None

    @property
    def recipe(self) -> Path:
        places = (ROOT / f"configs/{self.model}.yaml", ROOT / f"configs/baselines/{self.model}.yaml", Path(self.model))
        for place in places:
            if place.is_file():
                return place
        raise UserError(f"--model {self.model}: no such recipe in configs/ or configs/baselines/, nor a file")

    @property
    def layers(self) -> list[Path]:
        """The model's recipe and the overlay; encoders have one of their own where it is there."""
        if self.overlay == NONE:
            return [self.recipe]
        names = [f"{self.overlay}-encoder", self.overlay]
        if Rung.of(self.recipe).script != "train_cls.py":
            names = names[1:]
        for name in names:
            if (path := ROOT / f"configs/ablations/{name}.yaml").is_file():
                return [self.recipe, path]
        raise UserError(f"--overlay {self.overlay}: no configs/ablations/{self.overlay}.yaml")

    @property
    def name(self) -> str:
        seed = [] if self.seed is None else [f"seed{self.seed}"]
        return "-".join([*(path.stem for path in self.layers), *seed])

    @property
    def folder(self) -> Path:
        return Path("runs", self.task, "ablations", self.name)

    def command(self) -> list[str]:
        words = [str(ROOT / f"data/{self.task}.yaml"), *map(str, self.layers), "--output_dir", str(self.folder)]
        if self.seed is not None:
            words += ["--seed", str(self.seed)]
        rung = Rung.of(self.recipe)
        return [sys.executable, str(ROOT / rung.script), *words, *rung.flags(self.folder)]

    def merged(self) -> dict:
        """The keys that the run states, as its recipe.yaml will hold them."""
        layer = {}
        for path in (ROOT / f"data/{self.task}.yaml", *self.layers):
            layer = layered(layer, read_layer(path))
        return layer | ({} if self.seed is None else {"seed": self.seed})

    def unfit(self) -> str | None:
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
            return f"{native} key-value heads are what the model has"
        return None if shareable(queries, native, heads) else f"{queries} and {native} heads cannot be shared out so"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", help="names of YAMLs in configs/sweeps/; all of them without")
    parser.add_argument("--model", default="auto", help="in place of `auto` in the grids; auto looks at the machine")
    parser.add_argument("--task", help="in place of the grids' task")
    parser.add_argument("--seeds", type=int, default=1, help="of a grid, at most")
    parser.add_argument("--encoder", help="a recipe of train_cls.py in place of bert-base, such as configs/x.yaml")
    parser.add_argument("--at-once", type=int, help="runs side by side; the cores on a CPU, 1 on a GPU without")
    parser.add_argument("--overlay", help="one run: stem of a YAML in configs/ablations/, or none")
    parser.add_argument("--seed", type=int, default=42, help="of the one run")
    parser.add_argument("--report", action="store_true", help="train nothing, write docs/ablations.md from runs/")
    args = parser.parse_args(argv)
    if args.seeds < 1 or (args.at_once is not None and args.at_once < 1):
        raise UserError("--seeds and --at-once take a number from 1 on")
    if args.report:
        decoding = next(iter(sorted(ROOT.glob("benchmarks/results/*-decode.json"))), None)
        ablation_report.write(Path("runs"), ROOT / "docs", sweeps(args.questions), decoding, args.task)
        return
    named = {"auto": machine.choose_model(machine.free_gpu_gib())[0] if args.model == "auto" else args.model}
    named |= {"bert-base": args.encoder} if args.encoder else {}
    if args.overlay:
        points = [point(args.task or "sentiment", named.get(args.model, args.model), args.overlay, args.seed)]
    else:
        points = grid(sweeps(args.questions), named, args.task, args.seeds)

    # What can run here is known before anything trains
    work, skipped, data = [], 0, {}
    for one in points:
        if one.task not in data:
            data[one.task] = load_data(read_task(ROOT / f"data/{one.task}.yaml"), allow_sample=True)
        rung, rows = Rung.of(one.recipe), data[one.task]
        reason = cannot_run(rung) or cannot_read(rung, rows) or one.unfit()
        reason = reason or finished(one.folder, one.merged(), rows)
        if reason:
            print(f"skip {one.task}/{one.name}: {reason}")
            skipped += 1
        else:
            work.append(Work(f"{one.task}/{one.name}", one.command(), one.folder.with_name(f"{one.name}.log")))
    at_once = args.at_once or (1 if machine.free_gpu_gib() else os.cpu_count() or 1)
    if len(work) == 1:
        work[0].log = None
    failed = run_all(work, min(at_once, len(work)) or 1)
    print(f"ablations: {len(work) - len(failed)} trained, {skipped} skipped, {len(failed)} failed")
    if failed:
        raise UserError("failed: " + ", ".join(failed))


def sweeps(names: list[str]) -> dict[str, dict]:
    """Name -> content of the sweep files."""
    paths = [ROOT / f"configs/sweeps/{name}.yaml" for name in names] or sorted(ROOT.glob("configs/sweeps/*.yaml"))
    for path in paths:
        if not path.is_file():
            known = ", ".join(sorted(path.stem for path in ROOT.glob("configs/sweeps/*.yaml")))
            raise UserError(f"{path.stem}: no such question; there are {known}")
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}


def grid(found: dict[str, dict], named: dict[str, str], task: str | None, seeds: int) -> list[Point]:
    """Every run of the sweeps once, in their order."""
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
    linear = Rung.of(Point(task, model, NONE, None).recipe).script == "train_linear.py"
    return Point(task, model, overlay, None if linear else seed)


if __name__ == "__main__":
    run(main)
