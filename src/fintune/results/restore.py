"""A finished run as a scorer, whatever kind of model it holds."""

import os
from pathlib import Path

from transformers import AutoModelForSequenceClassification, TrainingArguments
from trl import ModelConfig, SFTConfig

from fintune.data.load import TaskData
from fintune.errors import UserError
from fintune.files import check_readable
from fintune.model.embedding import load_embedder
from fintune.model.encoder import EncoderArguments, EncoderInput
from fintune.model.linear import LinearArguments
from fintune.model.load import base_fingerprint, load_model, load_tokenizer, missing_model, tokenizer_keys
from fintune.model.prompt import Prompt
from fintune.model.wheel import find_model
from fintune.recipe.layers import TINY
from fintune.recipe.recipe import CascadeArguments, Recipe, SftArguments, parse_recipe
from fintune.results.verify import CASCADE, fingerprint, verified_result
from fintune.scoring.cascade import CascadeScorer, Stage
from fintune.scoring.encoder_scorer import EncoderScorer
from fintune.scoring.label_scorer import LabelScorer
from fintune.scoring.linear_scorer import LinearScorer, load_linear
from fintune.scoring.scorer import Scorer

SCORING = ["--report_to", "none", "--bf16", "false"]  # bf16 is of training; the weights keep their dtype
# keys that scoring reads, so that a flag may change them; of a decoder also those that say how its base loads
READ = {"max_length", "min_gpu_gib", "paper_row", "report_to", "run_name", "use_cpu"}
READ_BY_DECODER = {
    "attn_implementation",
    "bnb_4bit_quant_storage",
    "bnb_4bit_quant_type",
    "chat_template_path",
    "dtype",
}
READ_BY_DECODER |= {"eos_token", "key_value_heads", "load_in_4bit", "load_in_8bit", "model_name_or_path"}
READ_BY_DECODER |= {"model_revision", "pad_token", "use_bnb_nested_quant", "wheel"}
ARGUMENTS = {
    "train_sft.py": (SftArguments, SFTConfig, ModelConfig),
    "train_cls.py": (EncoderArguments, TrainingArguments),
    "train_linear.py": (LinearArguments,),
    CASCADE: (CascadeArguments,),
}


def read_recipe(folder: Path, script: str, flags: list[str] = ()) -> Recipe:
    """The recipe of a finished run, for scoring."""
    scoring = SCORING if script in ("train_sft.py", "train_cls.py") else SCORING[:2]  # the others have no bf16
    words = [str(folder / "recipe.yaml"), "--output_dir", str(folder), *scoring, *flags]
    return parse_recipe(words, *ARGUMENTS[script])


def check_flags(script: str, flags: list[str]) -> None:
    """Refuse flags that scoring does not read: those of training and of the output.

    Args:
        script: that trained the model, or would.

    Raises:
        UserError: names the flag and those that are read.
    """
    read = READ | (READ_BY_DECODER if script == "train_sft.py" else set())
    for flag in (word.split("=")[0] for word in flags if word.startswith("--")):
        if flag[2:] not in read:
            raise UserError(
                f"command line: {flag} changes nothing in an evaluation, which reads {', '.join(sorted(read))}"
            )


def check_data(folder: Path, result: dict, data: TaskData) -> None:
    """See that the rows found now are those that a run was trained on.

    Raises:
        UserError: they are others.
    """
    known = result["data"]
    if known["sha256"] != data.sha256:
        raise UserError(
            f"{folder}: trained on {known['source']} data {known['sha256'][:12]}, found now is {data.source} data "
            f"{data.sha256[:12]}; set FINTUNE_DATA as it was, or train again"
        )


