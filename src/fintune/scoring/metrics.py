"""One metric class for every model, on the `evaluate` package, without its Hub scripts."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import datasets
import numpy as np
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_recall_fscore_support,
)
from statsmodels.stats.proportion import proportion_confint

from fintune.scoring.curves import ece_interval, expected_calibration_error


def _evaluate_package():
    """The PyPI package `evaluate`: a script evaluate.py in the folder that was launched hides it from `import`."""
    if hasattr(sys.modules.get("evaluate"), "EvaluationModule"):
        return sys.modules["evaluate"]
    paths = [path for path in sys.path if not (Path(path or ".") / "evaluate.py").is_file()]
    spec = importlib.machinery.PathFinder.find_spec("evaluate", paths)
    package = sys.modules["evaluate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


evaluate = _evaluate_package()

_DESCRIPTION = "Classification metrics from label probabilities, with an interval of accuracy and calibration error."
_INPUTS = """
Args:
    predictions: (n, labels) probabilities, rows summing to 1; the label of highest probability is the answer.
    references: (n,) label ids.
    label_names: names in id order.
"""


class LabelMetrics(evaluate.Metric):
    """Accuracy and ECE with 95 % intervals, macro and weighted F1, MCC, per-class figures, log-loss, confusion matrix.

    `compute` returns plain Python numbers, ready for JSON; fractions lie in 0..1, log-loss is in nats.
    """

    def __init__(self):
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self):
        return self._data_dir_root  # not made: nothing is kept there, and there may be no home that it could lie in

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, label_names: list[str]) -> dict:
        probabilities, truth = np.asarray(predictions), np.asarray(references)
        answers = probabilities.argmax(axis=1)
        ids = list(range(len(label_names)))
        correct = answers == truth
        precision, recall, f1, support = precision_recall_fscore_support(truth, answers, labels=ids, zero_division=0)
        return {
            "rows": len(truth),
            "accuracy": float(accuracy_score(truth, answers)),
            "accuracy_interval": accuracy_interval(correct),
            "macro_f1": float(f1_score(truth, answers, labels=ids, average="macro", zero_division=0)),
            "weighted_f1": float(f1_score(truth, answers, labels=ids, average="weighted", zero_division=0)),
            "mcc": float(matthews_corrcoef(truth, answers)),
            "log_loss": float(log_loss(truth, np.clip(probabilities, 1e-15, 1), labels=ids)),
            "ece": expected_calibration_error(probabilities.max(axis=1), correct),
            "ece_interval": ece_interval(probabilities.max(axis=1), correct),
            "per_class": {
                name: {
                    "precision": float(precision[i]),
                    "recall": float(recall[i]),
                    "f1": float(f1[i]),
                    "rows": int(support[i]),
                }
                for i, name in enumerate(label_names)
            },
            "confusion_matrix": confusion_matrix(truth, answers, labels=ids).tolist(),  # rows: truth
        }


def accuracy_interval(correct: np.ndarray) -> list[float]:
    """95 % interval of a mean of 0/1 values over rows: Wilson's, which holds at the border (Brown et al. 2001)."""
    low, high = proportion_confint(int(correct.sum()), len(correct), alpha=0.05, method="wilson")
    return [float(low), float(high)]
