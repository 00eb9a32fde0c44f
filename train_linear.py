"""The simplest baselines: always the commonest label, or TF-IDF and logistic regression by scikit-learn.

    python train_linear.py data/topic.yaml configs/baselines/tfidf.yaml

The sibling of train_sft.py: same rows, splits, metrics and files, without a model's weights. Seconds on any CPU.
"""

import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from fintune.data.load import load_data
from fintune.data.splits import URL
from fintune.errors import run
from fintune.recipe.recipe import RunArguments, parse_recipe
from fintune.results.folder import make_result, save_run
from fintune.results.summary import print_result
from fintune.scoring.scorer import calibrate, evaluate
from fintune.training import session, tracking


@dataclass(kw_only=True)
class LinearArguments(RunArguments):
    """Keys of train_linear.py; the names are scikit-learn's."""

    linear_model: Literal["majority", "tfidf"] = field(metadata={"help": "The commonest label, or TF-IDF words."})
    C: list[float] = field(
        default_factory=lambda: [10.0], metadata={"help": "Inverse regularisations; the best on validation is kept."}
    )
    ngram_max: int = field(default=2, metadata={"help": "Longest run of words that is a feature."})


@dataclass
class LinearScorer:
    """A fitted scikit-learn classifier of texts; see `fintune.scoring.scorer.Scorer`. It reads texts whole."""

    classifier: object
    max_length: int = 0
    truncated_texts: int = 0

    @property
    def encoder(self) -> "LinearScorer":
        return self

    def probabilities(self, texts: list[str], progress: str | None = None) -> np.ndarray:
        return np.asarray(self.classifier.predict_proba(texts))

    def further_metrics(self, texts: list[str]) -> dict:
        return {}


def words(text: str) -> str:
    """Lower case without links: each tweet ends in a link of its own, which tells nothing of another."""
    return URL.sub(" ", text.lower())


def build(args: LinearArguments, C: float | None, class_weights: str | None):
    if args.linear_model == "majority":
        return DummyClassifier(strategy="prior")
    features = TfidfVectorizer(preprocessor=words, ngram_range=(1, args.ngram_max), sublinear_tf=True)
    one = LogisticRegression(C=C, solver="liblinear", dual=True, tol=0.1, max_iter=1000, class_weight=class_weights)
    # 20 small problems take seconds, one of 20 classes a minute
    return make_pipeline(features, OneVsRestClassifier(one))


def main(argv: list[str]) -> None:
    recipe = parse_recipe(argv, LinearArguments, script="train_linear.py")
    task, run_args = recipe.task, recipe.run_args

    # Rows
    data = load_data(task, allow_sample=True)
    train, validation = data.splits["train"], data.splits["validation"]
    session.start(recipe, data, f"one row:\n{train[0]['text']} -> {task.names[train[0]['label']]}")

    # The method: one fit for each C, the best on validation is kept
    started, log, best = time.perf_counter(), [], -1.0
    for C in run_args.C if run_args.linear_model == "tfidf" else [None]:
        candidate = build(run_args, C, task.class_weights).fit(train["text"], train["label"])
        accuracy = float((candidate.predict(validation["text"]) == validation["label"]).mean())
        log.append({"C": C, "eval_accuracy": accuracy})
        print(f"validation: accuracy {accuracy:.4f} with C {C}")
        if accuracy > best:
            model, best = candidate, accuracy
    training = {"train_runtime": time.perf_counter() - started, "log": log, "best_eval_accuracy": best}
    summary = model_summary(model, run_args)

    # The score: probabilities of the labels on the test split, beside the paper's figure
    scorer = LinearScorer(model)
    calibration = calibrate(scorer, data)
    metrics, predictions = evaluate(scorer, task, data, calibration["temperature"])
    result = make_result(recipe, data, metrics, model=summary, training=training, calibration=calibration)
    save_run(recipe, result, predictions)
    print_result(result, recipe.folder)
    tracking.log_result(recipe, result, predictions)


def model_summary(model, args: LinearArguments) -> dict:
    """As of other models; there are no weights on disk to take a fingerprint of."""
    parts = model[-1].estimators_ if args.linear_model == "tfidf" else []
    parameters = sum(part.coef_.size + part.intercept_.size for part in parts)
    return {
        "base": args.linear_model,
        "fingerprint": None,
        "parameters": parameters,
        "trained_parameters": parameters,
        "dtype": "float64",
        "trained_dtype": "float64",
    }


if __name__ == "__main__":
    run(main)
