"""Labels that are likely wrong: rows that a near-duplicate contradicts, and rows that models predict otherwise.

The models are linear, and none saw the rows that it predicts, nor a near-duplicate of them. What is said of other rows
does not depend on the labels of test rows, so that a run without suspects can be scored on these.

Confident learning (Northcutt et al., https://arxiv.org/abs/1911.00068), by cleanlab, says how many rows of a class are
wrong and which: it takes as certain a probability above the class's own mean, so a class that is hard does not fill
the list.
"""

import io
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
from cleanlab.filter import find_label_issues
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold

from fintune.data.csv_file import write_csv
from fintune.data.inputs import Input, as_input
from fintune.data.load import TaskData
from fintune.data.near_duplicates import near_pairs
from fintune.data.same_text import normalise, row_key, signs_of
from fintune.errors import UserError
from fintune.files import write_text
from fintune.model.linear import LinearArguments, build_classifier, build_features, transformed
from fintune.model.wheel import find_model
from fintune.recipe.recipe import parse_recipe
from fintune.recipe.task import Task

FOLDS = 5


@dataclass
class Suspect:
    """A row whose label is likely wrong.

    Attributes:
        row: of `all_rows`.
        label, probability: its label, and what the models give it, in 0..1.
        likely, likely_probability: the label that they predict.
        predicted_otherwise: whether confident learning counts it as one.
        contradicting: (row, its label) of near-duplicates with another, likelier label.
    """

    row: dict
    label: str
    probability: float
    likely: str
    likely_probability: float
    predicted_otherwise: bool
    contradicting: list[tuple[dict, str]]

    @property
    def why(self) -> str:
        reasons = []
        if self.contradicting:  # one of them is shown, if possible one with the same words
            nearly = [normalise(other["text"]) != normalise(self.row["text"]) for other, _ in self.contradicting]
            other, label = self.contradicting[nearly.index(min(nearly))]
            where = f"line {other['line']}" + f" of {other['file']}" * (other["file"] != self.row["file"])
            more = f" and {len(nearly) - 1} more" * (len(nearly) > 1)
            same = "nearly the same text" if min(nearly) else "the same text"
            reasons.append(f"contradicts {where}{more}: {same}, labelled {label}")
        if self.predicted_otherwise:
            reasons.append(f"predicted {self.likely} with {self.likely_probability:.2f} by models that did not see it")
        return "; ".join(reasons)

    @property
    def cells(self) -> tuple:
        """Its row of the CSV."""
        place = (self.row["split"], self.row["file"], self.row["line"])
        read = (self.row["text"], *self.row.get("columns", {}).values())
        given, likely = (self.label, f"{self.probability:.4f}"), (self.likely, f"{self.likely_probability:.4f}")
        return (*place, *read, *given, *likely, self.why)


def read_encoder(task: Path, recipe: Path) -> tuple[str, LinearArguments]:
    """(name, arguments) of a frozen embedding's recipe, its model found.

    Raises:
        UserError: the recipe is of something else, or its model cannot be found.
    """
    read = parse_recipe([str(task), str(recipe)], LinearArguments, script="train_linear.py")
    args = read.run_args
    if args.linear_model != "embedding":
        raise UserError(f"{recipe}: `linear_model` is {args.linear_model}; name the recipe of an embedding, or none")
    base, _ = find_model(args.model_name_or_path, args.model_revision, args.wheel)
    return read.name, replace(args, model_name_or_path=base)


def all_rows(data: TaskData) -> list[dict]:
    """The rows of every split, each with the `split` that it is in."""
    return [row | {"split": split} for split, rows in data.splits.items() for row in rows]


def in_test(rows: list[dict]) -> np.ndarray:
    """(rows,) bool, those of the test split."""
    return np.array([row["split"] == "test" for row in rows])


def folds(task: Task, rows: list[dict]) -> np.ndarray:
    """(rows,) fold of each: whole clusters of near-duplicates, stratified by label, the test rows as one class.

    Raises:
        UserError: a class has too few rows outside the test split that differ.
    """
    strata, clusters = np.where(in_test(rows), -1, [row["label"] for row in rows]), [row["cluster"] for row in rows]
    for label, name in enumerate(task.names):
        different = len(set(compress(clusters, strata == label)))
        if different < FOLDS:
            raise UserError(
                f"{task.task}: {different} rows of class {name} outside the test split differ by more than near-"
                f"duplicates do, and {FOLDS} folds need one each; give more rows of it, or take it out of `labels`"
            )
    fold = np.empty(len(rows), dtype=int)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for number, (_, inside) in enumerate(splitter.split(strata, strata, clusters)):
        fold[inside] = number
    return fold


