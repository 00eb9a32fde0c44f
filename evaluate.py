"""Score a trained run again, or a model that was not trained here: exact label probabilities, no generated text.

    python evaluate.py runs/sentiment/tiny [--split validation]
    python evaluate.py Qwen/Qwen3-0.6B --task data/sentiment.yaml [--dtype bfloat16 ...]

(`import evaluate` still means the PyPI package: nothing is imported from this folder, see src/fintune/metrics.py.)
"""

import argparse
from pathlib import Path

from fintune import machine, runs, tracking
from fintune.data import SPLITS, load_data
from fintune.errors import run
from fintune.prompt import Prompt
from fintune.recipe import RunArguments, parse_recipe
from fintune.tiny import TINY

from trl import ModelConfig, SFTConfig

ARGS = (RunArguments, SFTConfig, ModelConfig)
SCORING = ("--bf16", "false")  # of training, refused on a machine without a GPU; the weights keep `dtype`


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="a run's folder, or a model's name or path together with --task")
    parser.add_argument("--task", help="a task's YAML, for a model that was not trained here")
    parser.add_argument("--split", choices=SPLITS, default="test")
    args, flags = parser.parse_known_args(argv)
    folder = Path(args.target)

    if args.task:
        named = [args.task, "--model_name_or_path", args.target, "--report_to", "wandb"]
        recipe = parse_recipe([*named, *SCORING, *flags], *ARGS)
        recipe.name = f"{folder.name.lower()}-zero-shot"
        base, adapter, trained = args.target, None, {}
        folder = Path("runs", recipe.task.task, recipe.name)
    else:
        trained = runs.load_result(folder)
        recipe = parse_recipe([str(folder / "recipe.yaml"), *SCORING, "--report_to", "none", *flags], *ARGS)
        recipe.name = trained["name"]
        base, adapter = runs.base_of(folder, recipe.args[2]), folder
    task, (run_args, training_args, model_args) = recipe.task, recipe.args
    machine.check_fits(base, run_args.min_gpu_gib, training_args.use_cpu)

    data = load_data(task, allow_sample=model_args.model_name_or_path == TINY)
    runs.check_same(folder, trained, data, base, model_args)
    tracking.prepare(recipe, training_args)
    tokenizer = runs.load_tokenizer(str(adapter or base), model_args.model_revision, training_args.chat_template_path)
    prompt = Prompt(task, tokenizer, training_args.max_length)
    model = runs.load_model(model_args, base, training_args.device, run_args.key_value_heads, adapter)
    model.requires_grad_(False)  # nothing is trained here
    temperature = trained.get("calibration", {}).get("temperature", 1.0)  # fitted when it was trained
    metrics, predictions = runs.evaluate_model(task, data, prompt, model, temperature, args.split)

    summary = trained.get("model") or runs.model_summary(model, base, model_args)
    result = runs.make_result(recipe, data, metrics, args.split, model=summary, training=trained.get("training"))
    result |= {
        key: trained[key] for key in ("machine", "peak_memory_gib", "calibration", "files") if key in trained
    }  # those of the training
    suffix = ("" if args.split == "test" else f"-{args.split}") + ("-flags" if trained and flags else "")
    runs.save_result(folder, result, predictions, suffix)  # a run's own figures are those of its own recipe
    runs.print_result(result)
    tracking.log_result(recipe, training_args, result, predictions)


if __name__ == "__main__":
    run(main)
