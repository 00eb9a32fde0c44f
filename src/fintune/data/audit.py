"""What is wrong with a task's rows, before anything is trained on them: repeats, leaks, contradictions, odd texts."""

import re
from collections import Counter, defaultdict

import numpy as np
from rich.table import Table

from fintune.data.load import TaskData
from fintune.data.same_text import URL, row_key
from fintune.errors import UserError
from fintune.machine import console
from fintune.recipe.task import Task

ODD = {  # what a text holds, by a pattern that finds it
    "possible encoding damage (such as + or - before a character beyond ASCII)": r"[+-][^\x00-\x7f]|\ufffd|Ã.|â€",
    "HTML entities": r"&(?:amp|lt|gt|quot|apos|nbsp|#\d+);",
    "control characters": r"[\x00-\x08\x0b-\x1f\x7f-\x9f]",
    "zero-width or bidirectional characters": r"[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]",
    "the beginning of a spreadsheet formula": r"^[=+\-@\t\r]",
}


def audit(task: Task, data: TaskData) -> dict:
    """Counts over all splits; near-duplicates share 0.6 of their word pairs, see fintune/data/near_duplicates.py;
    their clusters are those of all rows, also where `train_share` leaves some out, and whole where they were cut. Rows
    with the same text and other columns are no repeats, no leak and no contradiction: they are different questions.

    Returns:
        rows: split -> label -> rows; repeats: kind -> rows that repeat an earlier one; leaked: kind -> test rows that
        are in train or validation too; cut: clusters that were and, of all `rows` of them, those `apart`, of whose
        cluster another split has some too; contradictions: texts, once normalised, with several labels; odd: what ->
        rows; characters: median and most of a text.
    """
    splits = {split: list(rows) for split, rows in data.splits.items()}
    rows = _flat(splits)
    texts = [row["text"] for row in rows]
    columns = [row_key(row)[1:] for row in rows]
    at = np.repeat(list(splits), [len(rows) for rows in splits.values()])
    keys = {
        "exact": list(zip(texts, columns, strict=True)),
        "normalised": [row_key(row) for row in rows],
        "near": [(row["chain"], *others) for row, others in zip(rows, columns, strict=True)],
    }
    labels_of = defaultdict(set)
    for key, row in zip(keys["normalised"], rows, strict=True):
        labels_of[key].add(row["label"])
    leaked = {}
    for kind, found in keys.items():
        seen = {key for key, split in zip(found, at, strict=True) if split != "test"}
        leaked[kind] = sum(key in seen for key, split in zip(found, at, strict=True) if split == "test")
    parts, sides = defaultdict(set), defaultdict(set)
    for row, split in zip(rows, at, strict=True):
        parts[row["chain"]].add(row["cluster"])
        sides[row["chain"]].add(split)
    cut = [row["chain"] for row in rows if len(parts[row["chain"]]) > 1]
    odd = {what: sum(bool(re.search(pattern, text)) for text in texts) for what, pattern in ODD.items()}
    odd["nothing but links"] = sum(not URL.sub("", text).strip() for text in texts)
    lengths = [len(text) for text in texts]
    return {
        "rows": {
            split: {task.names[label]: count for label, count in sorted(Counter(r["label"] for r in rows).items())}
            for split, rows in splits.items()
        },
        "repeats": {kind: len(found) - len(set(found)) for kind, found in keys.items()},
        "leaked": leaked,
        "cut": {
            "clusters": len(set(cut)),
            "rows": len(cut),
            "apart": sum(len(sides[chain]) > 1 for chain in cut),
        },
        "contradictions": sum(len(labels) > 1 for labels in labels_of.values()),
        "odd": odd,
        "characters": {"median": float(np.median(lengths)), "most": max(lengths)},
    }


def _flat(splits: dict[str, list[dict]]) -> list[dict]:
    return [row for rows in splits.values() for row in rows]


def check_leakage(task: Task, data: TaskData) -> None:
    """Refuse to train where too much of the test split is in training too.

    Raises:
        UserError: more than the task's `max_leakage` of it, once case, links and punctuation are dropped.
    """
    leaked = data.clean.count(False) / len(data.clean)
    if leaked > task.max_leakage:
        raise UserError(
            f"{task.task}: {data.clean.count(False)} of {len(data.clean)} test rows ({leaked:.1%}) are in training "
            f"or validation too, above max_leakage {task.max_leakage:g}; take them out of the test file, or state a "
            "higher `max_leakage` in the task's YAML (accuracy_clean leaves them out either way)"
        )


def lines(found: dict) -> list[str]:
    """The report in three sentences, for what prints before training; a fourth where clusters were cut."""
    rows, test = sum(sum(counts.values()) for counts in found["rows"].values()), sum(found["rows"]["test"].values())
    odd = ", ".join(f"{count:,} with {what}" for what, count in found["odd"].items() if count)
    said = [
        f"audit: {_by_kind(found['repeats'], rows, 'rows repeat an earlier one')}",
        f"audit: {_by_kind(found['leaked'], test, 'test rows are in training or validation too')}",
        f"audit: {found['contradictions']:,} texts have two labels; {f'odd rows: {odd}' if odd else 'no row is odd'}.",
    ]
    if (cut := found["cut"])["clusters"]:
        said.append(
            f"audit: {cut['clusters']:,} clusters of near-duplicates ({cut['rows']:,} rows) are cut: each held more "
            f"than twice a split's share of a class, whose other rows were too few. {cut['apart']:,} of the rows have "
            "one of their cluster in another split, so texts of another kind are harder than this test."
        )
    return said


def _by_kind(counts: dict[str, int], rows: int, what: str) -> str:
    exact, normalised, near = counts.values()
    alike = f"{normalised:,} if case, links and punctuation are ignored, {near:,} if near-duplicates count"
    return f"{exact:,} of {rows:,} {what}, {alike}."


def show(task: Task, found: dict) -> None:
    table = Table(title=f"{task.task}: rows by label")
    table.add_column("label")
    for split in found["rows"]:
        table.add_column(split, justify="right")
    for name in task.names:
        table.add_row(name, *(f"{counts.get(name, 0):,}" for counts in found["rows"].values()))
    console().print(table)
    counts = Counter(found["rows"]["train"])
    most, least = max(counts.values()), min(counts.values())
    print(f"imbalance: the commonest class has {most / least:.1f} times the training rows of the rarest")
    characters = found["characters"]
    print(f"length: {characters['median']:.0f} characters in the median, {characters['most']:,} at most")
    for line in lines(found):
        print(line.removeprefix("audit: "))
