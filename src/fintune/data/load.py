"""Rows of a task, from file to splits: every row is read, checked and counted, none is dropped."""

import hashlib
import os
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError
from sklearn.utils.class_weight import compute_class_weight

from fintune.data.exclude import without_excluded
from fintune.data.inputs import Input, as_input, named_columns, text_of, training_columns
from fintune.data.rows import EMPTY_LINE, fault_of
from fintune.data.same_text import row_key
from fintune.data.soft_labels import soft_rows
from fintune.data.splits import share_rows, split_rows
from fintune.data.tables import check_column, read_inputs, read_table
from fintune.data.text_file import TextFile
from fintune.errors import UserError
from fintune.machine import hub_reachable
from fintune.recipe.task import DataFile, Task

SPLITS = ("train", "validation", "test")
MOST_UNPACKED = 2**30  # bytes of a file in an archive, whose hash is known only when it is unpacked


@dataclass
class TaskData:
    """A task's rows.

    Attributes:
        splits: split -> Dataset of columns text (str), label (id), file and line (where it is), chain (equal for
            near-duplicates) and cluster (of those that stay together); in a task with columns also columns (a mapping
            of each to its value); of train with `soft_labels` also probabilities, the label being the most likely one.
        source: `mirror`, `hub`, `sample` or `file`: results of different sources never share a table.
        sha256: hash over the bytes of all files and the split's settings; the same hash means the same splits. Of
            `soft_labels`, which change the training rows alone, a run's identity has a hash of its own.
        clean: for each test row, whether no row of train or validation equals it once normalised; of two rows with
            the same text and other columns neither repeats the other.
        soft_labels: of a task with them, rows of their file and how many were left out for which reason.
    """

    splits: dict[str, Dataset]
    source: str
    sha256: str
    clean: list[bool]
    soft_labels: dict[str, int] | None = None

    def class_weights(self, task: Task) -> list[float] | None:
        """By label id rows / (labels x rows of the label) of the training split; None where the task wants none."""
        if task.class_weights is None:
            return None
        labels = np.asarray(self.splits["train"]["label"])
        return compute_class_weight(task.class_weights, classes=np.arange(len(task.labels)), y=labels).tolist()

    def summary(self) -> dict:
        """What a result says of the data it saw."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "rows": {split: len(rows) for split, rows in self.splits.items()},
            "test_rows_repeated_in_train": self.clean.count(False),
            **({"soft_labels": self.soft_labels} if self.soft_labels else {}),
        }


def inputs_of(rows: Dataset) -> Sequence[Input]:
    """What a model is asked about each row: its text, or a mapping of `text` and the task's columns."""
    if "columns" not in rows.column_names:
        return rows["text"]
    return [as_input(*row) for row in zip(rows["text"], rows["columns"], strict=True)]


def load_data(task: Task, allow_sample: bool = False) -> TaskData:
    """Read a task's files from the mirror, the Hub or beside its YAML, and split them.

    Args:
        allow_sample: fall back to the invented sample rows where neither mirror nor Hub is there.

    Raises:
        UserError: a file is missing or has other bytes or rows than the YAML says; a row has no text, an empty column
            or a label that the task does not list; a class is missing from a split; see also `soft_rows`.
    """
    source, files, contents = _fetch(task, allow_sample)
    rows = {split: _read(task, files[split], content) for split, content in contents.items()}
    digest = hashlib.sha256(repr(sorted(task.split.items())).encode())
    for split in sorted(contents):
        digest.update(split.encode() + hashlib.sha256(contents[split]).digest())
    rows, soft_counts = split_rows(task, rows), None
    if task.soft_labels:  # what a test file shares with training is judged by `max_leakage`, as without them
        rows["train"], soft_counts = soft_rows(task, rows, {"validation"} | ({"test"} - contents.keys()))
    seen = {row_key(row) for split in ("train", "validation") for row in rows[split]}
    if task.exclude:
        rows["train"] = without_excluded(task, rows)
    rows["train"] = share_rows(rows["train"], task.train_share)
    for split, found in rows.items():
        missing = set(range(len(task.labels))) - {row["label"] for row in found}
        if missing:
            names = ", ".join(task.names[label] for label in sorted(missing))
            raise UserError(
                f"{task.task}: no row of class {names} in the {split} split of {len(found)} rows; give more rows of "
                "it (repeats of a text stay in one split and count as one), or take it out of `labels`"
            )
    return TaskData(
        splits={split: Dataset.from_list(rows[split]) for split in SPLITS},
        source=source,
        sha256=digest.hexdigest(),
        clean=[row_key(row) not in seen for row in rows["test"]],
        soft_labels=soft_counts,
    )


