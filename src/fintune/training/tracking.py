"""Weights & Biases: where a run is logged, and what of it. Logging never stops or delays a run."""

import atexit
import netrc
import os
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

import psutil
import wandb

from fintune.machine import reachable
from fintune.recipe.recipe import Recipe, dump_recipe

FINISH_SECONDS = 60  # for the upload of what is left when a run ends


def open_run(recipe: Recipe) -> None:
    """Open the run before the model loads, online, or offline and one line says why: no prompt, at most 22 seconds.

    The project comes from `WANDB_PROJECT` (default fintune), the group is the task, so that runs of one task compare
    in one workspace. The key comes from `WANDB_API_KEY` or ~/.netrc, never from a recipe or the command line.
    """
    training_args = recipe.training_args
    training_args.run_name = training_args.run_name or f"{recipe.task.task}-{recipe.name}"
    if "wandb" not in training_args.report_to or training_args.process_index > 0:
        return
    os.environ.setdefault("WANDB_PROJECT", "fintune")
    os.environ.setdefault("WANDB_RUN_GROUP", recipe.task.task)
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "10")  # seconds, W&B's own are 90
    os.environ.setdefault("WANDB_DISABLE_GIT", "true")  # or it uploads what is not committed, rows and keys with it
    if not os.environ.get("WANDB_MODE"):
        os.environ.pop("WANDB_MODE", None)
    elif os.environ["WANDB_MODE"] != "online":  # the trainer opens it then, as the mode says
        return
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(url).hostname
    if not has_key(host):
        why = "no WANDB_API_KEY"
    elif not reachable(url):
        why = f"{host} is out of reach"
    else:
        try:
            _ask()  # wandb.init alone would leave an empty run behind where the key is refused
            wandb.init(name=training_args.run_name)
            atexit.register(_finish)
            return
        except Exception as error:  # whatever it is, it must not stop the run
            why = _one_line(error)
    try:
        wandb.init(name=training_args.run_name, mode="offline")
    except Exception as error:
        training_args.report_to = []
        print(f"wandb: nothing is logged: {why}; and offline {_one_line(error)}")
    else:
        print(
            f"wandb: offline ({why}); runs are kept in wandb/, `make dashboard` shows them, `wandb sync` uploads them"
        )


def _ask() -> None:
    """Raise unless the server answers within 5 seconds and takes the key."""
    _ = wandb.Api(timeout=5).viewer


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def log_result(recipe: Recipe, result: dict, predictions: list[dict]) -> None:
    """Add the scored split's figures to the run and close it: metrics, the paper's, confusion matrix, predictions.

    Texts of rows are logged only where the task's YAML says `log_texts: true`.
    """
    if "wandb" not in recipe.training_args.report_to:
        return
    try:
        _log(wandb.run or wandb.init(name=recipe.training_args.run_name), recipe, result, predictions)
    except Exception as error:  # the result is on the disk; logging it must not turn it into a failure
        print(f"wandb: the result was not logged ({_one_line(error)}); it is in the run's folder")
    _finish()


def _log(run, recipe: Recipe, result: dict, predictions: list[dict]) -> None:
    task, split = recipe.task, result["split"]
    metrics = result[split]
    scalars = {f"{split}/{key}": value for key, value in metrics.items() if isinstance(value, int | float)}
    low, high = metrics["accuracy_interval"]
    run.summary.update({**scalars, f"{split}/accuracy_low": low, f"{split}/accuracy_high": high})
    if result["paper"] and result["paper"]["accuracy"]:
        run.summary["paper/accuracy"] = result["paper"]["accuracy"]
    config = {"recipe": dump_recipe(recipe), "data": result["data"], "base": result["model"]}
    config["machine"] = result["machine"]  # the commit too
    run.config.update(config, allow_val_change=True)
    ids = {name: label for label, name in enumerate(task.names)}
    matrix = wandb.plot.confusion_matrix(
        y_true=[ids[row["label"]] for row in predictions],
        preds=[ids[row["prediction"]] for row in predictions],
        class_names=task.names,
    )
    texts = ["text", *task.columns] if task.log_texts else []
    columns = ["file", "line", *texts, "label", "prediction", "clean", *task.names]
    flat = [{**row.get("columns", {}), **row, **row["probabilities"]} for row in predictions]
    table = wandb.Table(columns=columns, data=[[row[column] for column in columns] for row in flat])
    if run.settings.mode == "online":
        _ask()  # for the answer to a table W&B would wait without end
    run.log({f"{split}/confusion_matrix": matrix, f"{split}/predictions": table})


def _finish() -> None:
    """Close the run, of a stopped training too, within `FINISH_SECONDS`.

    W&B would wait without end for a server that errs; its own `finish_timeout` begins only after what is queued.
    """
    if wandb.run is None:
        return
    folder, url = Path(wandb.run.dir).parent, wandb.run.url

    def close() -> None:
        with suppress(Exception):  # once the service is gone
            wandb.finish()

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(FINISH_SECONDS)
    if not closing.is_alive():
        print(f"wandb: {url}" if url else "wandb: kept offline in wandb/; `make dashboard` shows it")
        return
    for child in psutil.Process().children():
        if child.name() == "wandb-core":
            child.kill()
    with suppress(Exception):
        wandb.teardown()
    print(
        f"wandb: not all was uploaded in {FINISH_SECONDS} seconds; `wandb sync {folder}` uploads the rest", flush=True
    )


def has_key(host: str) -> bool:
    """Whether a W&B key is in the environment or ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(Path("~/.netrc").expanduser()).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def main() -> None:
    """`make dashboard`: where the runs are, online and on this machine."""
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(url).hostname
    if has_key(host) and reachable(url):
        entity = os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
        print(f"online: https://{host.removeprefix('api.')}/{entity}/{os.environ.get('WANDB_PROJECT', 'fintune')}")
    if not Path("wandb").is_dir():
        raise SystemExit("no local runs yet: wandb/ is not here; `make train-sentiment` makes one")


if __name__ == "__main__":
    main()
