"""Finished runs as they are stored on disk: metrics.json and predictions.jsonl, read and checked against each other.

Loads neither torch nor a model.
"""

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fintune.errors import UserError
from fintune.files import finish_move, read_json
from fintune.results.verify import SCHEMA

RUN_FILES = {"metrics.json", "recipe.yaml", "predictions.jsonl", ".lock"}  # one of them tells a run's folder
PUBLIC = ("mirror", "hub")  # two ways to the same published files


@dataclass(frozen=True)
class LeftOut:
    """A folder that is not compared, and the reason, in one line."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"left out: {self.path}: {self.reason}"


@dataclass
class Run:
    """A finished run.

    Attributes:
        path: folder, relative to the one that was searched.
        result: its metrics.json.
        rows: (file, line, text) of each row, in order.
        truth, answers: (n,) label ids.
        probabilities: (n, labels), in label id order.
    """

    path: str
    result: dict
    rows: list[tuple[str, int, str]]
    truth: np.ndarray
    answers: np.ndarray
    probabilities: np.ndarray

    @property
    def metrics(self) -> dict:
        return self.result[self.result["split"]]

    @property
    def name(self) -> str:
        """The run's name without the seed: `tiny-seed1` is a run of `tiny`."""
        return printable(re.sub(r"-seed-?\d+$", "", self.result["name"]))

    @property
    def identity(self) -> dict:
        """What makes two runs the same; see fintune/recipe/identity.py."""
        return self.result["identity"]

    @property
    def seed(self) -> int | None:
        """None for a linear model, which has none."""
        return self.identity["seed"]

    @property
    def source(self) -> str:
        """`published`, `file` or `sample`."""
        source = self.result["data"]["source"]
        return "published" if source in PUBLIC else source

    @property
    def data_key(self) -> tuple:
        """Runs are compared only where these agree: task, kind of source, hash of the data, split, study."""
        return self.result["task"], self.source, self.result["data"]["sha256"], self.result["split"], self.study

    @property
    def study(self) -> str:
        """`ablations` for the runs of `fintune ablations`, which would swamp a table of models."""
        return "ablations" if "ablations" in Path(self.path).parts else ""

    @cached_property
    def row_key(self) -> str:
        """Hash of the rows with their labels, in order."""
        return hashlib.sha256(repr((self.rows, self.truth.tolist())).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def cell_key(self) -> str:
        """Equal for two runs of one name that differ in nothing but the seed."""
        return json.dumps([self.name, {**self.identity, "seed": None}], sort_keys=True)

    @property
    def correct(self) -> np.ndarray:
        return self.answers == self.truth

    @property
    def confidence(self) -> np.ndarray:
        """(n,) probability of the label that was answered."""
        return self.probabilities[np.arange(len(self.answers)), self.answers]


def read_runs(folder: Path) -> tuple[list[Run], list[LeftOut]]:
    """Every finished run under a folder, and every unfinished, broken or foreign one by name."""
    runs, left_out = [], []
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(place)
        here, where = Path(root), printable(os.path.relpath(root, folder))
        if "staging" in folders:
            try:
                finish_move(here)
                files = [path.name for path in here.iterdir() if path.is_file()]
            except UserError as error:
                left_out.append(LeftOut(where, printable(str(error))))
                folders.clear()
                continue
        if "metrics.json" in files and any((here / "staging").glob("*")):
            reason = "a newer result whose save was interrupted; the older one counts"
            left_out.append(LeftOut(f"{where}/staging", reason))
        checkpoints = any(
            re.fullmatch(r"checkpoint-\d+", name) and not (here / name / "metrics.json").exists() for name in folders
        )
        if checkpoints or RUN_FILES & set(files):  # of a run's own folders none holds another run
            folders[:] = [n for n in folders if n not in ("staging", "base") and not n.startswith("checkpoint-")]
        folders.sort()
        if "metrics.json" in files:
            try:
                runs.append(read_run(here, where))
            except _Unreadable as error:
                left_out.append(LeftOut(where, printable(str(error))))
        elif checkpoints or {"recipe.yaml", "predictions.jsonl"} & set(files):
            left_out.append(LeftOut(where, "no metrics.json: still training, or stopped before it was scored"))
    return runs, left_out


class _Unreadable(Exception):
    """Why a run cannot be compared."""


def read_run(folder: Path, where: str) -> Run:
    """A run's metrics and predictions, checked against each other.

    Raises:
        _Unreadable: metrics.json or predictions.jsonl is missing, incomplete, of another schema, or they disagree.
    """
    result = _read_json(folder / "metrics.json")
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        found = result.get("schema") if isinstance(result, dict) else None
        raise _Unreadable(f"metrics.json has schema {found!r}, this version reads {SCHEMA}; train the run again")
    try:
        split = result["split"]
        metrics, labels = result[split], result["data"]["labels"]
        texts = (split, result["task"], result["name"], result["data"]["source"], result["data"]["sha256"], *labels)
        numbers = (metrics["accuracy"], metrics["macro_f1"], metrics["rows"], *metrics["accuracy_interval"])
        sound = all(isinstance(text, str) for text in texts) and all(map(math.isfinite, numbers)) and len(labels) > 1
        sound = sound and isinstance(result["identity"]["seed"], int | None)
    except (KeyError, TypeError) as error:
        raise _Unreadable(
            f"metrics.json is incomplete ({type(error).__name__}: {error}); train the run again"
        ) from error
    if not sound or len(metrics["accuracy_interval"]) != 2:
        raise _Unreadable("metrics.json holds a name that is not text or a number that is not finite; train again")

    rows, truth, answers, probabilities = _read_predictions(folder / "predictions.jsonl", labels)
    if len(rows) != metrics["rows"]:
        raise _Unreadable(
            f"predictions.jsonl has {len(rows)} rows, metrics.json says {metrics['rows']}; score it again"
        )
    accuracy = float((truth == answers).mean())
    if abs(accuracy - metrics["accuracy"]) > 1e-6:
        raise _Unreadable(
            f"predictions.jsonl gives accuracy {accuracy:.4f}, metrics.json {metrics['accuracy']:.4f}; score it again"
        )
    return Run(where, result, rows, truth, answers, probabilities)


def _read_json(path: Path) -> object:
    try:
        return read_json(path)
    except OSError as error:
        raise _Unreadable(f"{path.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _Unreadable(f"{path.name} is not valid JSON ({error}); train the run again") from error


def _read_predictions(path: Path, labels: list[str]) -> tuple[list, np.ndarray, np.ndarray, np.ndarray]:
    ids = {label: index for index, label in enumerate(labels)}
    rows, truth, answers, probabilities = [], [], [], []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines(), which also splits at U+2028
    except FileNotFoundError as error:
        raise _Unreadable("no predictions.jsonl beside metrics.json; score it again") from error
    except OSError as error:
        raise _Unreadable(f"predictions.jsonl cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise _Unreadable(f"predictions.jsonl is not UTF-8 ({error.reason}); score it again") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            rows.append((str(row["file"]), int(row["line"]), str(row["text"])))
            truth.append(ids[row["label"]])
            answers.append(ids[row["prediction"]])
            probabilities.append([float(row["probabilities"][label]) for label in labels])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = f"{type(error).__name__}: {error}"
            raise _Unreadable(f"predictions.jsonl:{number} cannot be read ({why}); score it again") from error
    if not rows:
        raise _Unreadable("predictions.jsonl is empty; score it again")
    array = np.array(probabilities)
    off = ~(np.isfinite(array).all(axis=1) & (array >= 0).all(axis=1) & (abs(array.sum(axis=1) - 1) < 1e-3))
    if off.any():
        raise _Unreadable(
            f"predictions.jsonl: {off.sum()} rows, the first of them row {off.argmax() + 1}, hold probabilities that "
            "are not a distribution; score it again"
        )
    return rows, np.array(truth), np.array(answers), array


def machine_of(result: dict) -> str:
    """Processor, cores and GPU of a result, and how many runs shared them, in words."""
    machine = result.get("machine") or {}
    cores = machine.get("cores")
    parts = (
        machine.get("processor") or "unknown processor",
        "1 core" if cores == 1 else f"{cores or '?'} cores",
        machine.get("gpu") or "no GPU",
    )
    shared = machine.get("runs_at_once", 1)
    return printable(", ".join(map(str, parts)) + f", {shared} runs at once" * (shared > 1))


def number_at(values: object, *keys: str) -> float | None:
    """A finite number in nested mappings; None where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    usable = isinstance(values, int | float) and not isinstance(values, bool) and math.isfinite(values)
    return values if usable else None


def printable(text: str) -> str:
    """One line without control characters: names come from files and end up in a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
