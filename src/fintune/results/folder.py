"""A run's folder: how it is written, read again and verified.

runs/<task>/<name>/ holds the model's files (an adapter with its tokenizer and `base/` where the base was built here,
an encoder, or a linear model's model.skops), recipe.yaml, template.jinja, predictions.jsonl and, written last,
metrics.json.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from fintune import machine
from fintune.data.load import TaskData
from fintune.files import hashes, write_json, write_text
from fintune.recipe.recipe import Recipe, dump_recipe
from fintune.results.verify import SCHEMA


def make_result(recipe: Recipe, data: TaskData, metrics: dict, split: str = "test", **more) -> dict:
    """The content of metrics.json: what was measured, on which rows, model, machine and versions."""
    task, row = recipe.task, recipe.run_args.paper_row
    paper = task.paper if data.source != "sample" else {}
    return {
        "schema": SCHEMA,
        "task": task.task,
        "name": recipe.name,
        "script": recipe.script,
        "identity": recipe.identity(data.sha256),
        "data": data.summary() | {"license": task.license, "labels": task.names, "columns": task.columns},
        "split": split,
        split: metrics,
        "paper": {"row": row, "accuracy": paper.get(row), "table": paper} if paper else None,
        "machine": machine.description(),
        "peak_memory_gib": machine.peak_memory_gib(),
        **more,
    }


def save_run(recipe: Recipe, result: dict, predictions: list[dict], *parts) -> None:
    """Write everything (`parts` by their save_pretrained) beside the run, then move it in, metrics.json last.

    An older result in the folder stays complete until the new one is. recipe.yaml, template.jinja and
    chat_template.jinja give the same run again: `python train_sft.py RUN/recipe.yaml`.
    """
    folder = recipe.folder
    staging = folder / "staging"
    for path in staging.glob("*"):
        if path.is_file():  # of a save that was interrupted; base/, built before training, stays
            path.unlink()
    for part in parts:
        part.save_pretrained(staging)
    overrides = dict(recipe.overrides)
    if "chat_template_path" in overrides:
        overrides["chat_template_path"] = "chat_template.jinja"
    template = Path(recipe.task.template)
    if template.is_file():  # a linear model and an encoder need none
        write_text(staging / "template.jinja", template.read_text(encoding="utf-8"))
    here = replace(recipe, task=replace(recipe.task, template="template.jinja"), overrides=overrides)
    write_text(staging / "recipe.yaml", dump_recipe(here))
    files = hashes(staging)
    files.pop("README.md", None)  # PEFT's card, which its owner may write anew
    save_result(staging, result | {"files": files}, predictions)
    (folder / "metrics.json").unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "metrics.json"):
        if path.is_dir():
            shutil.rmtree(folder / path.name, ignore_errors=True)
        path.replace(folder / path.name)
    staging.rmdir()


def save_result(folder: Path, result: dict, predictions: list[dict], suffix: str = "") -> None:
    """Predictions first, metrics last: a metrics.json always has its predictions beside it."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
    write_text(folder / f"predictions{suffix}.jsonl", lines)
    write_json(folder / f"metrics{suffix}.json", result)
