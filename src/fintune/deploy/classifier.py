"""A finished run as a function from texts to labels, whatever kind of model it holds."""

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from fintune.data.inputs import Input, input_fault, wanted
from fintune.errors import UserError, quiet_libraries
from fintune.results.verify import caveat, stage_names, verified_result

# scikit-learn and the model libraries take seconds to import: only `from_pretrained` and a call do

Long = Literal["cut", "split"]


class Classifier:
    """Labels texts with a finished run: `Classifier.from_pretrained("runs/topic/tiny").predict(["Oil climbs 3 %"])`.

    `predict`, `predict_proba` and `classes_` are scikit-learn's, except that a single string gives a single answer.
    A run whose task has columns takes mappings in place of strings: `{"text": "Oil climbs 3 %", "ticker": "XOM"}`.

    Attributes:
        names: the label names, in the order of the probabilities.
        columns: what the model reads of a row beside its text.
        calibration: of the run's metrics.json; see fintune/scoring/calibration.py.
        scorer: the model; see fintune/scoring/scorer.py.
        stages: names of a cascade's stages; empty for a run of one model.
        long: how a text of over `max_length` tokens is read; see `from_pretrained`.
        truncated_texts: how many texts were scored so far whose end was not read.
        caveat: what whoever uses the answers must know first; None where there is nothing.
    """

    def __init__(self, result: dict, scorer, long: Long = "cut"):
        """
        Args:
            result: metrics.json of the run.
        """
        self.names, self.calibration, self.scorer = result["data"]["labels"], result["calibration"], scorer
        self.long, self.stages, self.truncated_texts = long, stage_names(result), 0
        if self.stages and long == "split":
            raise UserError("--long split: stages of a cascade read windows of different lengths; leave it out")
        self.columns = result["data"].get("columns", [])  # absent from runs that were trained before there were any
        self.caveat = caveat(result)
        accuracy, rows = result["test"]["accuracy"], result["test"]["rows"]
        self._about = f"{result['task']}/{result['name']}, accuracy {accuracy:.4f} on {rows:,} test rows"

    @classmethod
    def from_pretrained(
        cls, run_dir: str | Path, merge: bool = True, base: str | Path | None = None, long: Long = "cut"
    ) -> "Classifier":
        """Load a run: its model with what that stands on, its templates and its temperature.

        A caveat is printed to standard error.

        Args:
            merge: add an adapter to the weights where they are float32: exact to 1e-6, and a score half as long.
            base: folder of the model that the run was trained on, where that was moved since.
            long: "cut" reads of a text of over `max_length` tokens only the beginning that fits; "split" reads all of
                it in overlapping windows that fit, and averages the logarithms of their probabilities.

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
        classifier = cls(result, scorer, long)
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
        single = isinstance(texts, str | dict)
        probabilities, *_ = self.answers([texts] if single else list(texts))
        labels = [self.names[label] for label in probabilities.argmax(axis=1)]
        return (labels[0], probabilities[0]) if single else (labels, probabilities)

    def answers(self, inputs: list[Input]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Args:
            inputs: as in a call.

        Returns:
            (texts, labels) calibrated probabilities; (texts,) whether the end of each was not read, being over
            `max_length` tokens; (texts,) which of `stages` answers, their number where none may, of a run without
            stages 0.

        Raises:
            UserError: as in a call; the model's scores are NaN.
        """
        from fintune.scoring.calibration import scaled

        for row, given in enumerate(inputs):
            if fault := self.fault(given):
                raise UserError(f"text {row}: {fault}; {self.wanted}")
        inputs = self._ordered(inputs)
        if self.stages:
            probabilities, truncated, stages = self.scorer.answers(inputs)
        else:
            scores, truncated = self._scores(inputs)
            probabilities = scaled(scores, self.calibration["temperature"])
            stages = np.zeros(len(inputs), int)
        for row in np.flatnonzero(~np.isfinite(probabilities).all(axis=1)):
            raise UserError(
                f"text {row}, {str(inputs[row])[:60]!r}: the model's scores are no numbers, as where its weights are "
                "damaged or 16 bits overflow; evaluate the run, and train it again"
            )
        self.truncated_texts += int(truncated.sum())
        return probabilities, truncated, stages

    def abstains(self, confidence: float, stage: int, threshold: float) -> bool:
        """Whether an answer is marked as abstained: its confidence is below the threshold, or no stage may answer."""
        return confidence < threshold or (bool(self.stages) and stage == len(self.stages))

    def stage(self, number: int) -> str | None:
        """Name of a stage; None where none may answer."""
        return self.stages[number] if number < len(self.stages) else None

    def _ordered(self, inputs: Iterable[Input]) -> list[Input]:
        """The columns of each in the task's order, in which an encoder reads them."""
        names = ("text", *self.columns)
        return [{name: given[name] for name in names} if self.columns else given for given in inputs]

    def _scores(self, inputs: list[Input]) -> tuple[np.ndarray, np.ndarray]:
        """(texts, labels) probabilities without temperature; (texts,) whether the end of each was not read."""
        if self.long == "cut" or not inputs:
            return self.scorer.scores(inputs)
        from fintune.model.cut import windows

        parts = [windows(self.scorer.encoder, given) for given in inputs]
        scores, _ = self.scorer.scores([part for several in parts for part in several])
        starts = np.cumsum([0, *map(len, parts[:-1])])
        logs = np.log(scores.clip(np.finfo(float).tiny))
        means = np.add.reduceat(logs, starts) / np.array([[len(several)] for several in parts])
        shares = np.exp(means - means.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True), np.zeros(len(inputs), bool)

    def truncated(self, texts: Input | Iterable[Input]) -> np.ndarray | bool:
        """(texts,) whether the end of each is not read, see `answers`; or of a single one. Only a cascade scores them.

        Args:
            texts: as in a call, all of them sound.
        """
        single, split = isinstance(texts, str | dict), self.long == "split"
        inputs = self._ordered([texts] if single else texts)
        if self.stages:
            found = self.scorer.answers(inputs)[1]
        else:
            found = np.array([not split and self.scorer.encoder.is_cut(given) for given in inputs], bool)
        return bool(found[0]) if single else found

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

    def threshold(self, target_accuracy: float) -> float:
        """The confidence from which on the run's validation rows were right in that share; see `threshold_for`."""
        from fintune.scoring.calibration import threshold_for

        return threshold_for(self.calibration, target_accuracy)
