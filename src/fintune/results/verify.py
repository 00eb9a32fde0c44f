"""A finished run is read again: its metrics.json, and whether its files are those that were scored.

Imports nothing heavy: a command asks here before it loads a model.
"""

import hashlib
import json
from pathlib import Path

from fintune.errors import UserError
from fintune.files import faults

CASCADE = "fintune cascade"  # where other runs have the script that trained them
SCHEMA = 2  # of metrics.json; a run of another one is refused


def read_result(folder: Path) -> dict:
    """metrics.json of a finished run.

    Raises:
        UserError: the folder is not a finished run, or one of another version.
    """
    if not ((folder / "recipe.yaml").is_file() and (folder / "metrics.json").is_file()):
        raise UserError(
            f"{folder}: not a finished run (recipe.yaml, metrics.json); name a folder such as runs/sentiment/tiny"
        )
    try:
        result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder}/metrics.json: not valid JSON ({error}); train the run again") from error
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{folder}/metrics.json: schema {schema}, this version reads {SCHEMA}; train the run again")
    return result


def verified_result(folder: Path) -> dict:
    """metrics.json of a finished run whose weights, tokenizer, templates and recipe are those that were scored.

    Raises:
        UserError: as `read_result`; a file is missing or has other bytes.
    """
    result = read_result(folder)
    for name, what in faults(folder, result["files"]):
        raise UserError(f"{folder}/{name}: {what}; copy the run's folder whole, or train it again")
    return result


def fingerprint(result: dict) -> str:
    """Hash of what a run answers by: its files, its labels in their order, its temperature and its stages."""
    what = [result["files"], result["data"]["labels"], result["calibration"]["temperature"]]
    what += result["model"].get("stages", [])
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def stage_names(result: dict) -> list[str]:
    """Of a cascade, in the order they are asked; empty for a run of one model."""
    return [stage["name"] for stage in result["model"].get("stages", [])]


def caveat(result: dict) -> str | None:
    """What whoever uses a run must know first; None where there is nothing."""
    if result["data"].get("source") == "sample":
        return "trained on the invented sample, so it knows nothing of finance and its labels show only that it runs"
    return None
