"""Figures against their definitions, and the package `evaluate` under every way of launching."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import binom

from fintune.scoring.calibration import fit_temperature, scaled, threshold_for
from fintune.scoring.curves import expected_calibration_error
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
    for temperature in (0.5, 1.0, 2.5):
        given = scaled(honest, 1 / temperature)  # 2.5: too sure of itself
        found = fit_temperature(given, labels)
        assert found["temperature"] == pytest.approx(temperature, rel=0.05)
        assert found["ece_after"] < 0.015
        np.testing.assert_allclose(scaled(given, found["temperature"]).sum(axis=1), 1)
        assert (scaled(given, found["temperature"]).argmax(axis=1) == given.argmax(axis=1)).all()
    assert fit_temperature(scaled(honest, 0.4), labels)["ece_before"] > 0.1
    assert fit_temperature(np.array([[0.9, 0.1], [0.2, 0.8]]), [0, 1])["temperature"] == 1  # all right: nothing to fit


def test_the_curve_gives_the_confidence_that_an_accuracy_needs():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    found = fit_temperature(probabilities, [0, 0, 1, 0])
    confidence = scaled(probabilities, found["temperature"]).max(axis=1)
    assert [(c, n) for c, n, _ in found["curve"]] == [(pytest.approx(c), n / 4) for n, c in enumerate(confidence, 1)]
    assert [accuracy for _, _, accuracy in found["curve"]] == pytest.approx([1, 1, 2 / 3, 3 / 4])
    assert threshold_for(found, 0.9) == pytest.approx(confidence[1])
    assert threshold_for(found, 0.7) == pytest.approx(confidence[3])