def _fetch(task: Task, allow_sample: bool) -> tuple[str, dict[str, DataFile], dict[str, bytes]]:
    mirror = os.environ.get("FINTUNE_DATA")
    if not task.hub:
        return "file", task.files, {split: _file_bytes(file, Path(file.path)) for split, file in task.files.items()}
    if mirror:
        return (
            "mirror",
            task.files,
            {split: _file_bytes(file, Path(mirror) / file.path) for split, file in task.files.items()},
        )
    try:
        return "hub", task.files, {split: _hub_bytes(task, file) for split, file in task.files.items()}
    except HfHubHTTPError as error:
        what = f"{type(error).__name__}, status {error.response.status_code}"
        raise UserError(f"{task.task}: the Hub does not give {task.hub} ({what}); {_set_mirror(task)}") from error
    except (LocalEntryNotFoundError, HTTPError) as error:  # the latter of a proxy that lets nothing through
        if not (allow_sample and task.sample):
            raise UserError(f"{task.task}: the Hub is out of reach; connect, or {_set_mirror(task)}") from error
    print(
        f"data: the Hub is out of reach and FINTUNE_DATA is not set, so the invented sample of `{task.task}` is used"
    )
    return "sample", task.sample, {split: _file_bytes(file, Path(file.path)) for split, file in task.sample.items()}


def _set_mirror(task: Task) -> str:
    return "set FINTUNE_DATA to a folder that holds " + ", ".join(file.path for file in task.files.values())


