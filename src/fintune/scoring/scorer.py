"""One interface for every kind of model, one way to evaluate it and one way to calibrate it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from fintune.data.inputs import Input
from fintune.data.load import TaskData, inputs_of
from fintune.recipe.task import Task
from fintune.scoring.calibration import fit_temperature, scaled
from fintune.scoring.curves import ece_interval, expected_calibration_error
from fintune.scoring.metrics import LabelMetrics
from fintune.scoring.simple import simple_models


class Encoder(Protocol):
    """Turns texts, in a task with columns together with these, into what a model reads.

    Attributes:
        max_length: tokens; a longer text loses its end. None where texts are read whole.
    """

    max_length: int | None

    def fault(self, given: Input) -> str | None:
        """That its columns leave no room for a text; None where they do."""

    def is_cut(self, given: Input) -> bool:
        """Whether a text with its columns is too long for `max_length`, so that its end is not read."""

    def bounds(self, given: Input) -> list[int]:
        """At which characters of a text the tokens that there is room for begin, and where the last ends."""


class Scorer(Protocol):
    """A model that gives every label of a task a probability: `LabelScorer`, `EncoderScorer`, `LinearScorer`.

    Attributes:
        exact: whether it computes in float32 or finer, so that its weights give the same labels once more.
    """

    encoder: Encoder
    exact: bool

    def scores(self, inputs: Sequence[Input], progress: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(texts, labels) float64, in the order of `inputs` and of the label ids; (texts,) whether the end of each was
        not read.

        Args:
            progress: title of a progress bar; None shows none.
        """

    def probabilities(self, inputs: Sequence[Input], progress: str | None = None) -> np.ndarray:
        """(texts, labels) of `scores`."""

    def further_metrics(self, inputs: Sequence[Input], correct: np.ndarray) -> dict:
        """Figures that only this kind of model has, such as the share of greedy answers that are a label.

        Args:
            correct: (texts,) whether the answer to each, scored just before, is right.
        """

    def save_pretrained(self, folder: Path) -> None:
        """Write what was trained, and the tokenizer."""


def calibrate(scorer: Scorer, data: TaskData) -> dict:
    """One temperature, fitted on the validation split; see `fit_temperature`."""
    rows = data.splits["validation"]
    return fit_temperature(scorer.probabilities(inputs_of(rows), progress="calibrating"), rows["label"])


def evaluate(
    scorer: Scorer, task: Task, data: TaskData, temperature: float, split: str = "test"
) -> tuple[dict, list[dict]]:
    """Score a split.

    Args:
        temperature: what calibrates the probabilities; see fintune/scoring/calibration.py.

    Returns:
        (metrics, predictions): metrics of `LabelMetrics` with `accuracy_clean`, `ece_uncalibrated`, speed,
        `texts_truncated` and what `simple` models reach on the same rows; one prediction a row: file, line, text
        (and columns), label, prediction, clean, calibrated probabilities by label name.
    """
    rows = data.splits[split]
    inputs = inputs_of(rows)
    started = time.perf_counter()
    raw, truncated = scorer.scores(inputs, progress=f"scoring {split}")
    seconds = time.perf_counter() - started
    probabilities = scaled(raw, temperature)
    metrics = LabelMetrics().compute(predictions=probabilities, references=rows["label"], label_names=task.names)
    clean = data.clean if split == "test" else [True] * len(rows)
    answers = probabilities.argmax(axis=1)
    correct = answers == rows["label"]
    metrics["ece_uncalibrated"] = expected_calibration_error(raw.max(axis=1), correct)
    metrics["ece_uncalibrated_interval"] = ece_interval(raw.max(axis=1), correct)
    metrics["accuracy_clean"], metrics["rows_clean"] = float(correct[clean].mean()), int(sum(clean))
    metrics["seconds"], metrics["rows_per_second"] = seconds, len(rows) / seconds
    metrics["texts_truncated"] = int(truncated.sum())
    metrics["simple"] = simple_models(task, data, split, correct)
    metrics |= scorer.further_metrics(inputs, correct)
    predictions = [
        {
            "file": row["file"],
            "line": row["line"],
            "text": row["text"],
            **({"columns": row["columns"]} if task.columns else {}),
            "label": task.names[row["label"]],
            "prediction": task.names[answer],
            "clean": is_clean,
            "probabilities": dict(zip(task.names, map(float, scores), strict=True)),
        }
        for row, answer, is_clean, scores in zip(rows, answers, clean, probabilities, strict=True)
    ]
    return metrics, predictions
