"""The floor of every comparison: always the commonest label, or TF-IDF and logistic regression by scikit-learn.

    python train_linear.py data/topic.yaml configs/baselines/tfidf.yaml

The sibling of train_sft.py: same rows, splits, metrics and files, without a model's weights. Seconds on any CPU.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fintune import audit, runs, tracking
from fintune.calibration import calibrate
from fintune.checkpoints import claim
from fintune.data import URL, load_data
from fintune.errors import run
from fintune.recipe import parse_recipe

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline


@dataclass
class LinearArguments:
    """What a linear model's recipe says; the names are scikit-learn's, or those of the sibling scripts."""

    linear_model: Literal["majority", "tfidf"] = field(metadata={"help": "The commonest label, or TF-IDF words."})
    C: list[float] = field(
        default_factory=lambda: [10.0], metadata={"help": "Inverse regularisations; the best on validation is kept."}
    )
    ngram_max: int = field(default=2, metadata={"help": "Longest run of words that is a feature."})
    paper_row: str | None = field(default=None, metadata={"help": "Row of the paper's Table 4 to be set beside."})
    output_dir: str | None = field(default=None, metadata={"help": "The run's folder; runs/<task>/<name> if unset."})
    run_name: str | None = field(default=None, metadata={"help": "Name in Weights & Biases."})
    report_to: str = field(default="none", metadata={"help": "wandb or none."})


def words(text: str) -> str:
    """Lower case without links: each tweet ends in a link of its own, which tells nothing of another."""
    return URL.sub(" ", text.lower())


def build(args: LinearArguments, C: float, class_weights: str | None):
    if args.linear_model == "majority":
        return DummyClassifier(strategy="prior")
    features = TfidfVectorizer(preprocessor=words, ngram_range=(1, args.ngram_max), sublinear_tf=True)
    one = LogisticRegression(C=C, solver="liblinear", dual=True, tol=0.1, max_iter=1000, class_weight=class_weights)
    # 20 small problems take seconds, one of 20 classes a minute
    return make_pipeline(features, OneVsRestClassifier(one))


def main(argv: list[str]) -> None:
    recipe = parse_recipe(argv, LinearArguments)
    task, (linear_args,) = recipe.task, recipe.args
    folder = Path(linear_args.output_dir)
    claim(folder)

    # Rows
    data = load_data(task, allow_sample=True)
    train, validation, test = data.splits["train"], data.splits["validation"], data.splits["test"]
    print(*audit.lines(audit.audit(task, data)), sep="\n")
    audit.check_leakage(task, data)
    tracking.prepare(recipe, linear_args)
    print(f"data: {data.summary()}")

    # The method: one fit for each C, the best on validation is kept
    started, log, best = time.perf_counter(), [], -1.0
    for C in linear_args.C if linear_args.linear_model == "tfidf" else [None]:
        candidate = build(linear_args, C, task.class_weights).fit(train["text"], train["label"])
        accuracy = float((candidate.predict(validation["text"]) == validation["label"]).mean())
        log.append({"C": C, "eval_accuracy": accuracy})
        print(f"validation: accuracy {accuracy:.4f} with C {C}")
        if accuracy > best:
            model, best = candidate, accuracy
    training = {"train_runtime": time.perf_counter() - started, "log": log, "best_eval_accuracy": best}

    # The score: probabilities of the labels on the test split, set beside the paper's figure
    calibration = calibrate(np.asarray(model.predict_proba(validation["text"])), validation["label"])
    started = time.perf_counter()
    probabilities = np.asarray(model.predict_proba(test["text"]))
    metrics, predictions = runs.score_split(
        task, data, "test", probabilities, calibration["temperature"], time.perf_counter() - started
    )
    made = {"model": summary(model, linear_args), "training": training, "calibration": calibration}
    result = runs.make_result(recipe, data, metrics, **made)
    runs.save_run(folder, recipe, result, predictions)
    runs.print_result(result)
    tracking.log_result(recipe, linear_args, result, predictions)


def summary(model, args: LinearArguments) -> dict:
    """What `runs.model_summary` says of other models; there are no weights on disk to take a fingerprint of."""
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
