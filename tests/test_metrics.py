"""Figures against their definitions, and the package `evaluate` under every way of launching."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import binom

from fintune.scoring.calibration import (
    fit_temperature,
    log_temperature_error,
    scaled,
    threshold_for,
    threshold_line,
)
from fintune.scoring.curves import ece_interval, expected_calibration_error
from fintune.scoring.metrics import LabelMetrics, accuracy_interval


def test_figures_on_a_table_worked_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
    metrics = LabelMetrics().compute(predictions=probabilities, references=[0, 1, 1, 2], label_names=["a", "b", "c"])
    assert metrics["accuracy"] == 0.75
    assert metrics["confusion_matrix"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert metrics["per_class"]["b"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "rows": 2}
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert metrics["weighted_f1"] == pytest.approx((2 / 3 + 2 * 2 / 3 + 1) / 4)
    assert metrics["log_loss"] == pytest.approx(-np.log([0.7, 0.4, 0.8, 0.5]).mean())
    assert metrics["ece"] == pytest.approx((0.3 + abs(0.5 - 0.0 + 0.5 - 1.0) + 0.2) / 4)


def test_a_class_that_nobody_predicts_counts_as_zero():
    metrics = LabelMetrics().compute(predictions=[[1.0, 0.0]] * 3, references=[0, 0, 1], label_names=["a", "b"])
    assert metrics["per_class"]["b"]["f1"] == 0.0
    assert metrics["macro_f1"] == pytest.approx(0.4)
    assert np.isfinite(metrics["log_loss"])


def test_the_interval_is_that_of_a_binomial():
    correct = np.arange(969) < 814  # 0.84, the paper's sentiment test
    low, high = accuracy_interval(correct)
    exact = binom.ppf([0.025, 0.975], 969, 814 / 969) / 969
    assert [low, high] == pytest.approx(exact, abs=0.002)
    assert high - low == pytest.approx(2 * 0.023, abs=0.002)


def test_the_interval_holds_at_the_border():
    """All of 41 right is not certainty: Wilson's lower end there is n / (n + z^2)."""
    z = 1.959963984540054  # 97.5 % of the normal distribution
    assert accuracy_interval(np.ones(41, dtype=bool)) == pytest.approx([41 / (41 + z**2), 1.0])
    assert accuracy_interval(np.zeros(41, dtype=bool)) == pytest.approx([0.0, 1 - 41 / (41 + z**2)], abs=1e-9)


def test_calibration_error_of_a_calibrated_and_a_boasting_model():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 200_000)
    assert expected_calibration_error(confidence, rng.uniform(size=200_000) < confidence) < 0.005
    assert expected_calibration_error(np.full(100, 0.9), np.arange(100) < 50) == pytest.approx(0.4)


PROBE = "import fintune.scoring.metrics, evaluate; print(evaluate.__file__, evaluate.Metric.__name__)"


@pytest.mark.parametrize(
    "command",
    [
        ["probe.py"],
        ["-P", "probe.py"],
        ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "probe.py"],
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "probe.py"],
        ["-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "test_probe.py"],
        ["-c", PROBE],
    ],
    ids=["python", "python -P", "accelerate", "torchrun", "pytest", "-c"],
)
def test_import_evaluate_is_the_package(tmp_path, command):
    """In a folder laid out as the root: its evaluate.py would answer `import evaluate` with a usage error."""
    (tmp_path / "evaluate.py").write_bytes((ROOT / "evaluate.py").read_bytes())
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "test_probe.py").write_text(f"def test_probe():\n    {PROBE}\n")
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert "site-packages/evaluate/__init__.py Metric" in done.stdout


