"""A run is YAML files layered left to right, later wins, then flags with the Hugging Face names.

data/sentiment.yaml configs/qwen3-8b.yaml configs/overlays/balanced.yaml --learning_rate 1e-4
"""

import argparse
import dataclasses
import difflib
import json
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import yaml
from transformers import HfArgumentParser, TrainingArguments

from fintune.errors import UserError
from fintune.recipe.identity import PLACE_AND_DISPLAY, identity
from fintune.recipe.layers import LENGTH, absolute_model, merge_layers, read_layer
from fintune.recipe.refused import check_keys
from fintune.recipe.task import TASK_KEYS, Task, make_task, task_yaml

SECRETS = ("hub_token", "push_to_hub_token")  # a recipe is copied into every run and its log
DOCUMENTED = {  # where --help sends a reader for the keys that are not fintune's
    "SFTConfig": "https://huggingface.co/docs/trl/sft_trainer#trl.SFTConfig",
    "TrainingArguments": "https://huggingface.co/docs/transformers/main_classes/trainer",
    "ModelConfig": "https://huggingface.co/docs/trl/main/en/script_utils#trl.ModelConfig",
}


@dataclass
class RunArguments:
    """Keys that every training script has beyond those of transformers, TRL and PEFT."""

    paper_row: str | None = field(
        default=None, metadata={"help": "Row of the paper's Table 4 to compare with, such as qwen3-8b."}
    )


@dataclass
class ModelArguments(RunArguments):
    """Keys of the scripts that train a model from the Hub."""

    min_gpu_gib: float = field(
        default=0.0, metadata={"help": "Free GPU memory the run needs; with less it is refused before any download."}
    )
    min_steps: int = field(
        default=0,
        metadata={
            "help": "Optimizer steps at least: on few rows num_train_epochs is raised until they are reached. Not "
            "applied where --num_train_epochs or --max_steps is given as a flag, or by a later layer."
        },
    )
    wheel: dict | None = field(
        default=None,
        metadata={"help": "PyPI package with the model, used without the Hub: package, version, file, sha256."},
    )


@dataclass
class SftArguments(ModelArguments):
    """Keys of train_sft.py."""

    batching: Literal["padded", "shared_prefix"] = field(
        default="padded", metadata={"help": "How the rows of a micro-batch share a tensor; see docs/method.md."}
    )
    key_value_heads: int | None = field(
        default=None,
        metadata={"help": "Key-value heads the base gets before it is trained: repeated or averaged ones."},
    )
    tiny_config: dict | None = field(
        default=None,
        metadata={"help": "Qwen3Config keys of the model that is built when model_name_or_path is `tiny`."},
    )
    tiny_vocab_size: int = field(default=8192, metadata={"help": "Size of the BPE vocabulary trained for `tiny`."})


@dataclass(kw_only=True)
class CascadeArguments(RunArguments):
    """Keys of what `fintune cascade` writes."""

    min_gpu_gib: ClassVar[float] = 0.0

    stages: list[str] = field(metadata={"help": "Folders of runs, from this one's, in the order they are asked."})
    thresholds: list[float] = field(metadata={"help": "Calibrated confidence from which each stage answers."})
    max_error: float = field(metadata={"help": "Bound on the share of wrong labels among labelled rows."})
    confidence: float = field(metadata={"help": "Probability with which the bound holds."})


@dataclass
class OutputArguments:
    """What a script without a Trainer takes of TrainingArguments."""

    process_index: ClassVar[int] = 0
    use_cpu: ClassVar[bool] = False

    output_dir: str | None = field(default=None, metadata={"help": "The run's folder; runs/<task>/<name> if unset."})
    run_name: str | None = field(default=None, metadata={"help": "Name in Weights & Biases."})
    report_to: str = field(default="none", metadata={"help": "wandb or none."})


