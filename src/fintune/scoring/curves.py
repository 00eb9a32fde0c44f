"""Figures of confidence against correctness; numpy alone, so that comparing runs loads no model library."""

import numpy as np


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Mean gap of confidence and accuracy over equal-width bins, weighted by rows (Guo et al. 2017, section 2)."""
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def ece_interval(confidence: np.ndarray, correct: np.ndarray, bins: int = 15, draws: int = 1000) -> list[float]:
    """95 % interval of the calibration error, by a Bayesian bootstrap (Rubin 1981) of its bins.

    Each bin's accuracy is drawn as its rows, with half a right and half a wrong one added (Jeffreys' prior), allow:
    two right rows are no certainty. The error of few rows is large by chance alone, and so is its interval.
    """
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    rows, right, sure = (np.bincount(bin_of, weights=w, minlength=bins) for w in (None, correct, confidence))
    accuracy = np.random.default_rng(0).beta(right + 0.5, rows - right + 0.5, size=(draws, bins))
    errors = np.abs(sure - rows * accuracy).sum(axis=1) / len(confidence)
    found = expected_calibration_error(confidence, correct, bins)
    low, high = np.quantile(errors, [0.025, 0.975])
    return [float(min(low, found)), float(max(high, found))]


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, rows) of bins of confidence that hold equally many rows, up to ties.

    Equal counts, not equal widths: no bin is two rows that jump to 0 or 100 %.
    """
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)))
    bin_of = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, max(0, len(edges) - 2))
    return [
        (float(confidence[bin_of == b].mean()), float(correct[bin_of == b].mean()), int((bin_of == b).sum()))
        for b in np.unique(bin_of)
    ]


def coverage_risk(confidence: np.ndarray, correct: np.ndarray, points: int = 150) -> list[tuple[float, float]]:
    """(share of rows answered, share of those that are wrong), the most confident rows first, from 2 % of them on.

    Rows of equal confidence are answered together, so their order in the file plays no part. At most `points` of the
    curve are kept, evenly spread.
    """
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    risk = np.cumsum(~correct[order]) / answered
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    ends = ends[answered[ends] >= 0.02 * len(order)]
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, min(points, len(ends))).round().astype(int))]
    return [(float(answered[i] / len(order)), float(risk[i])) for i in ends]
