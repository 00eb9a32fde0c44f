"""A finished run is read again: its metrics.json, and whether its files are those that were scored.

Imports nothing heavy: a command asks here before it loads a model.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from fintune.errors import UserError, in_words
from fintune.files import faults, finish_move, read_json

CASCADE = "fintune cascade"  # where other runs have the script that trained them
SCHEMA = 2  # of metrics.json; a run of another one is refused
SCRIPTS = ("train_sft.py", "train_cls.py", "train_linear.py", CASCADE)
# What may lie in a run's folder beside the files that were saved: its own records, hidden files, and kinds that no
# library takes for a part of a model, such as `fintune predict` writes
BESIDE = (
    r"README\.md|metrics(-\w+)*\.json|wandb\.json|\..*|.*\.(csv|tsv|jsonl|parquet|xlsx|gz|zst|log|md|html|png|svg|pdf)"
)
OWN_FOLDERS = r"checkpoint-\d+|staging|runs|.*\.parts|\..*"  # runs/ is TensorBoard's


def read_result(folder: Path) -> dict:
    """metrics.json of a finished run.

    Raises:
        UserError: the folder is not a finished run, or one of another version, or a value is not what it must be.
    """
    finish_move(folder)
    if not ((folder / "recipe.yaml").is_file() and (folder / "metrics.json").is_file()):
        raise UserError(
            f"{folder}: not a finished run (recipe.yaml, metrics.json); name a folder such as runs/sentiment/tiny"
        )
    path = folder / "metrics.json"
    try:
        result = read_json(path)
    except OSError as error:
        raise UserError(in_words(error, path)) from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); train the run again") from error
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path}: schema {schema}, this version reads {SCHEMA}; train the run again")
    _refuse_odd(folder, _of_labels(result))
    return result


def verified_result(folder: Path) -> dict:
    """metrics.json of a finished run whose weights, tokenizer, templates and recipe are those that were scored.

    Raises:
        UserError: as `read_result`; a file is missing, cannot be read, has other bytes or was added.
    """
    result = read_result(folder)
    _refuse_odd(folder, _of_model(result))
    try:
        wrong = list(faults(folder, result["files"]))
    except OSError as error:
        raise UserError(f"cannot read {in_words(error)}") from error
    for name, what in wrong:
        raise UserError(f"{folder}/{name}: {what}; copy the run's folder whole, or train it again")
    for name in _added(folder, result["files"]):
        raise UserError(f"{folder}/{name}: was not saved with the run, and may change its answers; move it elsewhere")
    return result


def fingerprint(result: dict) -> str:
    """Hash of what a run answers by: its files, its labels in their order, its temperature and its stages."""
    what = [result["files"], result["data"]["labels"], result["calibration"]["temperature"]]
    what += result["model"].get("stages", [])
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def stage_names(result: dict) -> list[str]:
    """Of a cascade, in the order they are asked; empty for a run of one model."""
    return [stage["name"] for stage in _mapping(result.get("model")).get("stages", [])]


def _added(folder: Path, saved: dict[str, str]) -> Iterator[str]:
    """Files that libraries could take for a part of the model."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        own = any(re.fullmatch(OWN_FOLDERS, part) for part in name.parts[:1] if len(name.parts) > 1 or path.is_dir())
        beside = len(name.parts) == 1 and re.fullmatch(BESIDE, name.name, re.IGNORECASE)
        if (path.is_file() or path.is_symlink()) and not own and not beside and str(name) not in saved:
            yield str(name)


def _of_labels(result: dict) -> dict[str, bool]:
    """Key of what is read before a model is loaded -> whether its value is of the kind that a training writes."""
    data, calibration = _mapping(result.get("data")), _mapping(result.get("calibration"))
    temperature, curve = calibration.get("temperature"), calibration.get("curve")
    return {
        "script": result.get("script") in SCRIPTS,
        "data.labels": _texts(data.get("labels")) and len(data["labels"]) > 1,
        "data.columns": _texts(data.get("columns", [])),
        "calibration.temperature": _number(temperature) and temperature > 0,
        "calibration.curve": isinstance(curve, list)
        and all(isinstance(point, list) and len(point) > 2 and all(map(_number, point)) for point in curve),
    }


def _of_model(result: dict) -> dict[str, bool]:
    """As `_of_labels`, of what is read with the model."""
    files, model, test = (_mapping(result.get(key)) for key in ("files", "model", "test"))
    return {
        "task": isinstance(result.get("task"), str),
        "name": isinstance(result.get("name"), str),
        "files": bool(files) and _texts(list(files.values())),
        "model": isinstance(model.get("base"), str) and isinstance(model.get("fingerprint"), str | None),
        "test": _number(test.get("accuracy")) and _number(test.get("rows")),
    }


def _refuse_odd(folder: Path, checks: dict[str, bool]) -> None:
    for key, sound in checks.items():
        if not sound:
            raise UserError(
                f"{folder}/metrics.json: `{key}` is missing or not what a training writes; copy the run's folder again"
            )


def _mapping(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def caveat(result: dict) -> str | None:
    """What whoever uses a run must know first; None where there is nothing."""
    if result["data"].get("source") == "sample":
        return "trained on the invented sample, so it knows nothing of finance and its labels show only that it runs"
    return None
