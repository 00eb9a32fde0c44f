"""Soft labels: training rows with a probability for each label, from a file that `fintune predict` wrote.

They take the place of the task's own training rows. Validation and test stay as they are, with their hard labels.
"""

import math
from pathlib import Path

import numpy as np

from fintune.data.inputs import named_columns, text_of, training_columns
from fintune.data.near_duplicates import near_pairs
from fintune.data.rows import fault_of
from fintune.data.splits import mark_clusters
from fintune.data.tables import check_column, read_inputs, read_table
from fintune.errors import UserError
from fintune.recipe.task import Task

OFF = 1e-3  # what a row's probabilities may sum to above or below 1
EMPTY = (None, "")


def soft_rows(task: Task, splits: dict[str, list[dict]], held_out: set[str]) -> tuple[list[dict], dict[str, int]]:
    """The training rows of a task with `soft_labels`.

    Args:
        splits: the task's own; `chain` and `cluster` of their rows are found anew.
        held_out: splits of which no row, and no near-duplicate of one, may be trained on.

    Returns:
        (rows, counts): a row has `text`, in a task with columns `columns`, `probabilities` in label id order (their
        sum is 1), `label` (the id of the most likely one), `file`, `line`, `chain` and `cluster`. Counts are `rows` of
        the file and, of those left out, `unlabelled` (predict rejected them), `abstained` and `near_held_out`.

    Raises:
        UserError: the file is missing, lacks a column, holds a row that cannot be read, without text or with
            probabilities that are none, or no row is left.
    """
    rows, counts = _read(task)
    others = [(split, row) for split in ("validation", "test") for row in splits[split]]
    everything = rows + [row for _, row in others]
    pairs = near_pairs([row["text"] for row in everything])
    mark_clusters(everything, pairs, [])  # nothing is split off
    held = np.array([False] * len(rows) + [split in held_out for split, _ in others])
    kept = [row for row, near in zip(rows, pairs.near(held)[: len(rows)].tolist(), strict=True) if not near]
    counts["near_held_out"] = len(rows) - len(kept)
    print(
        f"data: {len(kept):,} of the {counts['rows']:,} rows of {task.soft_labels.path} are trained on; left out are "
        f"{counts['unlabelled']:,} that predict rejected, {counts['abstained']:,} abstained and "
        f"{counts['near_held_out']:,} near-duplicates of rows of {' and '.join(sorted(held_out))}"
    )
    if not kept:
        raise UserError(f"{task.soft_labels.path}: no row is left to train on; label other texts")
    return kept, counts


def _read(task: Task) -> tuple[list[dict], dict[str, int]]:
    """Rows that have probabilities, and counts of the others."""
    path, prefix = Path(task.soft_labels.path), task.soft_labels.prefix
    if not path.is_file():
        raise UserError(f"{path}: no such file; write it by `fintune predict`, or fix `soft_labels`")
    table = read_table(path, task.text_column)
    check_column(table, path, task.text_column, "`text_column: {}` in the task's YAML")
    columns = [f"{prefix}probability_{name}" for name in task.names]
    for column in (*task.columns, *columns):
        if table.columns.count(column) != 1:
            needed = "the task's columns, and one" if task.columns else "one"
            raise UserError(
                f"{path}: no column {column!r}, or several, among {str(table.columns)[:200]}; `soft_labels` needs "
                f"{needed} for each label, by the names that `fintune predict` gives them (its --prefix is `prefix`)"
            )
    rows, unlabelled, abstained = [], 0, 0
    for row in read_inputs(table, named_columns(task.columns)):
        where = f"{path.name}:{row.line}"
        if row.fault:
            raise UserError(f"{where}: {row.fault}; fix or remove the row")
        values = [table.value(row, column) for column in columns]
        if all(value in EMPTY for value in values):
            unlabelled += 1
        elif f"{prefix}abstained" in table.columns and str(table.value(row, f"{prefix}abstained")).lower() == "true":
            abstained += 1
        elif fault := fault_of(text_of(row.text)):
            raise UserError(f"{where}: the text is {fault}; fix or remove the row")
        else:
            probabilities = _distribution(dict(zip(columns, values, strict=True)), where)
            label = int(probabilities.argmax())
            found = {"text": text_of(row.text), "label": label, "probabilities": probabilities.tolist()}
            rows.append(found | {"file": path.name, "line": row.line, **training_columns(row.text, where)})
    counts = {"rows": len(rows) + unlabelled + abstained, "unlabelled": unlabelled, "abstained": abstained}
    return rows, counts


def _distribution(values: dict[str, object], where: str) -> np.ndarray:
    """(labels,) float64 probabilities of a row that sum to 1, from its cells by column."""
    found = []
    for column, value in values.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:
            raise UserError(f"{where}: {column} is {value!r}, no number from 0 to 1; label the text again")
        found.append(number)
    if abs(sum(found) - 1) > OFF:
        raise UserError(f"{where}: the probabilities sum to {sum(found):.4f}, not to 1; label the text again")
    return np.array(found) / sum(found)
