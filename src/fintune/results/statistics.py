"""Which differences between runs on the same rows are real: bootstrap, McNemar's test, Holm's correction."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from statsmodels.stats.multitest import multipletests

from fintune.scoring.paired import exact_mcnemar

ALPHA = 0.05
RESAMPLES = 10_000


@dataclass(frozen=True)
class Pair:
    """Two cells on the same rows; `difference` and its interval are accuracy of the first minus the second, in 0..1.

    Attributes:
        first, second: positions of the cells.
        only_first, only_second: rows that one cell's representative labels right and the other's does not.
        p: exact McNemar; p_holm: after Holm's correction over the group's pairs.
    """

    first: int
    second: int
    difference: float
    interval: tuple[float, float]
    only_first: int
    only_second: int
    p: float
    p_holm: float
    rows: int

    @property
    def real(self) -> bool:
        """Both tests must say so: the corrected McNemar, and an interval without zero."""
        low, high = self.interval
        return self.p_holm < ALPHA and not low <= 0 <= high

    @property
    def verdict(self) -> str:
        return f"real at n = {self.rows:,}" if self.real else "inside noise"


def resampled_accuracies(*cells: np.ndarray) -> list[np.ndarray]:
    """Accuracy of each cell in bootstrap resamples of the rows, the same rows for all, and of each cell's seeds.

    Rows with the same pattern of right and wrong answers are drawn together, by one multinomial: the same
    distribution as drawing row by row, without n numbers per resample. With few seeds k their part of the spread is
    understated by (k - 1) / k.

    Args:
        cells: (seeds, n) bool each, whether a row is labelled right.

    Returns:
        (RESAMPLES,) accuracies for each cell; the generator is seeded, so the same runs give the same numbers.
    """
    rng = np.random.default_rng(0)
    n = cells[0].shape[1]
    patterns, counts = np.unique(np.vstack(cells), axis=1, return_counts=True)
    drawn = rng.multinomial(n, counts / n, size=RESAMPLES)
    hits = np.split(drawn @ patterns.T.astype(float) / n, np.cumsum([len(cell) for cell in cells])[:-1], axis=1)
    seeds = [rng.multinomial(len(cell), np.full(len(cell), 1 / len(cell)), size=RESAMPLES) for cell in cells]
    return [(hit * seed).sum(axis=1) / seed.shape[1] for hit, seed in zip(hits, seeds, strict=True)]


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """Ends of the central 95 %."""
    low, high = np.percentile(values, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)


def compare_pairs(correct: list[np.ndarray], representatives: list[np.ndarray]) -> list[Pair]:
    """Every pair of a group's cells: bootstrap of the difference over all seeds, exact McNemar, Holm's correction.

    Args:
        correct: (seeds, n) bool for each cell.
        representatives: (n,) bool for each cell, of one of its runs: McNemar's test takes one answer per row.
    """
    found = []
    for first, second in combinations(range(len(correct)), 2):
        alone = exact_mcnemar(representatives[first], representatives[second])
        means = resampled_accuracies(correct[first], correct[second])
        found.append((first, second, percentiles(means[0] - means[1]), *alone))
    corrected = multipletests([p for *_, p in found], alpha=ALPHA, method="holm")[1] if found else []
    return [
        Pair(
            first=first,
            second=second,
            difference=float(correct[first].mean() - correct[second].mean()),
            interval=interval,
            only_first=only_first,
            only_second=only_second,
            p=p,
            p_holm=float(p_holm),
            rows=correct[first].shape[1],
        )
        for (first, second, interval, only_first, only_second, p), p_holm in zip(found, corrected, strict=True)
    ]
