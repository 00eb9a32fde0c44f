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
    under = read_layer(_in_its_tree(path, str(parent)), (*below, path.resolve())) if parent else {}
    folder = path.resolve().parent
    if "model_name_or_path" in layer:
        layer["model_name_or_path"] = absolute_model(layer["model_name_or_path"], folder)
    return merge_layers(under, absolute_paths(layer, folder))


def absolute_model(name: object, folder: Path) -> object:
    """A `model_name_or_path` as seen from anywhere, where it is a folder's path from `folder`; else as it is."""
    if not isinstance(name, str) or name == TINY or not name.strip() or "\0" in name:
        return name
    path = folder / name
    return str(path.resolve()) if name.startswith(("./", "../")) or path.is_dir() else name


def _in_its_tree(path: Path, parent: str) -> Path:
    """The file that `extends` names: a YAML beside the recipe, below it, or in its project's or fintune's `configs/`.

    A recipe of somebody else must not have other files of this machine read and quoted in messages.

    Raises:
        UserError: it lies elsewhere.
    """
    folder, found = path.resolve().parent, path.parent / parent
    configs = [Path(__file__).parents[3] / "configs", *(above / "configs" for above in (folder, *folder.parents))]
    try:
        place = found.resolve()
    except (OSError, ValueError, RuntimeError):  # NUL, a loop of links: said where it is read
        return found
    tree = (folder, *(each.resolve() for each in configs))
    if found.suffix not in (".yaml", ".yml") or not any(map(place.is_relative_to, tree)):
        raise UserError(
            f"{path}: `extends` is {parent!r}; it takes a .yaml beside the recipe, below it or in its project's "
            "configs/; copy the file there"
        )
    return found


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