def test_the_script_itself_runs_from_the_root():
    done = subprocess.run([sys.executable, "evaluate.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--split" in done.stdout


def test_temperature_is_the_one_that_was_put_in_and_changes_no_label():
    rng = np.random.default_rng(0)
    honest = rng.dirichlet([0.6] * 4, size=20_000)
    labels = (honest.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    for temperature in (0.5, 1.0, 2.5, 25):
        given = scaled(honest, 1 / temperature)  # 2.5: too sure of itself; 25: with wrong answers below 1e-12
        found = fit_temperature(given, labels)
        assert found["temperature"] == pytest.approx(temperature, rel=0.05)
        assert found["ece_after"] < 0.015
        np.testing.assert_allclose(scaled(given, found["temperature"]).sum(axis=1), 1)
        assert (scaled(given, found["temperature"]).argmax(axis=1) == given.argmax(axis=1)).all()
    assert fit_temperature(scaled(honest, 0.4), labels)["ece_before"] > 0.1
    assert fit_temperature(np.array([[0.9, 0.1], [0.2, 0.8]]), [0, 1])["temperature"] == 1  # all right: nothing to fit


def test_labels_that_no_row_has_change_no_temperature():
    rng = np.random.default_rng(0)
    honest = rng.dirichlet([0.6] * 3, size=500)
    labels = (honest.cumsum(axis=1) < rng.random((500, 1))).sum(axis=1)
    more = np.hstack([honest, np.zeros((500, 20))])
    assert fit_temperature(more, labels)["temperature"] == pytest.approx(
        fit_temperature(honest, labels)["temperature"]
    )


def test_the_curve_gives_the_confidence_that_an_accuracy_needs():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    found = fit_temperature(probabilities, [0, 0, 1, 0])
    confidence = scaled(probabilities, found["temperature"]).max(axis=1)
    assert [(c, n) for c, n, _ in found["curve"]] == [(pytest.approx(c), n / 4) for n, c in enumerate(confidence, 1)]
    assert [accuracy for _, _, accuracy in found["curve"]] == pytest.approx([1, 1, 2 / 3, 3 / 4])
    assert threshold_for(found, 0.9) == pytest.approx(confidence[1])
    assert threshold_for(found, 0.7) == pytest.approx(confidence[3])


def answered(rows: int, sure: float, wrong: int, labels: int = 2) -> tuple[np.ndarray, list[int]]:
    """Probabilities of rows that all answer label 0 alike, and true labels of which so many are others."""
    probabilities = np.full((rows, labels), (1 - sure) / (labels - 1))
    probabilities[:, 0] = sure
    return probabilities, [0] * (rows - wrong) + [1] * wrong


TOO_LITTLE = {
    "two rows": (*answered(2, 0.9, 1), "2 validation rows are too few, 50 are needed"),
    "twenty rows": (*answered(20, 0.9, 4), "20 validation rows are too few"),
    "all right": (*answered(80, 0.9, 0), "all 80 validation rows are right"),
    "answers no better than a coin": (*answered(200, 0.9, 100), "on 200 validation rows "),
    "answers worse than a coin": (*answered(200, 0.9, 150), "on 200 validation rows the search runs to its bound"),
    "a model that hardly tells the labels apart": (*answered(60, 0.51, 28), "60 validation rows say too little"),
}


@pytest.mark.parametrize("probabilities,labels,reason", TOO_LITTLE.values(), ids=TOO_LITTLE)
def test_a_temperature_that_the_rows_do_not_tell_is_one_and_the_reason_is_given(probabilities, labels, reason):
    found = fit_temperature(probabilities, labels)
    assert found["temperature"] == 1.0
    assert reason in found["not_fitted"]
    assert found["ece_after"] == pytest.approx(found["ece_before"])
    low, high = found["ece_after_interval"]
    assert 0 <= low <= found["ece_after"] <= high
    if len(labels) < 50:
        assert high > 0.15


def test_the_standard_error_of_the_temperature_is_that_of_repeated_fits():
    rng = np.random.default_rng(0)
    fitted, stated = [], []
    for _ in range(60):
        honest = rng.dirichlet([0.6] * 3, size=150)
        labels = (honest.cumsum(axis=1) < rng.random((150, 1))).sum(axis=1)
        found = fit_temperature(scaled(honest, 0.5), labels)
        assert found["not_fitted"] is None
        fitted.append(np.log(found["temperature"]))
        stated.append(log_temperature_error(scaled(scaled(honest, 0.5), found["temperature"])))
    assert np.mean(stated) == pytest.approx(np.std(fitted), rel=0.3)


def test_the_interval_of_a_calibration_error_narrows_with_rows_and_holds_it():
    assert ece_interval(np.array([1.0, 1.0]), np.array([True, True]))[1] > 0.4  # two right rows are no certainty
    assert ece_interval(np.array([0.5, 0.5]), np.array([True, False]))[1] > 0.2
    width = []
    for rows in (20, 200, 2000):
        sure, right = np.full(rows, 0.9), np.arange(rows) < 0.7 * rows
        low, high = ece_interval(sure, right)
        assert low <= expected_calibration_error(sure, right) <= high
        assert low < 0.2 < high
        width.append(high - low)
    assert width[0] > 2 * width[1] > 4 * width[2]


def test_what_a_threshold_promises_has_its_interval():
    calibration = {"rows": 40, "curve": [(0.9, 0.25, 1.0), (0.8, 0.5, 0.95), (0.4, 1.0, 0.8)]}
    assert threshold_line(calibration, 0.8) == (
        "abstains below a confidence of 0.8000: 20 of 40 validation rows reach it, 0.9500 of them right "
        "(95 % interval 0.7639 to 0.9911)"
    )
    assert "10 of 40" in threshold_line(calibration, 0.85) and "(95 % interval 0.7225" in threshold_line(
        calibration, 0.85
    )
    assert threshold_line(calibration, 0.95).endswith("which no validation row reaches")
