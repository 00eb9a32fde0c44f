"""Thresholds of a cascade of models whose error among labelled rows stays below a bound, with a stated probability.

A row goes from stage to stage, the cheapest first, until one is confident enough; what the last is not confident of
is abstained. Half of the validation rows propose thresholds, the other half tests them. This is Pareto testing
(Laufer-Goldshtein et al. 2023, arXiv 2210.07913): Learn then Test with fixed-sequence testing (Angelopoulos et al.
2021, arXiv 2110.01052), in an order that other rows chose. It holds for rows drawn as the validation rows were.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

NEVER = np.inf  # threshold of a stage that answers nothing, and is not asked
POLICIES = 20_000  # sets of thresholds that are looked at: 27 a stage where there are three
SLACK = 0.01  # share of all rows that may be left unlabelled, beyond what cannot be helped, for the sake of cost
RISKS = np.linspace(0.1, 1.2, 23)  # times the bound: the errors on the first half at which policies are proposed
BOUNDS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Policy:
    """Thresholds and what they brought on the rows that tested them.

    Attributes:
        thresholds: confidence from which each stage answers; `NEVER` where it is left out.
        rows: how many tested them.
        labelled: share of these that got a label.
        errors, answered: wrong labels and labels.
        p_value: probability of so few errors or fewer if the error among labelled rows were above the bound.
        cost: seconds a row.
    """

    thresholds: tuple[float, ...]
    rows: int
    labelled: float
    errors: int
    answered: int
    p_value: float
    cost: float


@dataclass(frozen=True, eq=False)
class StageScores:
    """What a stage says of some rows.

    Attributes:
        confidence: (rows,) probability of its own answer.
        correct: (rows,) whether that answer is right.
        seconds: a row takes.
    """

    confidence: np.ndarray
    correct: np.ndarray
    seconds: float

    def at(self, rows: np.ndarray) -> "StageScores":
        """Of some of the rows."""
        return StageScores(self.confidence[rows], self.correct[rows], self.seconds)


def route(thresholds: Sequence[float], rows: int, ask: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """Ask stage after stage about the rows that those before it left.

    Args:
        ask: a stage, and places of rows -> its confidence in its answers to them. The last answer to a row stands,
            also where it is abstained.

    Returns:
        (rows,) the stage that answers, from 0; the number of stages where none may.
    """
    at, left = np.full(rows, len(thresholds)), np.arange(rows)
    for stage, threshold in enumerate(thresholds):
        if threshold == NEVER:
            continue
        sure = ask(stage, left) >= threshold
        at[left[sure]] = stage
        left = left[~sure]
        if not len(left):
            break
    return at


def stage_of(confidences: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """`route` of rows whose confidences, (stages, rows), are known."""
    known = np.asarray(confidences)
    return route(thresholds, known.shape[1], lambda stage, rows: known[stage, rows])


def choose(stages: list[StageScores], max_error: float, confidence: float, seed: int = 42) -> Policy | None:
    """The thresholds that label most rows, and of those within `SLACK` of it the cheapest, among what passes the test.

    With probability `confidence` over the validation rows, the error among labelled rows is at most `max_error`.

    Args:
        stages: the cheapest first, of the same rows in the same order.
        seed: of the halves.

    Returns:
        None where no thresholds pass.
    """
    rows = np.random.default_rng(seed).permutation(len(stages[0].correct))
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    proposing, testing = ([stage.at(half) for stage in stages] for half in (first, second))
    passed = []
    for thresholds in _proposed(proposing, max_error):
        policy = measured(testing, thresholds, max_error)
        if policy.p_value > 1 - confidence:
            break  # those behind it are not tested: that keeps the probability of any mistake below 1 - confidence
        passed.append(policy)
    if not passed:
        return None
    most = max(policy.labelled for policy in passed)
    return min((policy for policy in passed if policy.labelled >= most - SLACK), key=lambda policy: policy.cost)


def nearest(stages: list[StageScores], max_error: float, confidence: float, seed: int = 42) -> float | None:
    """The least bound above `max_error` that thresholds are found for; None where there is none up to 0.5."""
    return next((b for b in BOUNDS if b > max_error and choose(stages, b, confidence, seed)), None)


def measured(stages: list[StageScores], thresholds: tuple[float, ...], max_error: float) -> Policy:
    """What thresholds bring on these rows."""
    at = stage_of(np.stack([stage.confidence for stage in stages]), thresholds)
    answered, wrong, cost = int((at < len(stages)).sum()), 0, 0.0
    for number, (stage, threshold) in enumerate(zip(stages, thresholds, strict=True)):
        wrong += int((~stage.correct[at == number]).sum())
        cost += stage.seconds * float((at >= number).mean()) * (threshold < NEVER)
    p_value = float(binom.cdf(wrong, answered, max_error)) if answered else 1.0
    return Policy(thresholds, len(at), answered / len(at), wrong, answered, p_value, cost)


def _proposed(stages: list[StageScores], max_error: float) -> list[tuple[float, ...]]:
    """Thresholds worth testing, the surest first: at each of `RISKS`, the best that stays below it on these rows."""
    levels = max(2, int(POLICIES ** (1 / len(stages))))
    grids = [_levels(stage.confidence, levels) for stage in stages]
    rows = len(stages[0].correct)
    left = np.ones((1, rows), np.float32)  # of each policy so far, the rows that nobody has answered
    errors, cost = np.zeros(1), np.zeros(1)
    for stage, grid in zip(stages, grids, strict=True):
        answers = stage.confidence >= grid[:, None]
        wrong = (answers & ~stage.correct).astype(np.float32)
        asked = stage.seconds * left.mean(axis=1)[:, None] * (grid < NEVER)
        errors, cost = (errors[:, None] + left @ wrong.T).ravel(), (cost[:, None] + asked).ravel()
        left = (left[:, None, :] * ~answers).reshape(-1, rows)
    answered = rows - left.sum(axis=1)
    risk = errors / np.maximum(answered, 1)
    found = {}
    for bound in RISKS * max_error:
        usable = (risk <= bound) & (answered > 0)
        if usable.any():
            usable &= answered >= answered[usable].max() - SLACK * rows
            best = int(np.flatnonzero(usable)[cost[usable].argmin()])
            found[best] = float(binom.cdf(errors[best], answered[best], max_error))
    shape = [len(grid) for grid in grids]
    indices = [np.unravel_index(best, shape) for best in sorted(found, key=found.get)]
    chosen = [[float(grid[i]) for grid, i in zip(grids, index, strict=True)] for index in indices]
    return [_without_idle(thresholds) for thresholds in chosen]


def _without_idle(thresholds: list[float]) -> tuple[float, ...]:
    """Stages behind one that answers every row are never asked."""
    every = thresholds.index(0.0) if 0.0 in thresholds else len(thresholds)
    return tuple(threshold if number <= every else NEVER for number, threshold in enumerate(thresholds))


def _levels(confidence: np.ndarray, most: int) -> np.ndarray:
    """Thresholds of one stage: quantiles of its confidence, 0 for every row and `NEVER`."""
    quantiles = np.quantile(confidence, np.linspace(0, 1, min(most, len(confidence)) - 1)[1:])
    return np.unique([0.0, *quantiles, NEVER])
