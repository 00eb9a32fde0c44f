"""Trackers: where a run is logged, and what of it. Logging never stops or delays a run."""

import atexit
import hashlib
import netrc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import psutil
import wandb
from transformers import Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from fintune.files import read_json, write_json
from fintune.machine import reachable
from fintune.recipe.recipe import Recipe, dump_recipe
from fintune.scoring.curves import reliability

FINISH_SECONDS = 60  # for the upload of what is left when a run ends
ID_FILE = "wandb.json"  # in a run's folder: id, name and group of its W&B run
LONGEST_NAME = 120  # characters


def heed_switches(recipe: Recipe) -> None:
    """Take W&B out of `report_to` where its own switches say that it is disabled; see `_mode`."""
    args = recipe.training_args
    if "wandb" in args.report_to and _mode() == "disabled":
        others = [tracker for tracker in args.report_to if tracker != "wandb"]
        args.report_to = "none" if isinstance(args.report_to, str) else others


def open_run(recipe: Recipe, base: str, source: str, resumed: bool = False) -> None:
    """Open the W&B run of a training, once nothing is left that could refuse it.

    Args:
        base: the model's name.
        source: of the data.
        resumed: from a checkpoint, so that its own W&B run goes on.
    """
    args, kept = recipe.training_args, logged_as(recipe.folder) if resumed else None
    args.run_name = args.run_name or _run_name(f"{recipe.task.task}-{recipe.name}", recipe.flags)
    if args.process_index > 0:
        return
    if not kept:
        (recipe.folder / ID_FILE).unlink(missing_ok=True)  # of an earlier run into this folder
    if "wandb" not in args.report_to:
        return
    again = {"id": kept["id"], "resume": "allow"} if kept else {}
    group = kept["group"] if kept else args.run_name
    if _open(recipe, base, source, group=group, job_type="train", **again):
        write_json(recipe.folder / ID_FILE, {key: getattr(wandb.run, key) for key in ("id", "name", "group")})


def _open_evaluation(recipe: Recipe, result: dict) -> None:
    """A run of its own, in the W&B group of the training where there was one."""
    args, hidden = recipe.training_args, ("bf16", "model_name_or_path")  # always off; named already
    kept = logged_as(recipe.folder) if result["training"] else None
    name = kept["name"] if kept else f"{recipe.task.task}-{recipe.name}"
    flags = {key: value for key, value in recipe.flags.items() if key not in hidden}
    args.run_name = args.run_name or _run_name(f"{name}-{result['split']}", flags)
    group = kept["group"] if kept else args.run_name
    _open(recipe, result["model"]["base"], result["data"]["source"], group=group, job_type="evaluate")


def _run_name(name: str, flags: dict) -> str:
    """A name with the flags that make it another run, such as `topic-tiny-learning_rate=0.001`."""
    name = "-".join([name, *(f"{key}={value}" for key, value in flags.items() if key != "seed")])  # named already
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def logged_as(folder: Path) -> dict | None:
    """id, name and group of the W&B run of a run's folder; None where it has none."""
    try:
        kept = read_json(folder / ID_FILE)
        return {key: str(kept[key]) for key in ("id", "name", "group")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open(recipe: Recipe, base: str, source: str, **settings) -> bool:
    """Open a W&B run, online, or offline and one line says why: no prompt, at most 22 seconds; whether it is kept.

    The project comes from `WANDB_PROJECT` (default fintune). The key comes from `WANDB_API_KEY` or ~/.netrc, never
    from a recipe or the command line.
    """
    mode = _mode()
    if mode == "disabled":
        return False
    settings["name"] = recipe.training_args.run_name
    settings["tags"] = sorted({tag[:64] for tag in (Path(base).name, source, recipe.task.task)})
    settings["group"] = os.environ.get("WANDB_RUN_GROUP") or settings["group"]
    why = _why_offline() if mode == "online" else None
    if not why and not (why := _init(mode, settings)):
        return True
    if fault := _init("offline", settings):
        recipe.training_args.report_to = []
        print(f"wandb: nothing is logged: {why}; and offline {fault}")
        return False
    print(f"wandb: offline ({why}); runs are kept in wandb/, `make dashboard` shows them, `wandb sync` uploads them")
    return True


def _mode() -> str:
    """What W&B's own switches say: WANDB_MODE, `wandb offline` and `wandb disabled`, and WANDB_DISABLED."""
    os.environ.setdefault("WANDB_PROJECT", "fintune")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "10")  # seconds, W&B's own are 90
    os.environ.setdefault("WANDB_DISABLE_GIT", "true")  # or it uploads what is not committed, rows and keys with it
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "on", "true", "yes"):
        return "disabled"
    try:
        return wandb.setup().settings.mode
    except Exception:  # a value that W&B does not know, which it names when the run opens
        return os.environ.get("WANDB_MODE") or "online"


def _init(mode: str, settings: dict) -> str | None:
    """What went wrong, in one line."""
    try:
        wandb.init(mode=mode, **settings)
    except Exception as error:  # whatever it is, it must not stop the run
        return _one_line(error)
    if mode == "online":
        atexit.register(_finish)
    return None


