"""What labelling adds to a row, and which rows cannot be labelled; shared by files and streams."""

import hashlib
import sqlite3
import sys
from pathlib import Path

import numpy as np

from fintune.data.inputs import Input, key_of
from fintune.data.rows import Row
from fintune.deploy.classifier import Classifier

SUM = 1e-9  # by which probabilities that are sound may miss 1, in float64
MOST_IN_MEMORY = 1_000_000  # texts of a stream whose scores are kept, some 200 MB; then the cache is emptied


def added_columns(names: list[str], prefix: str, staged: bool) -> list[str]:
    """The columns that labelling adds to a row.

    Args:
        names: the label names, in the order of the probabilities.
        prefix: put before each column's name.
        staged: whether the run is a cascade, whose answers name their stage.
    """
    probabilities = (f"probability_{name}" for name in names)
    columns = "label", "confidence", *probabilities, "abstained", *["stage"] * staged, "truncated", "rejected"
    return [prefix + name for name in columns]


class Answers:
    """Turns inputs into the columns that are added to a row; the same is scored once, also across a restart."""

    def __init__(self, classifier: Classifier, threshold: float, prefix: str, store: str | Path = ":memory:"):
        """
        Args:
            threshold: confidence below which the model abstains.
            prefix: put before the added columns' names.
            store: SQLite file of the scores.
        """
        self.classifier, self.threshold = classifier, threshold
        self.columns = added_columns(classifier.names, prefix, bool(classifier.stages))
        self.most = MOST_IN_MEMORY if store == ":memory:" else sys.maxsize
        self.scored = 0
        self.database = sqlite3.connect(store)
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS scores "
            "(text BLOB PRIMARY KEY, probabilities BLOB, truncated INTEGER, stage INTEGER)"
        )

    def __call__(self, inputs: list[Input]) -> list[dict]:
        keys = [hashlib.blake2b(key_of(given), digest_size=16).digest() for given in inputs]
        known: dict[bytes, tuple[bytes, int, int]] = {}
        for key in set(keys):
            wanted = "SELECT probabilities, truncated, stage FROM scores WHERE text = ?"
            found = self.database.execute(wanted, (key,)).fetchone()
            if found and self._is_sound(*found):  # a disk may have damaged it
                known[key] = found
        new = {key: given for key, given in zip(keys, inputs, strict=True) if key not in known}
        if new:
            self.scored += len(new)
            if self.scored > self.most:
                self.database.execute("DELETE FROM scores")
                self.scored = len(new)
            probabilities, truncated, stages = self.classifier.answers(list(new.values()))
            scores = map(np.ndarray.tobytes, probabilities)
            found = zip(scores, truncated.tolist(), stages.tolist(), strict=True)
            known |= dict(zip(new, found, strict=True))
            with self.database:
                rows = [(key, *known[key]) for key in new]
                self.database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)
        return [self._columns(*known[key]) for key in keys]

    def of_rows(self, rows: list[Row]) -> list[dict]:
        """The columns of each row; one that cannot be labelled has only `rejected`, which says why."""
        found = iter(self([row.text for row in rows if row.fault is None]))
        return [self._rejected(row.fault) if row.fault else next(found) for row in rows]

    def _columns(self, scores: bytes, truncated: int, stage: int) -> dict:
        classifier, probabilities = self.classifier, np.frombuffer(scores)
        label, confidence = classifier.names[probabilities.argmax()], float(probabilities.max())
        values = [label, confidence, *map(float, probabilities)]
        values += [classifier.abstains(confidence, stage, self.threshold)]
        values += [classifier.stage(stage)] * bool(classifier.stages) + [bool(truncated), None]
        return dict(zip(self.columns, values, strict=True))

    def _is_sound(self, scores: bytes, truncated: int, stage: int) -> bool:
        names, stages = len(self.classifier.names), len(self.classifier.stages)
        sums = len(scores) == 8 * names and abs(np.frombuffer(scores).sum() - 1) < SUM
        return bool(sums) and truncated in (0, 1) and stage in range(stages + 1)

    def _rejected(self, reason: str) -> dict:
        return dict.fromkeys(self.columns) | {self.columns[-1]: reason}


def judge(rows: list[Row], classifier: Classifier) -> list[Row]:
    """The same rows, with the fault of each that cannot be labelled."""
    for row in rows:
        row.fault = row.fault or classifier.fault(row.text)
    return rows
