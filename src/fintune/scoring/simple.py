"""What the simplest models reach on the rows that a run was scored on: a figure means little without them."""

import numpy as np

from fintune.data.load import TaskData, inputs_of
from fintune.model.linear import as_words, transformed, word_classifier, word_features
from fintune.recipe.task import Task
from fintune.scoring.paired import exact_mcnemar


def simple_models(task: Task, data: TaskData, split: str, correct: np.ndarray) -> dict[str, dict]:
    """The commonest label of the training rows, and TF-IDF trained on them; a second or a few.

    Args:
        correct: (n,) bool, of the run on the rows of `split`.

    Returns:
        name -> accuracy in 0..1 and p, of McNemar's exact test against the run; of the commonest label also `label`.
    """
    train, rows = data.splits["train"], data.splits[split]
    known, truth = np.asarray(train["label"]), np.asarray(rows["label"])
    commonest = int(np.bincount(known).argmax())
    found = {"majority class": _beside(correct, truth == commonest) | {"label": task.names[commonest]}}
    features = word_features()
    try:
        seen = features.fit_transform([as_words(given) for given in inputs_of(train)])
    except ValueError:  # no text holds a word
        return found
    if len(set(known)) > 1:
        answers = word_classifier(class_weights=task.class_weights).fit(seen, known)
        found["TF-IDF"] = _beside(correct, answers.predict(transformed(features, inputs_of(rows))) == truth)
    return found


def _beside(correct: np.ndarray, other: np.ndarray) -> dict:
    return {"accuracy": float(other.mean()), "p": exact_mcnemar(correct, other)[2]}
