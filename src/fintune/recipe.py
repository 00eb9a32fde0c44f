"""A run is YAML files layered left to right, later wins, then flags with the Hugging Face names.

    data/sentiment.yaml configs/qwen3-8b.yaml configs/ablations/x.yaml --learning_rate 1e-4

A file may begin from another with `extends: other.yaml` and then states only its difference.
"""

import argparse
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fintune.errors import UserError
from fintune.task import TASK_KEYS, Task, absolute_paths, make_task, task_yaml

import yaml
from transformers import HfArgumentParser

# Flags that say where a run goes and how it is shown, not what it is: they stay out of recipe.yaml
WHERE_AND_HOW = ("output_dir", "resume_from_checkpoint", "disable_tqdm", "report_to", "use_cpu")
LAYER_BYTES = 2**20  # of one YAML; PyYAML reads 10 MiB in minutes
SECRETS = ("hub_token", "push_to_hub_token")  # a recipe is copied into every run and its log


@dataclass
class RunArguments:
    """What a recipe says beyond the arguments of transformers, TRL and PEFT."""

    batching: Literal["padded", "packed", "shared_prefix"] = field(
        default="padded", metadata={"help": "How the rows of a micro-batch share a tensor; see fintune/trainer.py."}
    )
    paper_row: str | None = field(
        default=None, metadata={"help": "Row of the paper's Table 4 that this run is set beside, such as qwen3-8b."}
    )
    min_gpu_gib: float = field(
        default=0.0, metadata={"help": "Free GPU memory the run needs; with less it is refused before any download."}
    )
    tiny_config: dict | None = field(
        default=None,
        metadata={"help": "Qwen3Config keys of the model that is built when model_name_or_path is `tiny`."},
    )
    sample_epochs: float | None = field(
        default=None, metadata={"help": "num_train_epochs where the invented sample, a few hundred rows, stands in."}
    )
    key_value_heads: int | None = field(
        default=None,
        metadata={"help": "Key-value heads the base gets before it is trained: repeated or averaged ones."},
    )
    tiny_vocab_size: int = field(default=8192, metadata={"help": "Size of the BPE vocabulary that is trained for it."})


@dataclass
class Recipe:
    """A parsed run.

    Attributes:
        task: what its data YAML says.
        args: one dataclass instance per class that was asked for, in that order.
        stated: every key that a layer or a flag stated, as it goes into `recipe.yaml`.
        name: `<model>[-<overlay>...]`, from the names of the layers after the task's.
    """

    task: Task
    args: tuple
    stated: dict
    name: str


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases: ten lines of them can stand for gigabytes, or for themselves."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: an alias (*); write the value out")
        return super().compose_node(parent, index)


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise UserError(message)


def parse_recipe(argv: list[str], *dataclass_types: type) -> Recipe:
    """Parse `task.yaml model.yaml [overlay.yaml ...] [--flag value ...]`.

    Args:
        argv: the command line without the script's name.
        dataclass_types: the Hugging Face argument classes of the script.

    Raises:
        UserError: a file is missing or no YAML mapping; a key or flag is unknown (the nearest known one is named) or
            its value is of the wrong type.
    """
    first_flag = next((i for i, arg in enumerate(argv) if arg.startswith("--")), len(argv))
    paths, flags = [Path(arg) for arg in argv[:first_flag]], argv[first_flag:]
    if not paths:
        raise UserError("no recipe given; the first argument is a task's YAML, such as data/sentiment.yaml")

    parser = _Parser(dataclass_types, allow_abbrev=False, add_help=False)
    actions = {action.dest: action for action in parser._actions}
    stated, origin = {}, {}
    for path in paths:
        layer = read_layer(path)
        for key in layer:
            _refuse_secret(key, str(path))
            if key not in actions and key not in TASK_KEYS:
                raise UserError(f"{path}: unknown key `{key}`{_nearest(key, [*actions, *TASK_KEYS])}")
            origin[key] = str(path)
        stated = layered(stated, layer)
    if "task" not in stated:
        raise UserError(
            f"{paths[0]}: no `task` in any layer; the first layer is a task's YAML, such as data/topic.yaml"
        )

    values = {key: value for key, value in stated.items() if key in actions}
    parser.set_defaults(**{key: _typed(actions[key], value, origin[key]) for key, value in values.items()})
    for action in actions.values():
        action.required = action.required and action.dest not in values and action.dest != "output_dir"
    name = "-".join(path.stem for path in paths[1:]) or paths[0].parent.name
    task = make_task({key: stated[key] for key in TASK_KEYS if key in stated}, origin["task"])
    flagged, unknown = parser.parse_known_args(flags)
    if unknown:
        flag = unknown[0].split("=")[0].lstrip("-")
        shown = unknown[0].split("=")[0]  # without its value, which may be a secret
        raise UserError(f"command line: unknown argument {shown}{_nearest(flag, list(actions), '--')}")
    for action in parser._actions:
        if any(flag.split("=")[0] in action.option_strings for flag in flags):
            _refuse_secret(action.dest, "command line")
            if action.dest not in WHERE_AND_HOW:
                stated[action.dest] = getattr(flagged, action.dest)
            if action.dest == "seed":
                name += f"-seed{flagged.seed}"
            if action.dest == "num_train_epochs" and stated.pop("sample_epochs", None):
                parser.set_defaults(sample_epochs=None)
    if "output_dir" not in values:
        parser.set_defaults(output_dir=f"runs/{task.task}/{name}")
    try:
        args = parser.parse_args_into_dataclasses(args=flags, look_for_args_file=False)
    except UserError:
        raise
    except Exception as error:  # each argument class refuses values by errors of its own kinds
        raise UserError(f"{', '.join(map(str, paths))}: {error}") from error
    return Recipe(task=task, args=args, stated=stated, name=name)