def _file_bytes(file: DataFile, path: Path) -> bytes:
    try:
        return _checked(file, path.read_bytes(), str(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        place = (
            "the folder FINTUNE_DATA lacks it" if os.environ.get("FINTUNE_DATA") else "fix `files` in the task's YAML"
        )
        raise UserError(f"{path}: no such file; {place}") from error


def _hub_bytes(task: Task, file: DataFile) -> bytes:
    """A file of the pinned revision, fetched up to three times where it comes incomplete or with other bytes.

    The Hub's client tries again by itself where it gets no answer or a busy one.
    """
    name, _, member = (file.hub_path or file.path).partition("::")
    where, online = f"{task.hub}/{file.hub_path or file.path}", hub_reachable()
    for tries_left in (2, 1, 0):
        try:
            local = hf_hub_download(
                task.hub,
                name,
                repo_type="dataset",
                revision=task.revision,
                local_files_only=not online,
                force_download=tries_left < 2,
            )
            return _checked(file, _content(Path(local), member), where)
        except Exception as error:  # HTTP, an incomplete body, a bad archive, other bytes: each a kind of its own
            answered = isinstance(error, HfHubHTTPError)
            refused = answered and error.response.status_code < 500
            unconnected = type(error).__name__ in (
                "ConnectError",
                "ConnectTimeout",
                "ProxyError",
            )  # httpx's or httpx2's
            silent = isinstance(error, LocalEntryNotFoundError) or unconnected
            if refused or silent or not online:
                raise
            cause = error.__cause__ if isinstance(error, ValueError) and error.__cause__ else error
            problem = str(cause) or type(cause).__name__
            if not tries_left:
                what = problem if isinstance(error, UserError) else f"{where}: {problem}; try again later"
                raise UserError(f"{' '.join(what.split())} (fetched three times)") from error
            print(f"data: {' '.join(problem.split())}: {where} is fetched again")
            time.sleep(3 - tries_left)


def _content(path: Path, member: str) -> bytes:
    if not member:
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        if (size := archive.getinfo(member).file_size) > MOST_UNPACKED:
            raise UserError(
                f"{path}::{member}: unpacks to {size:,} bytes, over {MOST_UNPACKED:,}; fetch the right file"
            )
        return archive.read(member)  # no more than it says


def _checked(file: DataFile, content: bytes, where: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if file.sha256 and found != file.sha256:
        raise UserError(
            f"{where}: SHA-256 is {found}, the task pins {file.sha256}; fetch the file again, or pin the new one"
        )
    return content


def _read(task: Task, file: DataFile, content: bytes) -> list[dict]:
    name = Path(file.path).name
    if task.columns and name.endswith(".txt"):
        raise UserError(f"{name}: has no column {task.columns[0]!r}, only `text@label`; make it a CSV with a header")
    read = _read_at_lines if name.endswith(".txt") else _read_table
    ids, rows = task.label_ids, []
    for line, given, value in read(task, file, content, name):
        if not text_of(given).strip():
            raise UserError(f"{name}:{line}: the text is empty; every row needs one, so fix or remove the row")
        if value.strip() not in ids:
            raise UserError(
                f"{name}:{line}: label {value!r} is not among {list(task.labels)}; add it to `labels` or fix the row"
            )
        columns = training_columns(given, f"{name}:{line}")
        rows.append({"text": text_of(given), "label": ids[value.strip()], "file": name, "line": line, **columns})
    if not rows:
        raise UserError(f"{name}: no rows below its header; give the file that holds them")
    if file.rows is not None and len(rows) != file.rows:
        raise UserError(f"{name}: {len(rows)} rows, the task's YAML says {file.rows}; fetch it again, or fix `rows`")
    return rows


def _read_at_lines(task: Task, file: DataFile, content: bytes, name: str):
    """Financial PhraseBank's own format, `text@label`; not splitlines(), which also splits at U+0085 and U+2028."""
    for line, row, fault in TextFile(Path(name), content, stated_encoding(file), strict=True).lines():
        row = row.rstrip("\r\n")
        if fault:
            raise UserError(f"{name}:{line}: {fault}; fix the row")
        if row:
            if "@" not in row:
                raise UserError(f"{name}:{line}: no `@` between text and label in {row[:60]!r}; fix the row")
            row_text, _, value = row.rpartition("@")
            yield line, row_text, value


def _read_table(task: Task, file: DataFile, content: bytes, name: str):
    """Cells of text files stay text: \"NA\" and \"007\" are headlines like any other; empty lines are none."""
    table = read_table(Path(name), task.text_column, content, encoding=stated_encoding(file), strict=True)
    for column, key in ((task.text_column, "text_column"), (task.label_column, "label_column")):
        check_column(table, Path(name), column, f"`{key}: {{}}` in the task's YAML", texts=key == "text_column")
    for column in task.columns:
        check_column(table, Path(name), column, "`columns: [{}]` in the task's YAML", texts=False)
    for row in read_inputs(table, named_columns(task.columns)):
        if row.fault == EMPTY_LINE:
            continue
        fault = row.fault or fault_of(text_of(row.text))
        if fault not in (None, "empty"):  # of which the caller says what is needed
            raise UserError(f"{name}:{row.line}: {fault}; fix the row")
        try:
            value = table.value(row, task.label_column)
        except UnicodeDecodeError as error:  # in Parquet
            raise UserError(f"{name}:{row.line}: the label is not UTF-8; fix the row") from error
        yield row.line, row.text, "" if value is None else str(value)


def stated_encoding(file: DataFile) -> str | None:
    """A file's encoding where its task states one: its default is what is found out anyway."""
    return None if file.encoding == "utf-8-sig" else file.encoding
