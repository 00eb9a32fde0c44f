"""A finished run as a function from texts to labels, whatever kind of model it holds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fintune.data.rows import fault_of
from fintune.errors import UserError
from fintune.results.verify import verified_result

# scikit-learn and the model libraries take seconds to import: only `from_pretrained` and a call do


@dataclass
class Classifier:
    """Labels texts with a finished run: `Classifier.from_pretrained("runs/topic/tiny")(["Oil climbs 3 %"])`.

    Attributes:
        names: the label names, in the order of the probabilities.
        calibration: of the run's metrics.json; see fintune/scoring/calibration.py.
        scorer: the model; see fintune/scoring/scorer.py.
    """

    names: list[str]
    calibration: dict
    scorer: object

    @classmethod
    def from_pretrained(cls, run_dir: str | Path, merge: bool = True) -> "Classifier":
        """Load a run of train_sft.py or train_cls.py: its base, its adapter, its templates and its temperature.

        Args:
            merge: add the adapter to the weights where they are float32: exact to 1e-6, and a score half as long.

        Raises:
            UserError: the folder is not a finished run, is one of train_linear.py, which keeps no weights, holds
                other files than were saved, or its adapter belongs to another base.
        """
        result = verified_result(Path(run_dir))
        from fintune.results.restore import load_scorer

        scorer = load_scorer(Path(run_dir), result)
        if merge:
            scorer.merge()
        return cls(result["data"]["labels"], result["calibration"], scorer)

    def __call__(self, texts: list[str]) -> tuple[list[str], np.ndarray]:
        """
        Args:
            texts: non-empty strings; control tokens inside them stay plain characters.

        Returns:
            The label of each text, and its calibrated probabilities, (texts, labels) float64 in the order of `names`.

        Raises:
            UserError: a text is not a string, or empty.
        """
        from fintune.scoring.calibration import scaled

        for row, text in enumerate(texts):
            if fault := fault_of(text):
                raise UserError(f"text {row}: {fault}; every text must be a non-empty string")
        probabilities = scaled(self.scorer.probabilities(list(texts)), self.calibration["temperature"])
        return [self.names[label] for label in probabilities.argmax(axis=1)], probabilities

    @property
    def max_length(self) -> int:
        """Tokens of a prompt or text; longer texts lose their end."""
        return self.scorer.encoder.max_length

    @property
    def truncated_texts(self) -> int:
        """How many texts were truncated to `max_length` so far."""
        return self.scorer.encoder.truncated_texts

    def threshold(self, target_accuracy: float) -> float:
        """The confidence from which on the run's validation rows were right in that share; see `threshold_for`."""
        from fintune.scoring.calibration import threshold_for

        return threshold_for(self.calibration, target_accuracy)
