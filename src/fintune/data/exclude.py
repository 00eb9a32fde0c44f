"""Rows that a task's `exclude` leaves out of training, such as suspects that were looked at."""

from pathlib import Path

from fintune.data.rows import fault_of
from fintune.data.tables import read_table
from fintune.errors import UserError
from fintune.recipe.task import Task


def without_excluded(task: Task, rows: dict[str, list[dict]]) -> list[dict]:
    """The training rows whose text and label the file of `exclude` does not list; says how many are left out.

    Args:
        rows: split -> rows with `text` and `label`.

    Raises:
        UserError: the file is missing, or a row of it has no text or a label that the task does not list.
    """
    path = Path(task.exclude)
    listed = _listed(task, path)
    train = {(row["text"], row["label"]) for row in rows["train"]}
    others = {(row["text"], row["label"]) for split, found in rows.items() if split != "train" for row in found}
    kept = [row for row in rows["train"] if (row["text"], row["label"]) not in listed]
    counts = [len(listed & train), len((listed - train) & others), len(listed - train - others)]
    print(
        f"exclude: {len(rows['train']) - len(kept):,} of {len(rows['train']):,} training rows are left out; of the "
        f"{len(listed):,} that {path.name} lists, {counts[0]:,} are in training, {counts[1]:,} in validation or test, "
        f"which stay whole, {counts[2]:,} nowhere"
    )
    return kept


def _listed(task: Task, path: Path) -> set[tuple[str, int]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; fix `exclude` in the task's YAML, or take it out")
    table = read_table(path, "text")
    for column in ("text", "label"):
        if table.columns.count(column) != 1:
            raise UserError(f"{path}: no column {column!r} among {table.columns[:20]}; `exclude` needs text and label")
    listed = set()
    for row in table.rows():
        if fault := row.fault or fault_of(row.text):
            raise UserError(f"{path}:{row.line}: text is {fault}; fix or remove the row")
        label = str(table.value(row, "label")).strip()
        if label not in task.label_ids:
            raise UserError(f"{path}:{row.line}: label {label!r} is not among {task.names}; fix or remove the row")
        listed.add((row.text, task.label_ids[label]))
    return listed
