"""Every baseline and model that this machine can run, from the majority class to the paper's Qwen3-8B.

What `fintune baselines` does. A recipe goes to the script that it names.
"""

import sys
from dataclasses import replace
from pathlib import Path

import yaml

from fintune.data.load import load_data
from fintune.errors import UserError
from fintune.recipe.layers import TINY, merge_layers, read_layer, read_task
from fintune.results.jobs import Job, checkout, run_all
from fintune.results.suite import Baseline, cannot_read, cannot_run, finished

SFT = ("tiny", "smollm2-135m", "qwen3-0.6b", "qwen3-8b")  # of configs/, besides all of configs/baselines/


def run_baselines(tasks: list[str], encoder: Path | None) -> None:
    """Train and score what is not finished yet, one run after the other.

    Finished runs are skipped, and so is what this machine cannot run, each with the reason. An interrupted run is
    resumed. A run that fails does not stop the others; the exit code is then 1.

    Args:
        tasks: names of YAMLs under data/.
        encoder: folder of a local encoder, as one more baseline.

    Raises:
        UserError: a task or the encoder cannot be read, or this is not a checkout of the repository.
        SystemExit: 1 when a run failed, 128 + signal when stopped.
    """
    root = checkout()
    baselines = suite(encoder)
    reasons = {baseline.name: cannot_run(baseline) for baseline in baselines}  # known before anything trains
    jobs, skipped = [], 0
    for name in tasks:
        path = root / "data" / f"{name}.yaml"
        task, layer = read_task(path), read_layer(path)
        data = load_data(task, allow_sample=True)
        for baseline in baselines:
            folder = Path("runs", task.task, baseline.name)
            expected = baseline.identity(merge_layers(layer, stated(baseline)), data)
            reason = reasons[baseline.name] or cannot_read(baseline, data) or finished(folder, expected)
            if reason:
                print(f"skip {task.task}/{baseline.name}: {reason}")
                skipped += 1
            else:
                jobs.append(Job(f"{task.task}/{baseline.name}", command(path, baseline, folder)))

    failed = run_all(jobs)
    print(f"baselines: {len(jobs) - len(failed)} trained, {skipped} skipped, {len(failed)} failed")
    if failed:
        print("failed: " + ", ".join(failed), file=sys.stderr)
        sys.exit(1)


def suite(encoder: Path | None) -> list[Baseline]:
    """All baselines, the cheap ones first."""
    root = checkout()
    recipes = [*sorted(root.glob("configs/baselines/*.yaml")), *(root / f"configs/{name}.yaml" for name in SFT)]
    if encoder:
        recipes.append(encoder_recipe(encoder))
    baselines = [Baseline.of(recipe) for recipe in recipes]
    if encoder and len({baseline.name for baseline in baselines}) < len(baselines):
        raise UserError(f"--encoder {encoder}: a recipe is called {baselines[-1].name}; link to it by another name")
    tuned = [baseline for baseline in baselines if baseline.name in SFT and baseline.model != TINY]
    baselines += [replace(baseline, script="evaluate.py") for baseline in tuned]
    order = ("train_linear.py", "train_cls.py", "evaluate.py", "train_sft.py")
    return sorted(baselines, key=lambda baseline: (order.index(baseline.script), baseline.min_gpu_gib))


def encoder_recipe(folder: Path) -> Path:
    """Write a recipe for a local encoder, named after its folder: BERT-base's settings on other weights."""
    if not (folder / "config.json").is_file():
        raise UserError(f"--encoder {folder}: no config.json there; give a folder that holds a model")
    recipe = Path("runs", "encoders", f"{folder.absolute().name}.yaml")
    layer = {
        "extends": str(checkout() / "configs/baselines/bert-base.yaml"),
        "model_name_or_path": str(folder.absolute()),
        "model_revision": None,
        "paper_row": None,
    }
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump(layer, sort_keys=False), encoding="utf-8")
    return recipe


def stated(baseline: Baseline) -> dict:
    """The keys that a baseline states beyond its task's."""
    scoring = {"script": "evaluate.py", "bf16": False} if baseline.zero_shot else {}  # bf16 is of training
    return read_layer(baseline.recipe) | scoring


def command(path: Path, baseline: Baseline, folder: Path) -> list[str]:
    """The command line of a baseline's run.

    Args:
        path: the task's YAML.
    """
    if baseline.zero_shot:
        words = [str(baseline.recipe), "--task", str(path)]
    else:
        words = [str(path), str(baseline.recipe), *baseline.flags(folder)]
    return [sys.executable, str(checkout() / baseline.script), *words]
