"""TF-IDF of words and logistic regression, by scikit-learn: a baseline, and the yardstick of every other run."""

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from fintune.data.splits import URL


def word_features(ngram_max: int = 2) -> TfidfVectorizer:
    """Words and runs of up to `ngram_max` words."""
    return TfidfVectorizer(preprocessor=_words, ngram_range=(1, ngram_max), sublinear_tf=True)


def _words(text: str) -> str:
    """Lower case without links: each tweet ends in a link of its own, which tells nothing of another."""
    return URL.sub(" ", text.lower())


def word_classifier(C: float = 10.0, class_weights: str | None = None) -> OneVsRestClassifier:
    """Logistic regression of each label against the rest: 20 small problems take seconds, one of 20 classes a minute.

    Args:
        C: inverse regularisation.
    """
    settings = {"solver": "liblinear", "dual": True, "tol": 0.1, "max_iter": 1000, "random_state": 0}  # it shuffles
    return OneVsRestClassifier(LogisticRegression(C=C, class_weight=class_weights, **settings))
