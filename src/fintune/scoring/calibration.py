"""Confidence that means something: a temperature from the validation split, and what abstaining would bring."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from fintune.errors import UserError
from fintune.scoring.curves import coverage_risk, expected_calibration_error


class _Scored(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are the probabilities it answers with, as scikit-learn wants them handed over."""

    def fit(self, X, y):
        self.classes_ = np.arange(X.shape[1])
        return self

    def predict(self, X):
        return X.argmax(axis=1)

    def predict_proba(self, X):
        return X


def fit_temperature(probabilities: np.ndarray, labels: list[int]) -> dict:
    """Fit one temperature (Guo et al. 2017, section 4.2), and follow accuracy as rows of low confidence are left out.

    Args:
        probabilities: (rows, labels) of the validation split.
        labels: (rows,) label ids.

    Returns:
        temperature: 1 where every row is right, since confidence then has nothing to be measured by; rows;
        ece_before, ece_after; curve: up to 150 of (least confidence, share of rows answered, accuracy on them), after
        scaling, the most confident rows first.
    """
    labels = np.asarray(labels)
    correct = probabilities.argmax(axis=1) == labels
    temperature = 1.0
    if not correct.all():
        scored = FrozenEstimator(_Scored().fit(probabilities, labels))
        every = np.arange(len(labels))  # all rows as the one fold: nothing is trained that could have seen them
        fitted = CalibratedClassifierCV(scored, method="temperature", cv=[(every, every)], ensemble=False)
        fitted.fit(probabilities, labels)
        temperature = 1 / float(fitted.calibrated_classifiers_[0].calibrators[0].beta_)
    confidence = scaled(probabilities, temperature).max(axis=1)
    falling = np.sort(confidence)[::-1]
    return {
        "temperature": temperature,
        "rows": len(labels),
        "ece_before": expected_calibration_error(probabilities.max(axis=1), correct),
        "ece_after": expected_calibration_error(confidence, correct),
        "curve": [
            (float(falling[round(share * len(falling)) - 1]), share, 1 - risk)
            for share, risk in coverage_risk(confidence, correct)
        ],
    }


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities whose logarithms are divided by the temperature; the order of the labels stays."""
    logs = np.log(np.clip(probabilities, 1e-300, None)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=1, keepdims=True)


def check_threshold(confidence: float) -> float:
    """The confidence itself.

    Raises:
        UserError: it does not lie between 0 and 1.
    """
    if not 0 <= confidence <= 1:
        raise UserError(f"--abstain-below {confidence:g}: a confidence lies between 0 and 1")
    return confidence


def threshold_for(calibration: dict, accuracy: float) -> float:
    """The least confidence at which validation rows that confident or more were right in that share.

    Raises:
        UserError: none were.
    """
    reached = [confidence for confidence, _, found in calibration["curve"] if found >= accuracy]
    if not reached:
        best = max(found for _, _, found in calibration["curve"])
        raise UserError(
            f"--target-accuracy {accuracy:g}: on validation no confidence reaches it, at best {best:.4f}; ask for less"
        )
    return min(reached)
