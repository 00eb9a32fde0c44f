"""Confidence that means something: a temperature from the validation split, and what abstaining would bring."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest

from fintune.errors import UserError
from fintune.scoring.curves import coverage_risk, ece_interval, expected_calibration_error

# Of the runs in docs/results.md those on sentiment need 25 to 53 validation rows, those on topics 11 to 24, to bring
# the standard error of log(temperature) down to 0.25; its 95 % interval is then a factor of 1.6 to either side.
FEWEST_ROWS = 50
SURE = 0.25
BOUND = 10  # of log(temperature), between which it is searched for


def fit_temperature(probabilities: np.ndarray, labels: list[int]) -> dict:
    """Fit one temperature (Guo et al. 2017, section 4.2), and follow accuracy as rows of low confidence are left out.

    Args:
        probabilities: (rows, labels) of the validation split.
        labels: (rows,) label ids.

    Returns:
        temperature: 1 where the rows do not tell it; not_fitted: why, else None; rows; ece_before, ece_after, each
        also with its 95 % `_interval`; curve: up to 150 of (least confidence, share of rows answered, accuracy on
        them), after scaling, the most confident rows first.
    """
    labels = np.asarray(labels)
    correct = probabilities.argmax(axis=1) == labels
    return calibration_of(probabilities, labels, *_search(probabilities, labels, correct))


def calibration_of(
    probabilities: np.ndarray, labels: np.ndarray, temperature: float = 1.0, not_fitted: str | None = None
) -> dict:
    """What `fit_temperature` returns, of a temperature that is known."""
    correct = probabilities.argmax(axis=1) == labels
    before, confidence = probabilities.max(axis=1), scaled(probabilities, temperature).max(axis=1)
    falling = np.sort(confidence)[::-1]
    return {
        "temperature": temperature,
        "not_fitted": not_fitted,
        "rows": len(labels),
        "ece_before": expected_calibration_error(before, correct),
        "ece_before_interval": ece_interval(before, correct),
        "ece_after": expected_calibration_error(confidence, correct),
        "ece_after_interval": ece_interval(confidence, correct),
        "curve": [
            (float(falling[round(share * len(falling)) - 1]), share, 1 - risk)
            for share, risk in coverage_risk(confidence, correct)
        ],
    }


def _search(probabilities: np.ndarray, labels: np.ndarray, correct: np.ndarray) -> tuple[float, str | None]:
    """(temperature, None), or (1.0, why the rows do not tell it)."""
    rows = f"{len(labels):,} validation rows"
    if len(labels) < FEWEST_ROWS:
        return 1.0, f"{rows} are too few, {FEWEST_ROWS} are needed"
    if correct.all():
        return 1.0, f"all {rows} are right, so nothing says how sure is too sure"
    logs = _logs(probabilities)  # scikit-learn's own search adds 1e-12, which a sure model's wrong answers fall below

    def loss(log_temperature: float) -> float:
        return -log_softmax(logs / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()

    found = minimize_scalar(loss, bounds=(-BOUND, BOUND), method="bounded", options={"xatol": 1e-9}).x
    if abs(found) > BOUND - 0.1:
        return 1.0, f"on {rows} the search runs to its bound"
    temperature = float(np.exp(found))
    if log_temperature_error(scaled(probabilities, temperature)) > SURE:
        return 1.0, f"{rows} say too little: the standard error of its logarithm is above {SURE}"
    return temperature, None


def log_temperature_error(probabilities: np.ndarray) -> float:
    """Standard error of log(temperature), by the Fisher information, which is one row's variance of log-probability.

    Args:
        probabilities: (rows, labels) after scaling.
    """
    logs = _logs(probabilities)
    mean = (probabilities * logs).sum(axis=1, keepdims=True)
    return float(1 / np.sqrt(max((probabilities * (logs - mean) ** 2).sum(), 1e-300)))


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities whose logarithms are divided by the temperature; the order of the labels stays."""
    logs = _logs(probabilities) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=1, keepdims=True)


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.clip(probabilities, 1e-300, None))


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


def threshold_line(calibration: dict, confidence: float) -> str:
    """How many validation rows reach a confidence, and how many of those are right, with a 95 % interval."""
    reached = [(share, found) for least, share, found in calibration["curve"] if least >= confidence]
    if not reached:
        return f"abstains below a confidence of {confidence:.4f}, which no validation row reaches"
    share, accuracy = max(reached)
    answered = round(share * calibration["rows"])
    interval = binomtest(round(accuracy * answered), answered).proportion_ci(method="wilson")
    return (
        f"abstains below a confidence of {confidence:.4f}: {answered:,} of {calibration['rows']:,} validation rows "
        f"reach it, {accuracy:.4f} of them right (95 % interval {interval.low:.4f} to {interval.high:.4f})"
    )
