"""A cascade's bound holds as often as it says, on scores whose truth is known."""

import numpy as np
import pytest

from fintune.scoring.guarantee import NEVER, StageScores, choose, measured, nearest, route, stage_of


def drawn(generator, rows, skills=(2, 6), seconds=(0.001, 0.1)):
    """Stages of rising skill that make the harder mistakes on the same rows; confidences are off on purpose."""
    hard = generator.beta(0.3, 1, rows)  # most are easy
    stages = []
    for skill, cost in zip(skills, seconds, strict=True):
        right = 1 - hard / skill * 2
        correct = generator.random(rows) < right
        noise = generator.normal(0, 0.05, rows)
        stages.append(StageScores(np.clip(right + noise, 0.34, 1) ** 0.5, correct, cost))
    return stages


def split_off(stages, rows):
    return [stage.at(rows) for stage in stages]


@pytest.mark.parametrize("max_error", [0.05, 0.1])
def test_the_bound_is_missed_no_more_often_than_stated(max_error):
    generator = np.random.default_rng(0)
    population = drawn(generator, 20_000)
    trials, missed, labelled = 200, 0, []
    for trial in range(trials):
        validation = split_off(population, generator.choice(20_000, 1000, replace=False))
        policy = choose(validation, max_error, 0.9, seed=trial)
        if policy is None:  # nothing is labelled, so nothing is wrong
            labelled.append(0.0)
            continue
        truth = measured(population, policy.thresholds, max_error)
        missed += truth.errors / truth.answered > max_error
        labelled.append(truth.labelled)
    assert missed / trials <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / trials)
    assert np.median(labelled) > 0.3  # a bound that labels nothing would hold too


def test_testing_on_the_rows_that_proposed_would_miss_it(monkeypatch):
    generator = np.random.default_rng(1)
    population = drawn(generator, 20_000)
    missed = 0
    for _ in range(60):
        validation = split_off(population, generator.choice(20_000, 300, replace=False))
        best = max(
            (measured(validation, (a, b), 0.05) for a in np.linspace(0.6, 1, 9) for b in np.linspace(0.6, 1, 9)),
            key=lambda policy: policy.labelled * (policy.answered > 0 and policy.errors / policy.answered <= 0.05),
        )
        truth = measured(population, best.thresholds, 0.05)
        missed += truth.errors / max(truth.answered, 1) > 0.05
    assert missed > 18  # so the bound of `choose` is no accident of these rows


def test_cheap_stages_take_what_they_are_sure_of():
    validation = drawn(np.random.default_rng(2), 2000)
    policy = choose(validation, 0.1, 0.9)
    alone = choose(validation[1:], 0.1, 0.9)
    assert policy.cost < 0.8 * alone.cost
    assert policy.labelled > alone.labelled - 0.1


def test_too_few_rows_give_no_thresholds_and_the_nearest_bound_is_named():
    validation = drawn(np.random.default_rng(3), 60)
    assert choose(validation, 0.01, 0.9) is None  # 30 rows without an error would not be enough
    bound = nearest(validation, 0.01, 0.9)
    assert bound > 0.01
    assert choose(validation, bound, 0.9) is not None
    wrong = [StageScores(np.full(100, 0.9), np.zeros(100, bool), 1.0)]
    assert nearest(wrong, 0.01, 0.9) is None


def test_a_row_goes_to_the_first_stage_that_is_sure():
    confidences = [[0.9, 0.5, 0.5, 0.5], [0.95, 0.95, 0.4, 0.99]]
    assert stage_of(confidences, (0.8, 0.9)).tolist() == [0, 1, 2, 1]
    assert stage_of(confidences, (NEVER, 0.9)).tolist() == [1, 1, 2, 1]
    asked = []
    found = route(
        (0.8, NEVER, 0.9), 4, lambda stage, rows: asked.append((stage, rows.tolist())) or np.full(len(rows), 0.9)
    )
    assert found.tolist() == [0] * 4 and asked == [(0, [0, 1, 2, 3])]
    asked.clear()
    assert route(
        (0.95, NEVER, 0.92), 2, lambda stage, rows: asked.append(stage) or np.full(len(rows), 0.9)
    ).tolist() == [3, 3]
    assert asked == [0, 2]  # and never the stage that is left out, whose answer would stand


def test_a_stage_that_never_answers_costs_nothing():
    stages = [StageScores(np.ones(4), np.ones(4, bool), 1.0), StageScores(np.ones(4), np.ones(4, bool), 10.0)]
    assert measured(stages, (NEVER, 0.5), 0.1).cost == 10.0
    assert measured(stages, (0.5, 0.5), 0.1).cost == 1.0
