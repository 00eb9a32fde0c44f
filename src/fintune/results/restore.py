"""A finished run as a scorer, whatever kind of model it holds."""

from pathlib import Path

from transformers import AutoModelForSequenceClassification, TrainingArguments
from trl import ModelConfig, SFTConfig

from fintune.errors import UserError
from fintune.model.embedding import load_embedder
from fintune.model.encoder import EncoderArguments, EncoderInput
from fintune.model.linear import LinearArguments
from fintune.model.load import base_fingerprint, load_model, load_tokenizer, missing_model, tokenizer_keys
from fintune.model.prompt import Prompt
from fintune.model.wheel import find_model
from fintune.recipe.layers import TINY
from fintune.recipe.recipe import Recipe, SftArguments, parse_recipe
from fintune.scoring.encoder_scorer import EncoderScorer
from fintune.scoring.label_scorer import LabelScorer
from fintune.scoring.linear_scorer import LinearScorer, load_linear
from fintune.scoring.scorer import Scorer

SCORING = ["--report_to", "none", "--bf16", "false"]  # bf16 is of training; the weights keep their dtype
ARGUMENTS = {
    "train_sft.py": (SftArguments, SFTConfig, ModelConfig),
    "train_cls.py": (EncoderArguments, TrainingArguments),
    "train_linear.py": (LinearArguments,),
}


def read_recipe(folder: Path, script: str, flags: list[str] = ()) -> Recipe:
    """The recipe of a finished run, for scoring."""
    scoring = SCORING[:2] if script == "train_linear.py" else SCORING  # which has no bf16
    words = [str(folder / "recipe.yaml"), "--output_dir", str(folder), *scoring, *flags]
    return parse_recipe(words, *ARGUMENTS[script])


def load_scorer(folder: Path, result: dict, recipe: Recipe | None = None) -> Scorer:
    """The model of a finished run with its tokenizer and templates.

    Args:
        result: its metrics.json, of `verified_result`.
        recipe: of the run, where some of its flags are changed.

    Raises:
        UserError: its adapter or classifier belongs to another base, or weights are missing or foreign.
    """
    recipe = recipe or read_recipe(folder, result["script"])
    loaders = {"train_sft.py": _label_scorer, "train_cls.py": _encoder_scorer, "train_linear.py": _linear_scorer}
    return loaders[result["script"]](folder, recipe, result)


def _label_scorer(folder: Path, recipe: Recipe, result: dict) -> LabelScorer:
    training_args, model_args = recipe.training_args, recipe.model_args
    name, revision = model_args.model_name_or_path, model_args.model_revision
    base = str(folder / "base") if name == TINY else find_model(name, revision, recipe.run_args.wheel)[0]
    _check_base(folder, "adapter", base, revision, result)
    tokenizer = load_tokenizer(str(folder), revision, **tokenizer_keys(training_args))
    model = load_model(model_args, base, training_args.device, recipe.run_args.key_value_heads, folder)
    return LabelScorer(model, Prompt(recipe.task, tokenizer, training_args.max_length))


def _check_base(folder: Path, part: str, base: str, revision: str | None, result: dict) -> None:
    found, trained_on = base_fingerprint(base, revision), result["model"]["fingerprint"]
    if found != trained_on:
        raise UserError(f"{folder}: its {part} belongs to base {trained_on[:60]}, not {found[:60]}")


def _linear_scorer(folder: Path, recipe: Recipe, result: dict) -> LinearScorer:
    args = recipe.run_args
    if args.linear_model != "embedding":
        return load_linear(folder, None)
    name, revision = args.model_name_or_path, args.model_revision
    base = find_model(name, revision, args.wheel)[0]
    _check_base(folder, "classifier", base, revision, result)
    return load_linear(folder, load_embedder(base, revision, args.max_length, []))


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
