"""The ladder: every baseline and model that this machine can run, from the majority class to the paper's Qwen3-8B.

    python baselines.py [sentiment topic ...] [--encoder folder]

A recipe goes to the script that reads its keys. Finished runs are skipped, and so is what this machine cannot run,
each with the reason; a run that fails does not stop the others. Exit code 1 when one failed.
"""

import argparse
import json
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from fintune import machine
from fintune.data import TaskData, load_data
from fintune.errors import UserError, run
from fintune.recipe import read_layer
from fintune.task import TASK_KEYS, make_task
from fintune.tiny import TINY

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

ROOT = Path(__file__).parent
SFT = ("tiny", "qwen3-0.6b", "qwen3-8b")  # of configs/, beside all of configs/baselines/
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass
class Rung:
    """One recipe, and what the ladder needs to know of it.

    Attributes:
        model: name or folder of what is downloaded or read; None for a linear model, `tiny` for what is built.
    """

    recipe: Path
    script: str
    model: str | None
    revision: str | None
    min_gpu_gib: float

    @property
    def name(self) -> str:
        zero_shot = self.script == "evaluate.py"
        return f"{Path(self.model).name.lower()}-zero-shot" if zero_shot else self.recipe.stem

    @classmethod
    def of(cls, recipe: Path) -> "Rung":
        keys = read_layer(recipe)
        if "linear_model" in keys:
            script = "train_linear.py"
        elif "early_stopping_patience" in keys:
            script = "train_cls.py"
        else:
            script = "train_sft.py"
        model, revision = keys.get("model_name_or_path"), keys.get("model_revision")
        return cls(recipe, script, model, revision, float(keys.get("min_gpu_gib") or 0))


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
        layer = read_layer(path)
        task = make_task({key: value for key, value in layer.items() if key in TASK_KEYS}, str(path))
        data = load_data(task, allow_sample=True)
        for rung in rungs:
            reason = reasons[rung.name] or cannot_read(rung, data) or finished(rung, task.task, data)
            if reason:
                print(f"skip {task.task}/{rung.name}: {reason}")
                skipped += 1
            else:
                planned.append((task.task, path, rung))

    failed = [f"{task}/{rung.name}" for task, path, rung in planned if not train(task, path, rung)]
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


def cannot_run(rung: Rung) -> str | None:
    """Why this machine cannot run a rung: memory first, then the weights; None when it can."""
    free = machine.free_gpu_gib()
    if free < rung.min_gpu_gib:
        found = f"{free:.1f} GiB free" if free else "none"
        return f"needs {rung.min_gpu_gib:g} GiB of GPU memory, this machine has {found}"
    if rung.model in (None, TINY):
        return None
    if Path(rung.model).is_dir():
        return None if any(Path(rung.model).glob("*.safetensors")) else f"no safetensors in {rung.model}"
    online = machine.hub_reachable()
    try:
        hf_hub_download(rung.model, "config.json", revision=rung.revision, local_files_only=not online)
        if not online and not any(_cached(rung, name) for name in WEIGHTS):
            return f"the Hub is out of reach and {rung.model}'s weights are not in its cache"
    except GatedRepoError:
        return f"{rung.model} is gated: ask for access on https://huggingface.co/{rung.model} and set HF_TOKEN"
    except LocalEntryNotFoundError:
        return f"the Hub is out of reach and {rung.model} is not in its cache"
    except HfHubHTTPError as error:
        return f"the Hub does not give {rung.model} ({type(error).__name__})"
    return None


def _cached(rung: Rung, name: str) -> bool:
    try:
        return bool(hf_hub_download(rung.model, name, revision=rung.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return False


def cannot_read(rung: Rung, data: TaskData) -> str | None:
    """Why a rung has no rows: models of the Hub are never trained on invented ones."""
    if data.source == "sample" and not (rung.model in (None, TINY) or Path(rung.model).is_dir()):
        return "the task's data is out of reach; connect, or set FINTUNE_DATA"
    return None


def finished(rung: Rung, task: str, data: TaskData) -> str | None:
    """Says so when the rung's folder holds a result of this recipe on these very rows."""
    folder = Path("runs", task, rung.name)
    try:
        result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if rung.script != "evaluate.py" and not same_recipe(folder, rung):
            return None
    except (FileNotFoundError, ValueError):
        return None
    if result.get("data", {}).get("sha256") != data.sha256 or "test" not in result:
        return None
    return f"finished, accuracy {result['test']['accuracy']:.4f}; delete {folder} to train it again"


def same_recipe(folder: Path, rung: Rung) -> bool:
    """Whether a finished run was trained as the rung says; paths and what `train` adds may differ."""
    apart = {*TASK_KEYS, "chat_template_path", "gradient_checkpointing"}
    ran = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    now = read_layer(rung.recipe)
    return {key: ran[key] for key in ran.keys() - apart} == {key: now[key] for key in now.keys() - apart}


def train(task: str, path: Path, rung: Rung) -> bool:
    """Run a rung's script; False when it failed.

    A run that a signal stopped ends the ladder with the same exit code.
    """
    if rung.script == "evaluate.py":
        words = [rung.model, "--task", str(path), "--model_revision", rung.revision, "--dtype", "bfloat16"]
    else:
        words = [str(path), str(rung.recipe)]
    large = rung.script == "train_sft.py" and rung.min_gpu_gib >= 16  # 7 billion parameters and more
    if large and machine.free_gpu_gib() < machine.LADDER[0][0]:
        words += ["--gradient_checkpointing", "true"]
    command = [sys.executable, str(ROOT / rung.script), *words]
    print(f"\nrun {task}/{rung.name}: {' '.join(command[1:])}", flush=True)
    child = subprocess.Popen(command)
    # a terminal's Ctrl-C reaches the child by itself; both wait here until it has saved its checkpoint
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda signum, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda signum, frame: child.send_signal(signum)),
    }
    try:
        code = child.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    signum = code - 128 if code > 128 else -code
    if signum in (signal.SIGINT, signal.SIGTERM):
        print(f"stopped in {task}/{rung.name}; the same command skips what is finished", file=sys.stderr)
        sys.exit(128 + signum)
    if code:
        print(f"failed {task}/{rung.name}: exit code {code}, its message stands above; going on", flush=True)
    return code == 0


if __name__ == "__main__":
    run(main)
