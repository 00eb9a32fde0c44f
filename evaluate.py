"""Score a trained run again, or a model that was not trained here: exact label probabilities, no generated text.

    python evaluate.py runs/sentiment/tiny [--split validation]
    python evaluate.py Qwen/Qwen3-0.6B --task data/sentiment.yaml [--dtype bfloat16 ...]
    python evaluate.py configs/smollm2-135m.yaml --task data/sentiment.yaml     # the recipe's model, before training

Takes runs of every training script. (`import evaluate` still means the PyPI package: nothing is imported from
this folder, see src/fintune/scoring/metrics.py.)
"""

import fintune.interrupt  # noqa: F401  before what takes seconds to load

# isort: split
import argparse
from pathlib import Path

from fintune import machine
from fintune.data.load import SPLITS, load_data
from fintune.errors import UserError, run
from fintune.files import check_writable
from fintune.model.load import load_model, load_tokenizer, model_summary, tokenizer_keys
from fintune.model.prompt import Prompt
from fintune.model.wheel import find_model
from fintune.recipe.recipe import parse_recipe
from fintune.results.folder import make_result, save_result
from fintune.results.restore import ARGUMENTS, SCORING, check_data, check_flags, load_scorer, read_recipe
from fintune.results.summary import print_result
from fintune.results.verify import verified_result
from fintune.scoring.label_scorer import LabelScorer
from fintune.scoring.scorer import evaluate
from fintune.training import tracking
from fintune.training.checkpoints import lock_folder

# what a run's figures keep when it is scored again
OF_TRAINING = ("model", "training", "identity", "machine", "peak_memory_gib", "calibration", "files", "checkpoints")
OF_TRAINING += ("guarantee",)  # of a cascade


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="a run's folder; with --task a model's name or path, or a recipe")
    parser.add_argument("--task", help="a task's YAML, for a model that was not trained here")
    parser.add_argument("--base", type=Path, help="folder of the model that the run was trained on, if it was moved")
    parser.add_argument("--split", choices=SPLITS, default="test")
    args, flags = parser.parse_known_args(argv)
    if args.task and args.base:
        raise UserError(f"--base {args.base}: is of a run; with --task name the model itself")
    if args.task:
        zero_shot(args.target, args.task, args.split, flags)
    else:
        trained_run(Path(args.target), args.split, flags, args.base)


def trained_run(folder: Path, split: str, flags: list[str], base: Path | None) -> None:
    """Score a run with the temperature that was fitted when it was trained."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run; to score a model that was not trained here, add --task data/X.yaml")
    trained = verified_result(folder)
    suffix = ("" if split == "test" else f"-{split}") + ("-flags" if flags else "")
    check_writable(folder) if suffix else lock_folder(folder)
    logged = ["--report_to", "wandb"] if tracking.logged_as(folder) else []
    recipe = read_recipe(folder, trained["script"], [*logged, *flags])
    check_flags(recipe, trained["script"], flags)
    recipe.name = trained["name"]
    machine.check_fits(trained["model"]["base"], recipe.run_args.min_gpu_gib, recipe.training_args.use_cpu)
    data = load_data(recipe.task, allow_sample=trained["data"]["source"] == "sample")
    check_data(folder, trained, data)
    scorer = load_scorer(folder, trained, recipe, base)
    metrics, predictions = evaluate(scorer, recipe.task, data, trained["calibration"]["temperature"], split)

    result = make_result(recipe, data, metrics, split)
    result |= {key: trained[key] for key in OF_TRAINING if key in trained}
    save_result(folder, result, predictions, suffix)  # a run's own figures are those of its own recipe
    print_result(result, folder)
    tracking.log_result(recipe, result, predictions, evaluated=True)


def zero_shot(target: str, task_path: str, split: str, flags: list[str]) -> None:
    """Score a language model as it is: probabilities are its own, without a temperature."""
    words = [target] if target.endswith(".yaml") else ["--model_name_or_path", target]
    words = [task_path, *words, *SCORING, "--report_to", "wandb", *flags]
    recipe = parse_recipe(words, *ARGUMENTS["train_sft.py"])
    check_flags(recipe, "train_sft.py", flags)
    recipe.script = recipe.overrides["script"] = "evaluate.py"
    training_args, model_args = recipe.training_args, recipe.model_args
    model_name = model_args.model_name_or_path
    recipe.name = f"{Path(model_name).name.lower()}-zero-shot"
    machine.check_fits(model_name, recipe.run_args.min_gpu_gib, training_args.use_cpu)
    folder = Path("runs", recipe.task.task, recipe.name)
    lock_folder(folder)
    data = load_data(recipe.task)
    base, recipe.weights = find_model(model_name, model_args.model_revision, recipe.run_args.wheel)
    tokenizer = load_tokenizer(base, model_args.model_revision, **tokenizer_keys(training_args))
    prompt = Prompt(recipe.task, tokenizer, training_args.max_length)
    model = load_model(model_args, base, training_args.device, recipe.run_args.key_value_heads)
    model.requires_grad_(False)  # nothing is trained here
    metrics, predictions = evaluate(LabelScorer(model, prompt), recipe.task, data, 1.0, split)

    summary = model_summary(model, model_name, base, model_args.model_revision, recipe.weights)
    result = make_result(recipe, data, metrics, split, model=summary, training=None)
    save_result(folder, result, predictions, "" if split == "test" else f"-{split}")
    print_result(result, folder)
    tracking.log_result(recipe, result, predictions, evaluated=True)


if __name__ == "__main__":
    run(main)