@dataclass
class Recipe:
    """A parsed run.

    Attributes:
        task: what its data YAML says.
        name: `<model>[-<overlay>...]`, from the names of the layers after the task's.
        script: the script that reads it, such as train_sft.py; None for a model that is scored without training.
        overrides: every key that a layer or a flag states, as it goes into `recipe.yaml`.
        flags: those of the command line.
        run_args, training_args, model_args: an instance of each class that `parse_recipe` was given.
        weights: what the model's weights come from in place of the Hub; see fintune/model/wheel.py.
    """

    task: Task
    name: str
    script: str | None
    overrides: dict
    flags: dict
    run_args: RunArguments
    training_args: TrainingArguments | OutputArguments
    model_args: object | None = None
    weights: str | None = None
    _identity: dict | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.training_args.output_dir)

    def identity(self, data_sha256: str) -> dict:
        """What makes this run the same as another one on the same rows; see fintune/recipe/identity.py.

        Computed once: a prompt that is edited while the run trains does not change what it was.
        """
        if self._identity is None:
            overrides = self.overrides | {"seed": self.seed}
            self._identity = identity(overrides, self.task, data_sha256, self.weights)
        return self._identity

    @property
    def seed(self) -> int | None:
        return getattr(self.training_args, "seed", None)


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise UserError(message)


def parse_recipe(
    argv: list[str],
    run_class: type,
    training_class: type = OutputArguments,
    model_class: type | None = None,
    script: str | None = None,
) -> Recipe:
    """Parse `task.yaml model.yaml [overlay.yaml ...] [--flag value ...]`; `--help` prints the keys and exits.

    Args:
        argv: the command line without the script's name.
        run_class, training_class, model_class: the argument classes of the script.
        script: its file name; a recipe that states another one is refused.

    Raises:
        UserError: a file is missing or not a YAML mapping; a key or flag is unknown (the nearest known one is named)
            or its value is of the wrong type; the recipe is another script's.
    """
    classes = [each for each in (run_class, training_class, model_class) if each]
    if {"--help", "-h"} & set(argv):
        print(_help(classes))
        sys.exit(0)
    first_flag = next((i for i, arg in enumerate(argv) if arg.startswith("--")), len(argv))
    paths, flags = [Path(arg) for arg in argv[:first_flag]], argv[first_flag:]
    if not paths:
        raise UserError("no recipe given; the first argument is a task's YAML, such as data/sentiment.yaml")

    parser = _Parser(classes, allow_abbrev=False, add_help=False)
    actions = {action.dest: action for action in reversed(parser._actions)}  # of two the one that is no `--no_...`
    defaults = {key: action.default for key, action in actions.items()}
    known = [*actions, *TASK_KEYS, "script"]
    overrides, origin = {}, {}
    for path in paths:
        layer = read_layer(path)
        if script and layer.get("script", script) != script:  # said first: its keys are not this script's
            raise UserError(f"{path}: is a recipe of {layer['script']}; run it with {layer['script']}")
        for key in layer:
            _refuse_secret(key, str(path))
            if key not in known:
                raise UserError(f"{path}: unknown key `{key}`{_nearest(key, known)}")
            origin[key] = str(path)
        overrides = merge_layers(overrides, layer)
    if script:
        overrides["script"] = script
    if "task" not in overrides:
        raise UserError(
            f"{paths[0]}: no `task` in any layer; the first layer is a task's YAML, such as data/topic.yaml"
        )

    values = {key: value for key, value in overrides.items() if key in actions}
    parser.set_defaults(**{key: _typed(actions[key], value, origin[key]) for key, value in values.items()})
    for action in actions.values():
        action.required = action.required and action.dest not in values and action.dest != "output_dir"
    name = "-".join(path.stem for path in paths[1:]) or paths[0].resolve().parent.name
    task = make_task({key: overrides[key] for key in TASK_KEYS if key in overrides}, origin["task"])
    flagged, unknown = parser.parse_known_args(flags)
    if unknown:
        shown = unknown[0].split("=")[0]  # without its value, which may be a secret
        raise UserError(f"command line: unknown argument {shown}{_nearest(shown.lstrip('-'), list(actions), '--')}")
    stated = {}
    for action in parser._actions:
        if any(flag.split("=")[0] in action.option_strings for flag in flags):
            _refuse_secret(action.dest, "command line")
            if action.dest not in PLACE_AND_DISPLAY:
                stated[action.dest] = overrides[action.dest] = getattr(flagged, action.dest)
            if action.dest == "seed":
                name += f"-seed{flagged.seed}"
    if stated.keys() & set(LENGTH) and "min_steps" not in stated and overrides.pop("min_steps", None):
        parser.set_defaults(min_steps=0)
    if training_class is not OutputArguments:
        # a run's own recipe was checked when it was trained
        checked = actions if script else stated
        trainer = "train_sft.py" if model_class else "train_cls.py"
        check_keys(trainer, flagged, defaults, origin | dict.fromkeys(stated, "command line"), checked)
    if "output_dir" not in values:
        parser.set_defaults(output_dir=f"runs/{task.task}/{name}")
    try:
        run_args, training_args, *model_args = parser.parse_args_into_dataclasses(args=flags, look_for_args_file=False)
    except UserError:
        raise
    except Exception as error:  # each argument class refuses values by errors of its own kinds
        raise UserError(f"{', '.join(map(str, paths))}: {error}") from error
    for args in (run_args, *model_args):
        if name_or_path := getattr(args, "model_name_or_path", None):  # of a flag, as seen from here
            args.model_name_or_path = overrides["model_name_or_path"] = absolute_model(name_or_path, Path.cwd())
    recipe = Recipe(task, name, overrides.get("script"), overrides, stated, run_args, training_args, *model_args)
    _check_soft_labels(recipe)
    return recipe


