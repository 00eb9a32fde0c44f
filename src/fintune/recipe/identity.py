"""What makes two runs the same: the one answer for resuming, for skipping finished runs and for pooling seeds.

A run's identity is a flat mapping of what can change its result. It is written into metrics.json and into every
checkpoint's manifest. Two runs are the same where it is equal, and seeds of one recipe where only `seed` differs.
"""

import math
from pathlib import Path

from fintune.errors import UserError
from fintune.files import sha256
from fintune.recipe.task import TASK_KEYS, Task

# Flags that say where a run goes and how it is shown, not what it is: they stay out of recipe.yaml too
PLACE_AND_DISPLAY = ("output_dir", "resume_from_checkpoint", "disable_tqdm", "report_to", "use_cpu")
# Keys that change no weight and no score: how much memory, how much is logged or kept, what is refused or set beside
SAME_RESULT = (
    "activation_checkpointing",
    "dataloader_num_workers",
    "gradient_checkpointing",
    "logging_steps",
    "logging_strategy",
    "min_gpu_gib",
    "paper_row",
    "run_name",
    "save_total_limit",
)
# Of a task: what can change a result beyond the bytes of its files, which the data's hash covers
TASK_IDENTITY = ("task", "text_column", "label_column", "train_share", "class_weights")


def identity(overrides: dict, task: Task, data_sha256: str, weights: str | None = None) -> dict:
    """What a run of these keys on these rows is.

    Args:
        overrides: every key that a layer or a flag states.
        data_sha256: hash of the task's rows and their split.
        weights: what the model's weights come from in place of the Hub.

    Returns:
        Keys in alphabetical order, with values that survive a trip through JSON.
    """
    found = {
        key: plain(value)
        for key, value in overrides.items()
        if key not in (*PLACE_AND_DISPLAY, *SAME_RESULT, *TASK_KEYS, "chat_template_path", "wheel")
    }
    found |= {key: plain(getattr(task, key)) for key in TASK_IDENTITY}
    found["labels"] = [list(label) for label in task.labels.items()]  # a list: their order is that of the label ids
    found["encodings"] = [file.encoding for _, file in sorted(task.files.items())]
    found["data"] = data_sha256
    if task.soft_labels:
        found["soft_labels"] = [_file_hash(task.soft_labels.path), task.soft_labels.prefix]
    if task.exclude:
        found["exclude"] = _file_hash(task.exclude)
    if weights:
        found["weights"] = weights
    if overrides.get("script") in (None, "train_sft.py", "evaluate.py"):  # the other scripts read no prompt
        found["template"] = _file_hash(task.template)
    if chat_template := overrides.get("chat_template_path"):
        found["chat_template"] = _file_hash(chat_template)
    return dict(sorted(found.items()))


def differences(one: dict, other: dict, besides: tuple[str, ...] = ()) -> list[str]:
    """Keys in which two identities differ, in alphabetical order."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key) and key not in besides)


def plain(value: object) -> object:
    """As JSON holds it; `3e-4` is a string to YAML and a number as a flag: the same value either way."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else str(value)


def _file_hash(path: str) -> str:
    try:
        return sha256(Path(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix its path in the recipe") from error