def load_scorer(folder: Path, result: dict, recipe: Recipe | None = None, base: Path | None = None) -> Scorer:
    """The model of a finished run with its tokenizer and templates.

    Args:
        result: its metrics.json, of `verified_result`.
        recipe: of the run, where some of its flags are changed.
        base: folder of the model that an adapter or a classifier stands on, where it is no longer where the recipe
            says.

    Raises:
        UserError: its adapter or classifier belongs to another base, or weights are missing or foreign.
    """
    recipe = recipe or read_recipe(folder, result["script"])
    stands_on_base = result["script"] == "train_sft.py" or getattr(recipe.run_args, "linear_model", "") == "embedding"
    if base is not None and not stands_on_base:
        raise UserError(f"--base {base}: {folder} holds its whole model; leave it out")
    loaders = {
        "train_sft.py": _label_scorer,
        "train_cls.py": _encoder_scorer,
        "train_linear.py": _linear_scorer,
        CASCADE: _cascade_scorer,
    }
    return loaders[result["script"]](folder, recipe, result, *[base] * stands_on_base)


def _label_scorer(folder: Path, recipe: Recipe, result: dict, base: Path | None) -> LabelScorer:
    training_args, model_args = recipe.training_args, recipe.model_args
    revision = model_args.model_revision
    base = _find_base(folder, "adapter", model_args.model_name_or_path, revision, recipe.run_args.wheel, result, base)
    tokenizer = load_tokenizer(str(folder), revision, **tokenizer_keys(training_args))
    model = load_model(model_args, base, training_args.device, recipe.run_args.key_value_heads, folder)
    return LabelScorer(model, Prompt(recipe.task, tokenizer, training_args.max_length))


def _find_base(
    folder: Path, part: str, name: str, revision: str | None, wheel: dict | None, result: dict, moved: Path | None
) -> str:
    """Name or folder of the base that a run was trained on, by its fingerprint."""
    trained_on = result["model"]["fingerprint"]
    if moved is not None:
        if not moved.is_dir():
            raise UserError(f"--base {moved}: no such folder; name the one that holds the base of {folder}")
        if "@" in trained_on:
            raise UserError(
                f"--base {moved}: {folder} was trained on {trained_on} of the Hub, which a folder cannot be checked "
                "against; leave it out and connect, or fill the Hub's cache (HF_HOME)"
            )
        base = str(moved)
    elif name == TINY:
        base = str(folder / "base")
    elif Path(name).is_absolute() and not Path(name).is_dir():
        raise UserError(f"{folder}: its base {name} is missing; say where it is now with --base FOLDER")
    else:
        base = find_model(name, revision, wheel)[0]
    check_readable(Path(base))
    found = base_fingerprint(base, revision)
    if found != trained_on:
        raise UserError(
            f"{folder}: its {part} belongs to base {trained_on[:60]}, not {found[:60]} ({base}); name the right one "
            "with --base FOLDER"
        )
    return base


def _linear_scorer(folder: Path, recipe: Recipe, result: dict, base: Path | None = None) -> LinearScorer:
    args = recipe.run_args
    if args.linear_model != "embedding":
        return load_linear(folder, None)
    revision = args.model_revision
    base = _find_base(folder, "classifier", args.model_name_or_path, revision, args.wheel, result, base)
    return load_linear(folder, load_embedder(base, revision, args.max_length, []))


def _cascade_scorer(folder: Path, recipe: Recipe, result: dict) -> CascadeScorer:
    args, stages = recipe.run_args, []
    for place, threshold, known in zip(args.stages, args.thresholds, result["model"]["stages"], strict=True):
        path = Path(os.path.normpath(folder / place))
        stage = verified_result(path)
        if fingerprint(stage) != known["fingerprint"]:
            raise UserError(f"{path}: is another run than the one {folder} was made of; run `fintune cascade` again")
        scorer = load_scorer(path, stage)
        stages.append(Stage(known["name"], scorer, stage["calibration"]["temperature"], threshold))
    return CascadeScorer(stages)


def _encoder_scorer(folder: Path, recipe: Recipe, result: dict) -> EncoderScorer:
    tokenizer = load_tokenizer(str(folder), None)
    with missing_model(str(folder)):
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if missing := sorted(loading["missing_keys"]):
        raise UserError(f"{folder}: its weights lack {missing[0]}; copy the run's folder again, or train it again")
    model.to(recipe.training_args.device)
    return EncoderScorer(model, EncoderInput(tokenizer, model.config, recipe.run_args.max_length))