def _check_soft_labels(recipe: Recipe) -> None:
    """Refuse keys that `soft_labels` would leave without effect, or that have none without it."""
    soft, where = recipe.task.soft_labels is not None, f"{recipe.task.task}, {recipe.name}"
    if soft and recipe.script == "train_sft.py":
        raise UserError(
            f"{where}: train_sft.py learns the words of one label, not the probabilities of `soft_labels`; take "
            "train_cls.py or train_linear.py"
        )
    if soft and getattr(recipe.training_args, "label_smoothing_factor", 0.0):
        raise UserError(f"{where}: `label_smoothing_factor` smooths hard labels; take it out, or `soft_labels`")
    if not soft and getattr(recipe.run_args, "distillation_temperature", 1.0) != 1:
        raise UserError(f"{where}: `distillation_temperature` needs `soft_labels` (docs/distillation.md); take it out")


def dump_recipe(recipe: Recipe) -> str:
    """The layers as one YAML that gives the same run again: `python train_sft.py recipe.yaml`."""
    keys = {key: value for key, value in recipe.overrides.items() if key not in TASK_KEYS}
    return yaml.safe_dump(task_yaml(recipe.task), sort_keys=False, allow_unicode=True) + yaml.safe_dump(
        keys, sort_keys=False, allow_unicode=True
    )


def _help(classes: list[type]) -> str:
    """Usage, the keys of fintune's own classes, and where the others are documented."""
    width = min(100, shutil.get_terminal_size().columns)
    script = sys.modules["__main__"]
    lines = [(script.__doc__ or "").strip(), "", "Keys of fintune, in a YAML layer or as a flag:"]
    for each in classes:
        if each.__name__ in DOCUMENTED:
            continue
        for key in sorted(dataclasses.fields(each), key=lambda key: key.name):
            needed = key.default is dataclasses.MISSING and key.default_factory is dataclasses.MISSING
            default = (
                "required"
                if needed
                else f"default {key.default!r}"
                if key.default_factory is dataclasses.MISSING
                else ""
            )
            lines.append(f"  --{key.name}" + (f" ({default})" if default else ""))
            lines += textwrap.wrap(
                key.metadata.get("help", ""), width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    others = [each.__name__ for each in classes if each.__name__ in DOCUMENTED]
    if others:
        lines += ["", "All keys of these classes are taken too, in the same two ways:"]
        lines += [f"  {name:<18} {DOCUMENTED[name]}" for name in others]
    lines += ["", "Keys of a task (labels, files, split, ...): data/README.md. Recipes to start from: configs/"]
    return "\n".join(lines)


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
            raise UserError(f"{path}: `{action.dest}` is {item!r}, which is not {_type_name(action)}") from error
        if action.choices and typed[-1] not in action.choices:
            raise UserError(f"{path}: `{action.dest}` is {item!r}; choose from {', '.join(map(str, action.choices))}")
    return typed if many else typed[0]


def _type_name(action) -> str:
    names = {"string_to_bool": "yes or no", "float": "a number", "int": "a whole number"}
    return names.get(action.type.__name__, action.type.__name__)


def _nearest(key: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; the nearest known one is {prefix}{near[0]}" if near else "; no known one is near it"
