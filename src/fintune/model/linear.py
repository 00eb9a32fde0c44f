"""Linear models by scikit-learn: the commonest label, TF-IDF of words, or a frozen encoder's embedding.

TF-IDF is the yardstick of every other run too; see fintune/scoring/simple.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

import numpy as np
from datasets import Dataset
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import FunctionTransformer

from fintune.data.inputs import Input, columns_of, text_of
from fintune.model.embedding import Embedder, load_embedder
from fintune.model.load import model_summary
from fintune.recipe.recipe import RunArguments

# A link, which is no token, or the two or more characters of a word up to a link. A pattern, since a function of this
# project would keep a stored model from being read without it.
URL = r"https?://\S+|www\.\S+"
WORD = rf"{URL}|((?:(?!{URL})\w){{2,}})"


@dataclass(kw_only=True)
class LinearArguments(RunArguments):
    """Keys of train_linear.py; the names are scikit-learn's."""

    min_gpu_gib: ClassVar[float] = 0.0

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
        embedding = ("max_length", "model_revision", "wheel")
        unread = {"majority": ("C", "ngram_max", *embedding), "tfidf": embedding, "embedding": ("ngram_max",)}
        defaults = {key.name: key.default_factory() if key.name == "C" else key.default for key in fields(self)}
        for key in unread[self.linear_model]:
            if getattr(self, key) != defaults[key]:
                raise ValueError(f"`{key}` is not read by linear_model: {self.linear_model}; take it out")
        if (self.linear_model == "embedding") != (self.model_name_or_path is not None):
            raise ValueError("linear_model: embedding needs a model_name_or_path, and no other takes one")


def build_features(args: LinearArguments, base: str | None, inputs: Sequence[Input]):
    """What `transformed` takes; TF-IDF learns its words from these inputs, of the training rows.

    Args:
        base: where the encoder of an embedding is.
    """
    if args.linear_model == "embedding":
        texts = [text_of(given) for given in inputs]
        return load_embedder(base, args.model_revision, args.max_length, texts, progress="embedding")
    if args.linear_model == "tfidf":
        return word_features(args.ngram_max).fit([as_words(given) for given in inputs])
    return FunctionTransformer()  # the texts as they are: the commonest label does not look at them


def transformed(features, inputs: Sequence[Input]):
    """What a classifier takes, by the features of `build_features`."""
    return features.transform(inputs if isinstance(features, Embedder) else [as_words(given) for given in inputs])


def as_words(given: Input) -> str:
    """A text alone as it is. With columns, after it and for each: the value, and every word joined to that value.

    A linear model adds up what its features say. So that "takes over" can be good news for one ticker and bad for
    another, "takes_ticker_aapl over_ticker_aapl" are features beside "takes over".
    """
    parts = [text_of(given)]
    for name, value in columns_of(given).items():
        mark = re.sub(r"\W+", "_", f"_{name}_{value}")
        words = [match[1] + mark for match in re.finditer(WORD, parts[0].lower()) if match[1]]
        parts.append(" ".join([mark, *words]))
    return "\n".join(parts)


def build_classifier(args: LinearArguments, C: float | None, class_weights: str | None):
    """A classifier that is not fitted yet.

    Args:
        C: inverse regularisation; None for `majority`, which has none.
    """
    if args.linear_model == "majority":
        return DummyClassifier(strategy="prior")
    if args.linear_model == "embedding":
        return LogisticRegression(C=C, max_iter=1000, class_weight=class_weights)
    return word_classifier(C, class_weights)


def fit(classifier, known, rows: Dataset):
    """The classifier, fitted to its rows' labels, or to the probabilities of each where they have `probabilities`.

    The latter is cross-entropy with soft targets: a row counts once for each label, weighted by its probability. Of
    `OneVsRestClassifier` each part is fitted so, to the probabilities of its label and of the rest.

    Args:
        known: the rows' features.
    """
    if "probabilities" not in rows.column_names:
        return classifier.fit(known, rows["label"])
    probabilities = np.array(rows["probabilities"])
    if not isinstance(classifier, OneVsRestClassifier):
        return _fit_weighted(classifier, known, probabilities)
    classifier.fit(known, rows["label"])  # makes the parts, one for two labels
    ones = probabilities[:, -len(classifier.estimators_) :]
    for part, one in zip(classifier.estimators_, ones.T, strict=True):
        _fit_weighted(part, known, np.stack([1 - one, one], axis=1))
    return classifier


def _fit_weighted(classifier, known, probabilities: np.ndarray):
    rows, labels = probabilities.nonzero()
    features = known[rows] if hasattr(known, "shape") else rows  # of `majority`, which does not look at them
    return classifier.fit(features, labels, sample_weight=probabilities[rows, labels])


def word_features(ngram_max: int = 2) -> TfidfVectorizer:
    """Lower-case words and runs of up to `ngram_max` of them, without links.

    Each tweet ends in a link of its own, which tells nothing of another.
    """
    return TfidfVectorizer(
        token_pattern=WORD,
        stop_words=[""],  # what the pattern makes of a link
        ngram_range=(1, ngram_max),
        sublinear_tf=True,
    )


def word_classifier(C: float = 10.0, class_weights: str | None = None) -> OneVsRestClassifier:
    """Logistic regression of each label against the rest: 20 small problems take seconds, one of 20 classes a minute.

    Args:
        C: inverse regularisation.
    """
    settings = {"solver": "liblinear", "dual": True, "tol": 0.1, "max_iter": 1000, "random_state": 0}  # it shuffles
    return OneVsRestClassifier(LogisticRegression(C=C, class_weight=class_weights, **settings))


def linear_summary(args: LinearArguments, features, classifier, base: str | None, weights: str | None) -> dict:
    """`model_summary` of a linear model; trained are the classifier's parameters alone.

    Args:
        base, weights: of the encoder of an embedding; see `find_model`.
    """
    parts = getattr(classifier, "estimators_", [classifier] if hasattr(classifier, "coef_") else [])
    trained = sum(part.coef_.size + part.intercept_.size for part in parts)
    if isinstance(features, Embedder):
        frozen = model_summary(features.model, args.model_name_or_path, base, args.model_revision, weights)
    else:
        frozen = {"base": args.linear_model, "fingerprint": None, "parameters": 0, "dtype": "float64"}
    return frozen | {
        "parameters": frozen["parameters"] + trained,
        "trained_parameters": trained,
        "trained_dtype": "float64",
    }
