"""YAML layers of a recipe, merged left to right; a layer that says `extends: other.yaml` starts from that one."""

from pathlib import Path

import yaml

from fintune.errors import UserError
from fintune.recipe.task import TASK_KEYS, Task, absolute_paths, make_task

TINY = "tiny"  # the model_name_or_path that is built instead of loaded
LENGTH = ("num_train_epochs", "max_steps")  # either says how long a run is
LAYER_BYTES = 2**20  # of one YAML file; PyYAML needs minutes for 10 MiB


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases: ten lines of them can stand for gigabytes, or for themselves."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: an alias (*); write the value out")
        return super().compose_node(parent, index)


def read_layer(path: Path, below: tuple[Path, ...] = ()) -> dict:
    """A layer on top of the one that its `extends` names, paths made absolute.

    Raises:
        UserError: the file is missing, too large, not YAML or not a mapping, or extends itself.
    """
    content = None
    try:
        if path.is_file():
            with path.open("rb") as file:
                content = file.read(LAYER_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: NUL in a path
        raise UserError(f"{path}: cannot be read ({error}); see data/ for tasks and configs/ for models") from error
    if content is None:
        raise UserError(f"{path}: no such recipe file; see data/ for tasks and configs/ for models")
    if len(content) > LAYER_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes, a recipe has at most {LAYER_BYTES:,}; is it one?")
    if path.resolve() in below:
        raise UserError(f"{path}: `extends` comes back to it; a recipe cannot extend itself")
    try:
        layer = yaml.load(content.decode("utf-8"), Loader=_Loader)
    except Exception as error:  # PyYAML raises ValueError, IndexError, KeyError for values such as 2020-02-30
        raise UserError(f"{path}: not valid YAML: {str(error) or type(error).__name__}") from error
    if not isinstance(layer, dict) or not all(isinstance(key, str) for key in layer):
        raise UserError(f"{path}: holds {type(layer).__name__}, not a mapping of keys to values")
    parent = layer.pop("extends", None)
    under = read_layer(path.parent / str(parent), (*below, path.resolve())) if parent else {}
    return merge_layers(under, absolute_paths(layer, path.resolve().parent))


def merge_layers(below: dict, layer: dict) -> dict:
    """A layer on top of others; a length that it states holds for few rows too, whatever `min_steps` is below."""
    if layer.keys() & set(LENGTH):
        below = {key: value for key, value in below.items() if key != "min_steps"}
    return below | layer


def read_layers(paths: list[Path]) -> dict:
    """Several files merged left to right."""
    merged: dict = {}
    for path in paths:
        merged = merge_layers(merged, read_layer(path))
    return merged


def read_task(path: Path) -> Task:
    """The task of a YAML file, whatever else it states."""
    return make_task({key: value for key, value in read_layer(path).items() if key in TASK_KEYS}, str(path))
