"""Label probabilities of a linear model, which is kept in one file of skops: no pickle, and no code in it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from sklearn.pipeline import Pipeline

from fintune.data.inputs import Input, text_of
from fintune.errors import UserError
from fintune.model.embedding import Embedder
from fintune.model.linear import transformed
from fintune.scoring.scorer import Encoder

# skops takes seconds to import: only the functions that need it do

FILE = "model.skops"
# Every type that a model of train_linear.py holds. skops by itself would trust all of scikit-learn, NumPy's functions
# and types by name; a file with any other type is not read.
TRUSTED = {
    "builtins.dict",
    "builtins.list",
    "builtins.str",
    "builtins.tuple",
    "numpy.float64",
    "numpy.ndarray",
    "sklearn.dummy.DummyClassifier",
    "sklearn.feature_extraction.text.TfidfTransformer",
    "sklearn.feature_extraction.text.TfidfVectorizer",
    "sklearn.linear_model._logistic.LogisticRegression",
    "sklearn.multiclass.OneVsRestClassifier",
    "sklearn.pipeline.Pipeline",
    "sklearn.preprocessing._function_transformer.FunctionTransformer",
    "sklearn.preprocessing._label.LabelBinarizer",
}


@dataclass
class WholeTexts:
    """The `Encoder` of a model that reads texts whole."""

    max_length: None = None

    def fault(self, given: Input) -> None:
        """Nothing is too long."""

    def is_cut(self, given: Input) -> bool:
        """No text is."""
        return False

    def bounds(self, given: Input) -> list[int]:
        """From its first character to its last."""
        return [0, len(text_of(given))]


class LinearScorer:
    """Scores texts with a fitted scikit-learn classifier; see `fintune.scoring.scorer.Scorer`."""

    exact = True

    def __init__(self, features, classifier):
        """
        Args:
            features: see `fintune.model.linear.transformed`.
        """
        self.features, self.classifier = features, classifier
        self.encoder: Encoder = features.encoder if isinstance(features, Embedder) else WholeTexts()

    def probabilities(self, inputs: Sequence[Input], progress: str | None = None) -> np.ndarray:
        """(texts, labels) of `scores`."""
        return self.scores(inputs, progress)[0]

    def scores(self, inputs: Sequence[Input], progress: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(texts, labels) float64, in the order of `inputs` and of the label ids; (texts,) whether the end of each was
        not read. There is no bar of its own.
        """
        truncated = np.zeros(len(inputs), bool)
        if not inputs:  # scikit-learn refuses them
            return np.empty((0, len(self.classifier.classes_))), truncated
        if isinstance(self.features, Embedder):
            known, truncated = self.features.embed(inputs)
        else:
            known = transformed(self.features, inputs)
        return np.asarray(self.classifier.predict_proba(known)), truncated

    def further_metrics(self, inputs: Sequence[Input], correct: np.ndarray) -> dict:
        """Empty: a linear model can only answer with a label."""
        return {}

    def merge(self) -> None:
        """Nothing to merge."""

    def save_pretrained(self, folder: Path) -> None:
        """Write model.skops: what turns texts into label ids, or of an embedding the classifier alone."""
        from skops.io import dump

        frozen = isinstance(self.features, Embedder)
        model = self.classifier if frozen else Pipeline([("features", self.features), ("labels", self.classifier)])
        folder.mkdir(parents=True, exist_ok=True)
        dump(model, folder / FILE, compression=ZIP_DEFLATED)

    def save_merged(self, folder: Path, run_dir: Path) -> None:
        """As `save_pretrained`: the file needs nothing of this project."""
        self.save_pretrained(folder)

    def reloaded(self, folder: Path) -> "LinearScorer":
        """The scorer of what `save_merged` wrote, with the same frozen encoder."""
        return load_linear(folder, self.features if isinstance(self.features, Embedder) else None)


def load_linear(folder: Path, embedder: Embedder | None) -> LinearScorer:
    """The model of a folder's model.skops.

    Args:
        embedder: the frozen encoder of an embedding; None for a model that reads texts itself.

    Raises:
        UserError: the file is missing, damaged, or holds something else than such a model.
    """
    from skops.io import load

    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder}: no {FILE}, as in runs of an earlier version; train it again")
    try:
        types = _types(path)
        model = None if types - TRUSTED else load(path, trusted=[])
    except Exception as error:  # whatever a damaged file makes of zipfile, skops and scikit-learn
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {error}); train the run again") from error
    if foreign := sorted(types - TRUSTED):
        raise UserError(f"{path}: holds {foreign[0]}, no part of a linear model, so nothing of it is loaded")
    if isinstance(model, Pipeline) != (embedder is None):
        raise UserError(f"{path}: holds a {type(model).__name__}, another kind of linear model; train the run again")
    return LinearScorer(*([model[0], model[1]] if embedder is None else [embedder, model]))


def _types(path: Path) -> set[str]:
    """Names of all types that a file of skops states, before one of them is looked up."""
    found = set()

    def note(node: dict) -> dict:
        if isinstance(node.get("__class__"), str):  # else a vocabulary, of which it is a word
            found.add(f"{node.get('__module__')}.{node['__class__']}")
        return {}  # inner ones come first, and nothing is needed of them

    with ZipFile(path) as file:
        json.loads(file.read("schema.json"), object_hook=note)
    return found
