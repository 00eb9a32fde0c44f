"""The suite of baselines: what must be known of each before it trains: can it run here, and is it finished?"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, LocalEntryNotFoundError

from fintune import machine
from fintune.data.load import TaskData
from fintune.errors import UserError
from fintune.files import finish_move, read_json
from fintune.model.wheel import find_model, weights_of
from fintune.recipe.identity import identity
from fintune.recipe.layers import TINY, read_layer
from fintune.recipe.task import TASK_KEYS, make_task
from fintune.training.checkpoints import unfinished

TRAINING_SCRIPTS = ("train_linear.py", "train_cls.py", "train_sft.py")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
DEFAULT_SEED = 42  # of transformers' TrainingArguments


@dataclass
class Baseline:
    """One recipe and the script that reads it.

    Attributes:
        script: trains the recipe; evaluate.py scores the recipe's model without training it.
        model: name or folder of what is downloaded or read; None where there is none, `tiny` for what is built.
    """

    recipe: Path
    script: str
    model: str | None
    revision: str | None
    min_gpu_gib: float

    @property
    def zero_shot(self) -> bool:
        return self.script == "evaluate.py"

    @property
    def name(self) -> str:
        return f"{Path(self.model).name.lower()}-zero-shot" if self.zero_shot else self.recipe.stem

    def flags(self, folder: Path) -> list[str]:
        """Flags of a training beyond its recipe, for this machine and for what its folder already holds."""
        if self.script == "train_linear.py":
            return []
        # a finished run is trained again when its recipe or rows have changed: its checkpoints are those of the old
        flags = [
            "--resume_from_checkpoint",
            "true" if unfinished(folder) else "false",
            *machine.autocast_flags(self.recipe.stem),
        ]
        large = self.script == "train_sft.py" and self.min_gpu_gib >= 16  # 7 billion parameters and more
        if large and machine.free_gpu_gib() < machine.GPU_TIERS[0][0]:
            flags += ["--gradient_checkpointing", "true"]
        return flags

    def identity(self, layer: dict, data: TaskData) -> dict:
        """The identity that its run on these rows will have.

        Args:
            layer: keys of the task, the recipe and its overlays, merged.
        """
        seed = None if self.script == "train_linear.py" else layer.get("seed", DEFAULT_SEED)
        task = make_task({key: layer[key] for key in TASK_KEYS if key in layer}, str(self.recipe))
        weights = weights_of(self.model, self.revision, layer.get("wheel")) if self.model else None
        autocast = not self.zero_shot and machine.autocast_flags(self.recipe.stem)
        return identity(layer | {"seed": seed} | ({"bf16": True} if autocast else {}), task, data.sha256, weights)

    @classmethod
    def of(cls, recipe: Path) -> "Baseline":
        """Read a baseline from its recipe file.

        Raises:
            UserError: it cannot be read, or names no training script.
        """
        keys = read_layer(recipe)
        if keys.get("script") not in TRAINING_SCRIPTS:
            scripts = ", ".join(TRAINING_SCRIPTS)
            raise UserError(f"{recipe}: `script` is {keys.get('script')!r}; name the one that trains it: {scripts}")
        model, revision = keys.get("model_name_or_path"), keys.get("model_revision")
        return cls(recipe, keys["script"], model, revision, float(keys.get("min_gpu_gib") or 0))


def cannot_run(baseline: Baseline) -> str | None:
    """Why this machine cannot run a baseline: memory first, then the weights; None when it can."""
    free, model = machine.free_gpu_gib(), baseline.model
    if free < baseline.min_gpu_gib:
        found = f"{free:.1f} GiB free" if free else "none"
        return f"needs {baseline.min_gpu_gib:g} GiB of GPU memory, this machine has {found}"
    if model in (None, TINY):
        return None
    if Path(model).is_absolute() and not Path(model).is_dir():
        return f"no such folder: {model}"
    if Path(model).is_dir():
        return None if any(Path(model).glob("*.safetensors")) else f"no safetensors in {model}"
    wheel = read_layer(baseline.recipe).get("wheel")
    if weights_of(model, baseline.revision, wheel):
        try:
            find_model(model, baseline.revision, wheel)
        except UserError as error:
            return str(error)
        return None
    online = machine.hub_reachable()
    try:
        hf_hub_download(model, "config.json", revision=baseline.revision, local_files_only=not online)
        if not online and not any(_cached(baseline, name) for name in WEIGHTS):
            return f"the Hub cannot be reached and {model}'s weights are not in its cache"
    except GatedRepoError:
        return f"{model} is gated: ask for access on https://huggingface.co/{model} and set HF_TOKEN"
    except HfHubHTTPError as error:
        return f"the Hub does not serve {model} ({type(error).__name__})"
    except (LocalEntryNotFoundError, HTTPError):  # the latter from a proxy that refuses everything
        return f"the Hub cannot be reached and {model} is not in its cache"
    return None


def _cached(baseline: Baseline, name: str) -> bool:
    try:
        return bool(hf_hub_download(baseline.model, name, revision=baseline.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return False


def cannot_read(baseline: Baseline, data: TaskData) -> str | None:
    """Why a baseline has no rows: models from the Hub are never trained on invented ones."""
    if data.source == "sample" and not (baseline.model in (None, TINY) or Path(baseline.model).is_dir()):
        return "the task's data cannot be reached; connect, or set FINTUNE_DATA"
    return None


def finished(folder: Path, expected: dict) -> str | None:
    """A message when a folder holds the result of a run with the expected identity; None when it must run."""
    finish_move(folder)
    try:
        result = read_json(folder / "metrics.json")
        found, accuracy = result["identity"], result["test"]["accuracy"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if found != expected:
        return None
    return f"finished, accuracy {accuracy:.4f}; delete {folder} to train it again"
