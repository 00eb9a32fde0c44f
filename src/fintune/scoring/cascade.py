"""A cascade of scorers: a text goes from stage to stage until one is confident enough of its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fintune.data.inputs import Input
from fintune.errors import UserError
from fintune.scoring.calibration import scaled
from fintune.scoring.guarantee import route
from fintune.scoring.metrics import accuracy_interval
from fintune.scoring.scorer import Scorer


@dataclass
class Stage:
    """One model of a cascade.

    Attributes:
        name: of its run.
        temperature: that calibrates it.
        threshold: calibrated confidence from which its answer stands.
    """

    name: str
    scorer: Scorer
    temperature: float
    threshold: float

    def scores(self, inputs: Sequence[Input], progress: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(texts, labels) calibrated; (texts,) whether the end of each was not read."""
        scores, truncated = self.scorer.scores(inputs, progress)
        return scaled(scores, self.temperature), truncated


class CascadeInput:
    """What stages read together; see `fintune.scoring.scorer.Encoder`."""

    def __init__(self, stages: list[Stage]):
        self._encoders = [stage.scorer.encoder for stage in stages]

    @property
    def max_length(self) -> int | None:
        """The shortest of the stages'; None where all read texts whole."""
        return min((encoder.max_length for encoder in self._encoders if encoder.max_length), default=None)

    def fault(self, given: Input) -> str | None:
        """Of the first stage that could not read it, since any of them may have to."""
        return next((fault for encoder in self._encoders if (fault := encoder.fault(given))), None)


class CascadeScorer:
    """Scores texts stage by stage, each stage seeing what those before it left; see `fintune.scoring.scorer.Scorer`.

    Its probabilities are calibrated already: by the temperature of the stage that they come from.
    """

    def __init__(self, stages: list[Stage]):
        self.stages, self.encoder = stages, CascadeInput(stages)
        self._stage_of = np.empty(0, int)  # of the texts scored last

    @property
    def exact(self) -> bool:
        """Whether every stage is."""
        return all(stage.scorer.exact for stage in self.stages)

    def answers(
        self, inputs: Sequence[Input], progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Args:
            progress: title of a progress bar for each stage; None shows none.

        Returns:
            (texts, labels) probabilities of the stage that answers, of the last one where none may; (texts,) whether
            that stage did not read the text's end; (texts,) which stage that is, the number of stages where none may.
        """
        found, truncated = None, np.zeros(len(inputs), bool)

        def ask(number: int, rows: np.ndarray) -> np.ndarray:
            nonlocal found
            stage = self.stages[number]
            title = progress and f"{progress}, {stage.name}"
            scores, cut = stage.scores([inputs[row] for row in rows], title)
            found = np.empty((len(inputs), scores.shape[1])) if found is None else found
            found[rows], truncated[rows] = scores, cut
            return scores.max(axis=1, initial=0.0)

        stage_of = route([stage.threshold for stage in self.stages], len(inputs), ask)
        return found, truncated, stage_of

    def scores(self, inputs: Sequence[Input], progress: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(texts, labels) and (texts,) of `answers`."""
        found, truncated, self._stage_of = self.answers(inputs, progress)
        return found, truncated

    def probabilities(self, inputs: Sequence[Input], progress: str | None = None) -> np.ndarray:
        """(texts, labels) of `answers`."""
        return self.scores(inputs, progress)[0]

    def further_metrics(self, inputs: Sequence[Input], correct: np.ndarray) -> dict:
        """Of the texts scored last: the share that each stage labelled, and how much of what is labelled is wrong."""
        labelled = self._stage_of < len(self.stages)
        wrong, rows = int((labelled & ~correct).sum()), int(labelled.sum())
        shares = {stage.name: float((self._stage_of == n).mean()) for n, stage in enumerate(self.stages)}
        return {
            "cascade": {
                "answered_by": shares,
                "abstained": float((~labelled).mean()),
                "error": wrong / rows if rows else None,
                "error_interval": [1 - share for share in accuracy_interval(correct[labelled])[::-1]]
                if rows
                else None,
            }
        }

    def merge(self) -> None:
        """Merge the adapter of every stage that has one."""
        for stage in self.stages:
            stage.scorer.merge()

    def save_pretrained(self, folder: Path) -> None:
        """Nothing: the stages are runs of their own, which recipe.yaml names."""

    def save_merged(self, folder: Path, run_dir: Path) -> None:
        """
        Raises:
            UserError: always; no format holds several models.
        """
        raise UserError(f"{run_dir}: is a cascade, which is no one model; export its stages")
