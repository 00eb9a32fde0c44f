"""What a machine can train, and trainings one after the other or side by side: for the ladder and the ablations."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, LocalEntryNotFoundError

from fintune import machine
from fintune.data.load import TaskData
from fintune.model.tiny import TINY
from fintune.recipe.layers import read_layer
from fintune.recipe.task import TASK_KEYS, make_task

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

    def flags(self, folder: Path) -> list[str]:
        """What a training is told beyond its recipe, on this machine and after what is in its folder."""
        if self.script == "train_linear.py":
            return []
        result = folder / "metrics.json"
        ended = result.stat().st_mtime if result.exists() else 0.0
        stopped = any(path.stat().st_mtime > ended for path in folder.glob("checkpoint-*/manifest.json"))
        # a result that is trained again is of another recipe or other rows, and so are its checkpoints
        flags = ["--resume_from_checkpoint", "true" if stopped else "false"]
        large = self.script == "train_sft.py" and self.min_gpu_gib >= 16  # 7 billion parameters and more
        if large and machine.free_gpu_gib() < machine.LADDER[0][0]:
            flags += ["--gradient_checkpointing", "true"]
        return flags

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
    except HfHubHTTPError as error:
        return f"the Hub does not give {rung.model} ({type(error).__name__})"
    except (LocalEntryNotFoundError, HTTPError):  # the latter of a proxy that lets nothing through
        return f"the Hub is out of reach and {rung.model} is not in its cache"
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


def finished(folder: Path, layer: dict, data: TaskData) -> str | None:
    """Says so when a folder holds a result of this recipe on these very rows."""
    try:
        result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if layer and not same_recipe(folder, layer):
            return None
    except (FileNotFoundError, ValueError):
        return None
    if result.get("data", {}).get("sha256") != data.sha256 or "test" not in result:
        return None
    return f"finished, accuracy {result['test']['accuracy']:.4f}; delete {folder} to train it again"


def same_recipe(folder: Path, layer: dict) -> bool:
    """Whether a finished run was trained as the layers say; paths and what a script adds by itself may differ."""
    apart = {*TASK_KEYS, "chat_template_path", "gradient_checkpointing"}
    ran = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    tasks = [make_task({key: keys[key] for key in TASK_KEYS if key in keys}, str(folder)) for keys in (ran, layer)]
    before, now = (
        (task.labels, task.class_weights, task.train_share, task.text_column, task.label_column) for task in tasks
    )
    prompts = {"template": "template.jinja", "chat_template_path": "chat_template.jinja"}
    if "chat_template_path" in layer and any(
        (folder / name).read_text(encoding="utf-8") != Path(layer[key]).read_text(encoding="utf-8")
        for key, name in prompts.items()
    ):
        return False
    same = {key: ran[key] for key in ran.keys() - apart} == {key: layer[key] for key in layer.keys() - apart}
    return same and before == now


@dataclass
class Work:
    """A run that is to be trained.

    Attributes:
        name: how it is called in messages.
        log: file that takes its output, where several run side by side; None shows it.
    """

    name: str
    command: list[str]
    log: Path | None = None


def run_all(work: list[Work], at_once: int = 1) -> list[str]:
    """Run commands, so many side by side, each on its share of the cores; a failure does not stop the others.

    SIGINT, SIGTERM and SIGHUP let each save its checkpoint, and end this process with 128 + signal.

    Returns:
        Names of those that failed.
    """
    waiting, running, failed, came = list(work), {}, [], []
    environment = dict(os.environ)
    if at_once > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // at_once))

    def stop(signum, frame):
        if not came:  # a second one would stop a child in the middle of its save
            for child in running:
                child.send_signal(signal.SIGTERM if signum == signal.SIGHUP else signum)
        came.append(signum)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, stop) for signum in signals if signal.getsignal(signum) != signal.SIG_IGN}
    started = time.monotonic()
    try:
        while running or (waiting and not came):
            while waiting and len(running) < at_once and not came:
                one = waiting.pop(0)
                running[_start(one, environment)] = one
            time.sleep(0.1)
            for child in [child for child in running if child.poll() is not None]:
                one = running.pop(child)
                if child.returncode and not came:
                    failed.append(one.name)
                    where = f"see {one.log}" if one.log else "its message stands above"
                    print(f"failed {one.name}: exit code {child.returncode}, {where}; going on", flush=True)
                elif one.log and not came:
                    done = len(work) - len(waiting) - len(running)
                    left = (time.monotonic() - started) / done * (len(work) - done) / 60
                    print(f"done {one.name}: {done} of {len(work)}, about {left:.0f} min left", flush=True)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if came:
        print("stopped; the same command skips what is finished", file=sys.stderr)
        sys.exit(128 + came[0])
    return failed


def _start(one: Work, environment: dict) -> subprocess.Popen:
    if one.log is None:
        print(f"\nrun {one.name}: {' '.join(one.command[1:])}", flush=True)
        return subprocess.Popen(one.command, env=environment, start_new_session=True)
    one.log.parent.mkdir(parents=True, exist_ok=True)
    with one.log.open("w") as log:
        return subprocess.Popen(
            one.command,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # signals come from `run_all` alone
        )
