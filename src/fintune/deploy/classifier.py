"""A finished run as a function from texts to labels, whatever kind of model it holds."""

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fintune.data.inputs import Input, input_fault, wanted
from fintune.errors import UserError, quiet_libraries
from fintune.results.verify import caveat, verified_result

# scikit-learn and the model libraries take seconds to import: only `from_pretrained` and a call do


class Classifier:
    """Labels texts with a finished run: `Classifier.from_pretrained("runs/topic/tiny").predict(["Oil climbs 3 %"])`.

    `predict`, `predict_proba` and `classes_` are scikit-learn's, except that a single string gives a single answer.
    A run whose task has columns takes mappings in place of strings: `{"text": "Oil climbs 3 %", "ticker": "XOM"}`.

    Attributes:
        names: the label names, in the order of the probabilities.
        columns: what the model reads of a row beside its text.
        calibration: of the run's metrics.json; see fintune/scoring/calibration.py.
        scorer: the model; see fintune/scoring/scorer.py.
        caveat: what whoever uses the answers must know first; None where there is nothing.
    """

    def __init__(self, result: dict, scorer):
        """
        Args:
            result: metrics.json of the run.
        """
        self.names, self.calibration, self.scorer = result["data"]["labels"], result["calibration"], scorer
        self.columns = result["data"].get("columns", [])  # absent from runs that were trained before there were any
        self.caveat = caveat(result)
        accuracy, rows = result["test"]["accuracy"], result["test"]["rows"]
        self._about = f"{result['task']}/{result['name']}, accuracy {accuracy:.4f} on {rows:,} test rows"

    @classmethod
    def from_pretrained(cls, run_dir: str | Path, merge: bool = True, base: str | Path | None = None) -> "Classifier":
        """Load a run: its model with what that stands on, its templates and its temperature.

        A caveat is printed to standard error.

        Args:
            merge: add an adapter to the weights where they are float32: exact to 1e-6, and a score half as long.
            base: folder of the model that the run was trained on, where that was moved since.

        Raises:
            UserError: the folder is not a finished run or holds other files than were saved, or its model belongs to
                another base.
        """
        result = verified_result(Path(run_dir))
        with warnings.catch_warnings():
            quiet_libraries()
            from fintune.results.restore import load_scorer

            scorer = load_scorer(Path(run_dir), result, base=None if base is None else Path(base))
            if merge:
                scorer.merge()
        classifier = cls(result, scorer)
        if classifier.caveat:
            print(f"{run_dir}: {classifier.caveat}", file=sys.stderr)
        return classifier

    def __repr__(self) -> str:
        about = f"{self._about}; {', '.join(self.names)}"
        return f"Classifier({about}; {self.caveat})" if self.caveat else f"Classifier({about})"

    def __call__(self, texts: Input | Iterable[Input]) -> tuple[list[str] | str, np.ndarray]:
        """
        Args:
            texts: non-empty strings, or a single one; of a run with columns mappings of `text` and each column to
                such strings, or a single one. Control tokens inside them stay plain characters.

        Returns:
            The label of each text, and its calibrated probabilities, (texts, labels) float64 in the order of `names`;
            of a single one its label and (labels,) probabilities.

        Raises:
            UserError: a text or a column is missing, not a string, or empty; the columns leave no room for a text.
        """
        from fintune.scoring.calibration import scaled

        single = isinstance(texts, str | dict)
        inputs = [texts] if single else list(texts)
        for row, given in enumerate(inputs):
            if fault := self.fault(given):
                raise UserError(f"text {row}: {fault}; {self.wanted}")
        if self.columns:  # in the task's order, in which an encoder reads them
            inputs = [{name: given[name] for name in ("text", *self.columns)} for given in inputs]
        probabilities = scaled(self.scorer.probabilities(inputs), self.calibration["temperature"])
        labels = [self.names[label] for label in probabilities.argmax(axis=1)]
        return (labels[0], probabilities[0]) if single else (labels, probabilities)

    def fault(self, given: object) -> str | None:
        """Why something cannot be labelled; None where it can."""
        return input_fault(given, self.columns) or self.scorer.encoder.fault(given)

    @property
    def wanted(self) -> str:
        """What this run takes, for a message after a `fault`."""
        return wanted(self.columns)

    @property
    def classes_(self) -> np.ndarray:
        """(labels,) names in the order of `predict_proba`'s columns: the task's, not the alphabet's."""
        return np.array(self.names)

    def predict(self, texts: Input | Iterable[Input]) -> np.ndarray | str:
        """(texts,) labels, or the label of a single one; see `__call__`."""
        labels, _ = self(texts)
        return labels if isinstance(texts, str | dict) else np.array(labels, dtype=self.classes_.dtype)

    def predict_proba(self, texts: Input | Iterable[Input]) -> np.ndarray:
        """(texts, labels) calibrated probabilities, or (labels,) of a single one; see `__call__`."""
        return self(texts)[1]

    @property
    def max_length(self) -> int | None:
        """Tokens of a prompt or text, of which longer ones lose their end; None where texts are read whole."""
        return self.scorer.encoder.max_length

    @property
    def truncated_texts(self) -> int:
        """How many texts were truncated to `max_length` so far."""
        return self.scorer.encoder.truncated_texts

    def threshold(self, target_accuracy: float) -> float:
        """The confidence from which on the run's validation rows were right in that share; see `threshold_for`."""
        from fintune.scoring.calibration import threshold_for

        return threshold_for(self.calibration, target_accuracy)