def dump_recipe(recipe: Recipe) -> str:
    """The layers as one YAML that gives the same run again: `python train_sft.py recipe.yaml`."""
    keys = {key: value for key, value in recipe.stated.items() if key not in TASK_KEYS}
    return yaml.safe_dump(task_yaml(recipe.task), sort_keys=False, allow_unicode=True) + yaml.safe_dump(
        keys, sort_keys=False, allow_unicode=True
    )


def read_layer(path: Path, below: tuple[Path, ...] = ()) -> dict:
    """A layer on top of the one that its `extends` names, paths made absolute."""
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
        raise UserError(f"{path}: no valid YAML: {str(error) or type(error).__name__}") from error
    if not isinstance(layer, dict) or not all(isinstance(key, str) for key in layer):
        raise UserError(f"{path}: holds {type(layer).__name__}, not a mapping of keys to values")
    parent = layer.pop("extends", None)
    under = read_layer(path.parent / str(parent), (*below, path.resolve())) if parent else {}
    return layered(under, absolute_paths(layer, path.resolve().parent))


def layered(below: dict, layer: dict) -> dict:
    """A layer on top of others; epochs that it states hold for the invented sample too."""
    if "num_train_epochs" in layer:
        below = {key: value for key, value in below.items() if key != "sample_epochs"}
    return below | layer


def read_task(path: Path) -> Task:
    """The task of a YAML, whatever else it states."""
    return make_task({key: value for key, value in read_layer(path).items() if key in TASK_KEYS}, str(path))


def _refuse_secret(key: str, where: str) -> None:
    if key in SECRETS:
        raise UserError(f"{where}: `{key}` is a secret; take it out and set it in the environment (HF_TOKEN)")


def _typed(action, value: object, path: str) -> object:
    """A YAML value as its flag would read it, so that `2e-5`, a string to YAML, is a number to the optimiser."""
    if value is None or isinstance(value, dict):
        return json.dumps(value) if isinstance(value, dict) and action.type is str else value
    many = action.nargs in ("+", "*")
    if many != isinstance(value, list):
        raise UserError(f"{path}: `{action.dest}` is {value!r}; it takes {'a list' if many else 'one value'}")
    typed = []
    for item in value if many else [value]:
        try:
            typed.append(action.type(str(item)) if action.type else item)
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(f"{path}: `{action.dest}` is {item!r}, which is no {_type_name(action)}") from error
        if action.choices and typed[-1] not in action.choices:
            raise UserError(f"{path}: `{action.dest}` is {item!r}; choose from {', '.join(map(str, action.choices))}")
    return typed if many else typed[0]


def _type_name(action) -> str:
    return {"string_to_bool": "yes or no"}.get(action.type.__name__, action.type.__name__)


def _nearest(key: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; the nearest known one is {prefix}{near[0]}" if near else "; no known one is near it"
