"""Weights & Biases: where a run is logged, and what of it. Logging never stops or delays a run."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

from fintune.machine import reachable
from fintune.recipe import Recipe, dump_recipe

import wandb
from transformers import TrainingArguments


def prepare(recipe: Recipe, training_args: TrainingArguments) -> None:
    """Decide online or offline before the model loads, in one line: no prompt, no wait.

    The project comes from `WANDB_PROJECT` (default fintune), the group is the task, so that runs of one task compare
    in one workspace. The key comes from `WANDB_API_KEY` or ~/.netrc, never from a recipe or the command line.
    """
    training_args.run_name = f"{recipe.task.task}-{recipe.name}"
    if "wandb" not in training_args.report_to:
        return
    os.environ.setdefault("WANDB_PROJECT", "fintune")
    os.environ.setdefault("WANDB_RUN_GROUP", recipe.task.task)
    os.environ.setdefault("WANDB_SILENT", "true")
    if os.environ.get("WANDB_MODE"):
        return
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(url).hostname
    if not has_key(host):
        why = "no WANDB_API_KEY"
    elif not reachable(url):
        why = f"{host} is out of reach"
    elif not _accepted():
        why = f"{host} does not take the key"
    else:
        return
    os.environ["WANDB_MODE"] = "offline"
    print(f"wandb: offline ({why}); runs are kept in wandb/, `make dashboard` shows them, `wandb sync` uploads them")


def log_result(recipe: Recipe, training_args: TrainingArguments, result: dict, predictions: list[dict]) -> None:
    """Add the scored split's figures to the run and close it: metrics, the paper's, confusion matrix, predictions.

    Texts of rows are logged only where the task's YAML says `log_texts: true`.
    """
    if "wandb" not in training_args.report_to:
        return
    try:
        _log(wandb.run or wandb.init(name=training_args.run_name), recipe, result, predictions)
    except Exception as error:  # the result is on the disk; logging it must not turn it into a failure
        print(f"wandb: the result was not logged ({type(error).__name__}: {error}); it stands in the run's folder")


def _log(run, recipe: Recipe, result: dict, predictions: list[dict]) -> None:
    task, split = recipe.task, result["split"]
    metrics = result[split]
    scalars = {f"{split}/{key}": value for key, value in metrics.items() if isinstance(value, int | float)}
    low, high = metrics["accuracy_interval"]
    run.summary.update({**scalars, f"{split}/accuracy_low": low, f"{split}/accuracy_high": high})
    if result["paper"]:
        run.summary["paper/accuracy"] = result["paper"]["accuracy"]
    stated = {"recipe": dump_recipe(recipe), "data": result["data"], "base": result["model"]}
    run.config.update(stated, allow_val_change=True)
    ids = {name: label for label, name in enumerate(task.names)}
    matrix = wandb.plot.confusion_matrix(
        y_true=[ids[row["label"]] for row in predictions],
        preds=[ids[row["prediction"]] for row in predictions],
        class_names=task.names,
    )
    columns = ["file", "line", *(["text"] if task.log_texts else []), "label", "prediction", "clean", *task.names]
    table = wandb.Table(
        columns=columns, data=[[{**row, **row["probabilities"]}[column] for column in columns] for row in predictions]
    )
    run.log({f"{split}/confusion_matrix": matrix, f"{split}/predictions": table})
    url = run.url
    wandb.finish()
    print(f"wandb: {url}" if url else "wandb: kept offline in wandb/; `make dashboard` shows it")


def _accepted() -> bool:
    try:
        return wandb.login(verify=True, timeout=10)
    except Exception:  # whatever it is, it must not stop the run
        return False


def has_key(host: str) -> bool:
    """Whether a W&B key is in the environment or ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(Path("~/.netrc").expanduser()).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


if __name__ == "__main__":  # make dashboard
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(url).hostname
    if has_key(host) and reachable(url):
        entity = os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
        print(f"online: https://{host.removeprefix('api.')}/{entity}/{os.environ.get('WANDB_PROJECT', 'fintune')}")
    if not Path("wandb").is_dir():
        raise SystemExit("no local runs yet: wandb/ is not here; `make train-sentiment` makes one")