def cross_fitted(
    args: LinearArguments, inputs: list[Input], labels: np.ndarray, fold: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """(texts, labels) probabilities, each row's by a model that was fitted on the other folds without their test rows.

    Args:
        args: of TF-IDF, or of `read_encoder`. Of its `C` the one of least log-loss over the other rows is kept.
        inputs: what the models are asked about each row.
        fold: (texts,) of `folds`.
        test: (texts,) bool, the rows of the test split.
    """
    found = {C: np.empty((len(inputs), labels.max() + 1)) for C in args.C}
    if args.linear_model == "embedding":  # frozen: the same whatever it is fitted on
        states = transformed(build_features(args, args.model_name_or_path, inputs), inputs)
    for number in range(FOLDS):
        inside, others = fold == number, (fold != number) & ~test
        if args.linear_model == "embedding":
            known, held_out = states[others], states[inside]
        else:
            features = build_features(args, None, list(compress(inputs, others)))
            known, held_out = (transformed(features, list(compress(inputs, part))) for part in (others, inside))
        for C, probabilities in found.items():
            classifier = build_classifier(args, C, None).fit(known, labels[others])
            probabilities[inside] = classifier.predict_proba(held_out)
    return min(found.values(), key=lambda probabilities: log_loss(labels[~test], probabilities[~test]))


def contradictions(rows: list[dict], predicted: np.ndarray, own: np.ndarray) -> dict[int, list[int]]:
    """Index of a row -> rows of another label whose text is nearly the same, with the same numbers, signs and columns.

    Of such a pair the row whose label is less likely is given, once. Where the models tell the two apart (`profit
    rose`, `profit fell`) there is no contradiction. Of a test row and another one it is the test row.

    Args:
        predicted: (rows,) label ids of the models.
        own: (rows,) probability of each row's own label.
    """
    one, other = near_pairs([row["text"] for row in rows], mask_digits=False).of_texts()
    labels = np.array([row["label"] for row in rows])
    keys = [repr((signs_of(row["text"]), row_key(row)[1:])) for row in rows]  # +5 % is not -5 %, nor AAPL MSFT
    asked = np.unique(keys, return_inverse=True)[1]
    alike = (predicted[one] == predicted[other]) & (labels[one] != labels[other]) & (asked[one] == asked[other])
    test = in_test(rows)
    less = (own[one] < own[other]) | ((own[one] == own[other]) & (one < other))
    less = np.where(test[one] == test[other], less, test[one])
    found = defaultdict(list)
    for at, partner in sorted(zip(one[alike & less].tolist(), other[alike & less].tolist(), strict=True)):
        found[at].append(partner)
    return dict(found)


def find_suspects(task: Task, rows: list[dict], probabilities: np.ndarray) -> list[Suspect]:
    """The rows whose label is likely wrong: contradicted ones first, then those of the least likely label.

    Args:
        rows: of `all_rows`.
        probabilities: (rows, labels) of `cross_fitted`.
    """
    labels, predicted = np.array([row["label"] for row in rows]), probabilities.argmax(axis=1)
    own = probabilities[np.arange(len(rows)), labels]
    contradicted = contradictions(rows, predicted, own)
    test = in_test(rows)
    issue = find_label_issues(labels, probabilities, n_jobs=1)  # kept of test rows alone
    issue[~test] = find_label_issues(labels[~test], probabilities[~test], n_jobs=1)
    issues = set(np.flatnonzero(issue).tolist())
    return [
        Suspect(
            row=rows[at],
            label=task.names[labels[at]],
            probability=float(own[at]),
            likely=task.names[predicted[at]],
            likely_probability=float(probabilities[at].max()),
            predicted_otherwise=at in issues,
            contradicting=[(rows[other], task.names[labels[other]]) for other in contradicted.get(at, [])],
        )
        for at in sorted(issues | contradicted.keys(), key=lambda at: (at not in contradicted, own[at], at))
    ]


def report(task: Task, data: TaskData, path: Path, encoder: tuple[str, LinearArguments] | None = None) -> str:
    """Write the suspects of a task's rows as CSV, whole or not at all.

    Args:
        encoder: of `read_encoder`; its probabilities are averaged with those of TF-IDF.

    Returns:
        What was found, in one sentence whose counts add up.

    Raises:
        UserError: as `folds`.
    """
    rows = all_rows(data)
    inputs = [as_input(row["text"], row.get("columns", {})) for row in rows]
    labels, fold = np.array([row["label"] for row in rows]), folds(task, rows)
    test = in_test(rows)
    models = {"TF-IDF": LinearArguments(linear_model="tfidf")} | dict([encoder] if encoder else [])
    probabilities = np.mean([cross_fitted(args, inputs, labels, fold, test) for args in models.values()], axis=0)
    found = find_suspects(task, rows, probabilities)

    header = ("split", "file", "line", "text", *task.columns)
    header += ("label", "probability", "likely", "likely_probability", "why")
    content = io.StringIO()
    write_csv(content, [header, *(each.cells for each in found)])
    write_text(path, content.getvalue())
    kinds = Counter((bool(each.contradicting), each.predicted_otherwise) for each in found)
    counts = Counter(each.row["split"] for each in found)
    splits = ", ".join(f"{counts[split]:,} {split}" for split in data.splits)
    return (
        f"suspects: {len(found):,} of {len(rows):,} rows ({splits}) in {path}: {kinds[True, False]:,} "
        f"contradicted by a near-duplicate, {kinds[False, True]:,} predicted otherwise, {kinds[True, True]:,} both; "
        f"{' and '.join(models)}, cross-fitted, predict {(probabilities.argmax(axis=1) == labels).mean():.1%} of the "
        "labels"
    )
