"""The ladder: every baseline and model that this machine can run, from the majority class to the paper's Qwen3-8B.

    python baselines.py [sentiment topic ...] [--encoder folder]

A recipe goes to the script that reads its keys. Finished runs are skipped, and so is what this machine cannot run,
each with the reason; what was stopped goes on where it was; a run that fails does not stop the others. Exit code 1
when one failed.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import yaml
from fintune.ladder import Rung, Work, cannot_read, cannot_run, finished, run_all
from fintune.tiny import TINY

from fintune.data import load_data
from fintune.errors import UserError, run
from fintune.recipe import layered, read_layer, read_task

ROOT = Path(__file__).parent
SFT = ("tiny", "qwen3-0.6b", "qwen3-8b")  # of configs/, beside all of configs/baselines/


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["sentiment", "topic"], help="names of YAMLs under data/")
    parser.add_argument("--encoder", type=Path, help="a local encoder's folder, as one more baseline")
    args = parser.parse_args(argv)

    # What can run here is known before anything trains
    rungs = ladder(args.encoder)
    reasons = {rung.name: cannot_run(rung) for rung in rungs}
    planned, skipped = [], 0
    for name in args.tasks:
        path = ROOT / "data" / f"{name}.yaml"
        task, layer = read_task(path), read_layer(path)
        data = load_data(task, allow_sample=True)
        for rung in rungs:
            recipe = {} if rung.script == "evaluate.py" else layered(layer, read_layer(rung.recipe))
            folder = Path("runs", task.task, rung.name)
            reason = reasons[rung.name] or cannot_read(rung, data) or finished(folder, recipe, data)
            if reason:
                print(f"skip {task.task}/{rung.name}: {reason}")
                skipped += 1
            else:
                planned.append(Work(f"{task.task}/{rung.name}", command(path, rung, folder)))

    failed = run_all(planned)
    print(f"ladder: {len(planned) - len(failed)} trained, {skipped} skipped, {len(failed)} failed")
    if failed:
        print("failed: " + ", ".join(failed), file=sys.stderr)
        sys.exit(1)


def ladder(encoder: Path | None) -> list[Rung]:
    """All rungs, the cheap ones first."""
    recipes = [*sorted(ROOT.glob("configs/baselines/*.yaml")), *(ROOT / f"configs/{name}.yaml" for name in SFT)]
    if encoder:
        recipes.append(encoder_recipe(encoder))
    rungs = [Rung.of(recipe) for recipe in recipes]
    if encoder and len({rung.name for rung in rungs}) < len(rungs):
        raise UserError(f"--encoder {encoder}: a recipe is called {rungs[-1].name}; link to it by another name")
    rungs += [replace(rung, script="evaluate.py") for rung in rungs if rung.name in SFT and rung.model != TINY]
    order = ("train_linear.py", "train_cls.py", "evaluate.py", "train_sft.py")
    return sorted(rungs, key=lambda rung: (order.index(rung.script), rung.min_gpu_gib))


def encoder_recipe(folder: Path) -> Path:
    """A recipe for a local encoder, named after its folder: BERT-base's settings on other weights."""
    if not (folder / "config.json").is_file():
        raise UserError(f"--encoder {folder}: no config.json there; give a folder that holds a model")
    recipe = Path("runs", "encoders", f"{folder.absolute().name}.yaml")
    layer = {
        "extends": str(ROOT / "configs/baselines/bert-base.yaml"),
        "model_name_or_path": str(folder.absolute()),
        "model_revision": None,
        "paper_row": None,
    }
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump(layer, sort_keys=False), encoding="utf-8")
    return recipe


def command(path: Path, rung: Rung, folder: Path) -> list[str]:
    """The words that run a rung's script."""
    if rung.script == "evaluate.py":
        words = [rung.model, "--task", str(path), "--model_revision", rung.revision, "--dtype", "bfloat16"]
    else:
        words = [str(path), str(rung.recipe), *rung.flags(folder)]
    return [sys.executable, str(ROOT / rung.script), *words]


if __name__ == "__main__":
    run(main)