def _why_offline() -> str | None:
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(url).hostname
    if not has_key(host):
        return "no WANDB_API_KEY"
    if not reachable(url):
        return f"{host} is out of reach"
    try:
        _ask()  # wandb.init alone would leave an empty run behind where the key is refused
    except Exception as error:
        return _one_line(error)
    return None


def _ask() -> None:
    """Raise unless the server answers within 5 seconds and takes the key."""
    _ = wandb.Api(timeout=5).viewer


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextmanager
def trackers_kept_open(trainer: Trainer) -> Iterator[None]:
    """Train inside the block: what `report_to` names is not closed with the training, but by `log_result`.

    MLflow would otherwise log the test's figures as another run.
    """
    for tracker in _trackers(trainer):
        tracker.on_train_end = lambda *args, **kwargs: None
    try:
        yield
    except BaseException:
        _close_trackers(trainer)
        raise


def _trackers(trainer: Trainer) -> list:
    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kinds)]


def _close_trackers(trainer: Trainer) -> None:
    for tracker in _trackers(trainer):
        del tracker.on_train_end  # the class's own is behind it
        tracker.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)


def log_result(
    recipe: Recipe, result: dict, predictions: list[dict], trainer: Trainer | None = None, evaluated: bool = False
) -> None:
    """Add the scored split's figures to what the run is logged to, and close it.

    W&B also gets the paper's accuracy, the machine, the confusion matrix, F1 by class, the reliability chart and the
    predictions. Texts of rows are logged only where the task's YAML says `log_texts: true`.

    Args:
        trainer: of the training; None where there was none.
        evaluated: by evaluate.py, which logs a W&B run of its own.
    """
    split, metrics = result["split"], result[result["split"]]
    figures = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    figures |= {f"f1/{name}": found["f1"] for name, found in metrics["per_class"].items()}
    try:
        if trainer is not None:  # not SFTTrainer's own log, which adds figures of the last training steps
            Trainer.log(trainer, {f"{split}_{key}": value for key, value in figures.items()})
            _close_trackers(trainer)
    except Exception as error:  # the result is on the disk; logging it must not turn it into a failure
        print(f"{recipe.training_args.report_to}: the result was not logged ({_one_line(error)})")
    if "wandb" not in recipe.training_args.report_to:
        return
    try:
        if evaluated:
            _open_evaluation(recipe, result)
        elif wandb.run is None:  # a model without a Trainer, which logs nothing before
            open_run(recipe, result["model"]["base"], result["data"]["source"])
        if wandb.run is not None:
            _log(wandb.run, recipe, result, predictions, figures)
    except Exception as error:
        print(f"wandb: the result was not logged ({_one_line(error)}); it is in the run's folder")
    _finish()


def _log(run, recipe: Recipe, result: dict, predictions: list[dict], figures: dict) -> None:
    task, split = recipe.task, result["split"]
    low, high = result[split]["accuracy_interval"]
    run.summary.update({f"{split}/{key}": value for key, value in figures.items()})
    run.summary.update({f"{split}/accuracy_low": low, f"{split}/accuracy_high": high})
    if result["paper"] and result["paper"]["accuracy"]:
        run.summary["paper/accuracy"] = result["paper"]["accuracy"]
    if seconds := (result["training"] or {}).get("train_runtime"):
        run.summary["train_runtime"] = seconds  # of all parts of a resumed run
    config = {"recipe": dump_recipe(recipe), "data": result["data"], "base": result["model"]}
    config["machine"] = result["machine"]  # the commit too
    run.config.update(config, allow_val_change=True)
    texts = ["text", *task.columns] if task.log_texts else []
    columns = ["file", "line", *texts, "label", "prediction", "clean", *task.names]
    flat = [{**row, **row.get("columns", {}), **row["probabilities"]} for row in predictions]
    table = wandb.Table(columns=columns, data=[[row[column] for column in columns] for row in flat])
    if run.settings.mode == "online":
        _ask()  # for the answer to a table W&B would wait without end
    charts = _charts(task.names, result[split]["per_class"], predictions) | {"predictions": table}
    run.log({f"{split}/{name}": chart for name, chart in charts.items()})


def _charts(names: list[str], per_class: dict, predictions: list[dict]) -> dict:
    ids = {name: label for label, name in enumerate(names)}
    confidence = np.array([row["probabilities"][row["prediction"]] for row in predictions])
    correct = np.array([row["prediction"] == row["label"] for row in predictions])
    claimed, right, _ = zip(*reliability(confidence, correct), strict=True)
    f1 = wandb.Table(columns=["label", "F1"], data=[[name, found["f1"]] for name, found in per_class.items()])
    return {
        "confusion_matrix": wandb.plot.confusion_matrix(
            y_true=[ids[row["label"]] for row in predictions],
            preds=[ids[row["prediction"]] for row in predictions],
            class_names=names,
        ),
        "f1_by_class": wandb.plot.bar(f1, "label", "F1", title="F1 of each class"),
        "reliability": wandb.plot.line_series(
            xs=[list(claimed), [0, 1]],
            ys=[list(right), [0, 1]],
            keys=["accuracy", "as often right as it claims"],
            title="Reliability",
            xname="confidence",
        ),
    }


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
    except (OSError, RuntimeError, netrc.NetrcParseError):  # RuntimeError: there is no home
        return False
