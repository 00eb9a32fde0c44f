"""A run's folder: how it is written, read again and verified.

runs/<task>/<name>/ holds the model's files (an adapter with its tokenizer and `base/` where the base was built here,
an encoder, or a linear model's model.skops), the model card README.md, recipe.yaml, template.jinja, predictions.jsonl
and, written last, metrics.json.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from fintune import machine
from fintune.data.load import TaskData
from fintune.files import finish_move, hashes, modes_of_umask, sha256, write_json, write_text
from fintune.recipe.recipe import Recipe, dump_recipe
from fintune.results.card import INVENTED, write_card
from fintune.results.verify import SCHEMA
from fintune.scoring.scorer import Scorer
from fintune.training.checkpoints import finished_checkpoints
from fintune.training.session import say_replaced


def make_result(recipe: Recipe, data: TaskData, metrics: dict, split: str = "test", **more) -> dict:
    """The content of metrics.json: what was measured, on which rows, model, machine and versions."""
    task, row = recipe.task, recipe.run_args.paper_row
    paper, licence = ({}, INVENTED) if data.source == "sample" else (task.paper, task.license)
    return {
        "schema": SCHEMA,
        "task": task.task,
        "name": recipe.name,
        "script": recipe.script,
        "identity": recipe.identity(data.sha256),
        "data": data.summary() | {"license": licence, "labels": task.names, "columns": task.columns},
        "split": split,
        split: metrics,
        "paper": {"row": row, "accuracy": paper.get(row), "table": paper} if paper else None,
        "machine": machine.description(),
        "peak_memory_gib": machine.peak_memory_gib(),
        **more,
    }


def save_run(recipe: Recipe, result: dict, predictions: list[dict], scorer: Scorer) -> None:
    """Write everything beside the run, metrics.json last, then move it in.

    An older result in the folder counts until the new one is complete; see `finish_move`. recipe.yaml, template.jinja
    and chat_template.jinja give the same run again: `python train_sft.py RUN/recipe.yaml`.
    """
    folder = recipe.folder
    staging = folder / "staging"
    for path in staging.glob("*"):
        if path.is_file():  # of a save that was interrupted; base/, built before training, stays
            path.unlink()
    scorer.save_pretrained(staging)
    if (staging / "base").is_dir():  # which moves with the rest, and PEFT looks for it where the adapter says
        adapter = json.loads((staging / "adapter_config.json").read_text(encoding="utf-8"))
        write_json(staging / "adapter_config.json", adapter | {"base_model_name_or_path": str(folder / "base")})
    overrides = dict(recipe.overrides)
    if "chat_template_path" in overrides:
        overrides["chat_template_path"] = "chat_template.jinja"
    task, template = recipe.task, Path(recipe.task.template)
    if template.is_file():  # a linear model and an encoder need none
        write_text(staging / "template.jinja", template.read_text(encoding="utf-8"))
    task = replace(
        task,
        template="template.jinja",
        files={split: replace(file, path=_seen_from(folder, file.path)) for split, file in task.files.items()},
        sample={split: replace(file, path=_seen_from(folder, file.path)) for split, file in task.sample.items()},
        soft_labels=task.soft_labels and replace(task.soft_labels, path=_seen_from(folder, task.soft_labels.path)),
        exclude=task.exclude and _seen_from(folder, task.exclude),
    )
    if Path(str(overrides.get("model_name_or_path"))).is_dir():
        overrides["model_name_or_path"] = _seen_from(folder, overrides["model_name_or_path"])
    write_text(staging / "recipe.yaml", dump_recipe(replace(recipe, task=task, overrides=overrides)))
    _write_predictions(staging / "predictions.jsonl", predictions)
    (staging / "README.md").unlink(missing_ok=True)  # PEFT's
    modes_of_umask(staging)
    result = result | {"files": hashes(staging)}  # without the card, which its owner may edit
    result["checkpoints"] = finished_checkpoints(folder)
    name = folder.name if folder.is_absolute() else str(folder)
    write_card(staging, result, overrides, scorer.encoder, name)
    write_json(staging / "metrics.json", result)  # from here on it counts
    finish_move(folder)


def _seen_from(folder: Path, path: str) -> str:
    """A path from a run's folder, where both lie in the checkout and so are moved together."""
    here = Path.cwd()
    inside = Path(path).is_absolute() and Path(path).is_relative_to(here) and folder.resolve().is_relative_to(here)
    return os.path.relpath(path, folder.resolve()) if inside else path


def save_result(folder: Path, result: dict, predictions: list[dict], suffix: str = "") -> None:
    """Metrics and predictions of an evaluation, metrics last: a metrics.json always has its predictions beside it.

    Args:
        suffix: of both names, where the run's own figures are to stay.
    """
    say_replaced(folder / f"metrics{suffix}.json")
    place = folder if suffix else folder / "staging"
    if not suffix:
        shutil.rmtree(place, ignore_errors=True)  # of a save that was interrupted
    _write_predictions(place / f"predictions{suffix}.jsonl", predictions)
    if not suffix and "files" in result:
        files = result["files"] | {"predictions.jsonl": sha256(place / "predictions.jsonl")}
        result = result | {"files": files}
    write_json(place / f"metrics{suffix}.json", result)
    finish_move(folder)


def _write_predictions(path: Path, predictions: list[dict]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions))
