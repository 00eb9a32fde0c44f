"""Rows of a task, from file to splits: every row is read, checked and counted, none is dropped."""

import csv
import hashlib
import io
import math
import os
import re
import time
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fintune.errors import UserError
from fintune.machine import hub_reachable
from fintune.task import DataFile, Task

import numpy as np
from datasets import Dataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.utils.class_weight import compute_class_weight

SPLITS = ("train", "validation", "test")
URL = re.compile(r"https?://\S+|www\.\S+")
NOT_WORD = re.compile(r"[\W_]+")
DIGITS = re.compile(r"\d+")
BLOCK = 2000  # texts that are compared with all others at a time


@dataclass
class TaskData:
    """A task's rows.

    Attributes:
        splits: split -> Dataset of columns text (str), label (id), file and line (where the row stands).
        source: `mirror`, `hub`, `sample` or `file`: results of different sources never share a table.
        sha256: hash over the bytes of all files and the split's settings; the same hash means the same splits.
        clean: for each test row, whether no row of train or validation equals it once normalised.
    """

    splits: dict[str, Dataset]
    source: str
    sha256: str
    clean: list[bool]

    def class_weights(self, task: Task) -> list[float] | None:
        """By label id rows / (labels x rows of the label), counted in the training split; None where not asked for."""
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
        }


def load_data(task: Task, allow_sample: bool = False) -> TaskData:
    """Read a task's files from the mirror, the Hub or beside its YAML, and split them.

    Args:
        allow_sample: fall back to the invented sample rows where neither mirror nor Hub is there.

    Raises:
        UserError: a file is missing or has other bytes or rows than the YAML says; a row has no text or a label that
            the task does not list; a class is missing from a split.
    """
    source, files, contents = _fetch(task, allow_sample)
    rows = {split: _read(task, files[split], content) for split, content in contents.items()}
    digest = hashlib.sha256(repr(sorted(task.split.items())).encode())
    for split in sorted(contents):
        digest.update(split.encode() + hashlib.sha256(contents[split]).digest())
    rows = _cut(task, rows)
    seen = {normalise(row["text"]) for split in ("train", "validation") for row in rows[split]}
    rows["train"] = _share(rows["train"], task.train_share)
    for split, split_rows in rows.items():
        missing = set(range(len(task.labels))) - {row["label"] for row in split_rows}
        if missing:
            names = ", ".join(task.names[label] for label in sorted(missing))
            raise UserError(
                f"{task.task}: no row of class {names} in the {split} split of {len(split_rows)} rows; "
                "give more rows of it, or take it out of `labels`"
            )
    return TaskData(
        splits={split: Dataset.from_list(rows[split]) for split in SPLITS},
        source=source,
        sha256=digest.hexdigest(),
        clean=[normalise(row["text"]) not in seen for row in rows["test"]],
    )


def normalise(text: str) -> str:
    """Lower case, without URLs and punctuation: two texts that differ only there are the same news."""
    return " ".join(NOT_WORD.sub(" ", URL.sub(" ", text.lower())).split())


def near_duplicates(texts: list[str], threshold: float = 0.6) -> np.ndarray:
    """Cluster id of each text; texts whose word pairs overlap by `threshold` or more (Jaccard) share a cluster.

    Exact, by a sparse product in blocks, about a second for 20,000 texts; digits are masked, since the same sentence
    about another quarter is no new evidence.
    """
    marked = [f"^ {DIGITS.sub('0', normalise(text))} $" for text in texts]
    pairs = CountVectorizer(binary=True, ngram_range=(2, 2), token_pattern=r"\S+", lowercase=False, dtype=np.int32)
    features = pairs.fit_transform(marked)
    size = np.asarray(features.sum(axis=1)).ravel()
    columns, found = features.T.tocsr(), []
    for start in range(0, len(texts), BLOCK):
        shared = (features[start : start + BLOCK] @ columns).tocoo()
        rows = shared.row + start
        near = shared.data >= threshold * (size[rows] + size[shared.col] - shared.data)
        found.append((rows[near], shared.col[near]))
    rows, others = (np.concatenate(part) for part in zip(*found, strict=True))
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, others)), shape=(len(texts), len(texts)))
    return connected_components(graph, directed=False)[1]


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
            "the folder FINTUNE_DATA lacks it" if os.environ.get("FINTUNE_DATA") else "mend `files` in the task's YAML"
        )
        raise UserError(f"{path}: no such file; {place}") from error


def _hub_bytes(task: Task, file: DataFile) -> bytes:
    """A file of the pinned revision, fetched up to three times where it comes cut, with an error or with other bytes.

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
        except Exception as error:  # each layer has kinds of its own: HTTP, a cut body, a bad archive, other bytes
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
        return archive.read(member)


def _checked(file: DataFile, content: bytes, where: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if file.sha256 and found != file.sha256:
        raise UserError(
            f"{where}: SHA-256 is {found}, the task pins {file.sha256}; fetch the file again, or pin the new one"
        )
    return content


def _read(task: Task, file: DataFile, content: bytes) -> list[dict]:
    name = Path(file.path).name
    try:
        text = content.decode(file.encoding)
    except LookupError as error:
        raise UserError(f"{name}: encoding {file.encoding!r} is unknown; take one that Python knows") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}:{line}: not {file.encoding} ({error.reason}); convert it, or set `encoding`"
        ) from error
    read = _read_at_lines if name.endswith(".txt") else _read_csv
    ids = {label_name: label for label, label_name in enumerate(task.names)}
    ids |= {value: label for label, value in enumerate(task.labels)}  # what the file holds wins over a name
    rows = []
    for line, row_text, value in read(task, text, name):
        if not row_text.strip():
            raise UserError(f"{name}:{line}: the text is empty; every row needs one, so mend or remove the row")
        if value.strip() not in ids:
            raise UserError(
                f"{name}:{line}: label {value!r} is not among {list(task.labels)}; add it to `labels` or mend the row"
            )
        rows.append({"text": row_text, "label": ids[value.strip()], "file": name, "line": line})
    if not rows:
        raise UserError(f"{name}: no rows below its header; give the file that holds them")
    if file.rows is not None and len(rows) != file.rows:
        raise UserError(f"{name}: {len(rows)} rows, the task's YAML says {file.rows}; fetch it again, or mend `rows`")
    return rows


def _read_at_lines(task: Task, text: str, name: str):
    """Financial PhraseBank's own format, `text@label`; not splitlines(), which also splits at U+0085 and U+2028."""
    for line, row in enumerate(text.split("\n"), start=1):
        row = row.removesuffix("\r")
        if row:
            if "@" not in row:
                raise UserError(f"{name}:{line}: no `@` between text and label in {row[:60]!r}; mend the row")
            row_text, _, value = row.rpartition("@")
            yield line, row_text, value


def _read_csv(task: Task, text: str, name: str):
    """Cells stay text: \"NA\" and \"007\" are headlines like any other, where pandas would read a gap and a 7."""
    reader, start = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    csv.field_size_limit(len(text) + 1)
    try:
        header = next(reader, [])
        columns = {}
        for column in (task.text_column, task.label_column):
            if header.count(column) != 1:
                raise UserError(
                    f"{name}: column {column!r} stands {header.count(column)} times in the header {header}"
                )
            columns[column] = header.index(column)
        start = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(f"{name}:{start}: {len(row)} cells where the header has {len(header)}; mend the row")
            if row:
                yield start, row[columns[task.text_column]], row[columns[task.label_column]]
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{name}:{start}: {error}; the row that starts there is no valid CSV") from error


def _share(rows: list[dict], share: float) -> list[dict]:
    """That share of each class's rows, at least one, chosen by hash: a smaller share lies within a larger one."""
    if share == 1:
        return rows
    place = {id(row): hashlib.sha256(row["text"].encode()).hexdigest() for row in rows}
    left = {label: math.ceil(share * count) for label, count in Counter(row["label"] for row in rows).items()}
    kept = set()
    for row in sorted(rows, key=lambda row: place[id(row)]):
        if left[row["label"]]:
            left[row["label"]] -= 1
            kept.add(id(row))
    return [row for row in rows if id(row) in kept]


def _cut(task: Task, rows: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Cut what the files do not split: stratified by class, whole clusters of near-duplicates, the order by hash.

    A cluster's place depends on its own text and the seed alone, so adding rows moves only clusters at a border.
    """
    rows = dict(rows)
    shares = {split: task.split[split] for split in ("validation", "test") if split not in rows}
    whole = "all" if "all" in rows else "train"
    pool = rows.pop(whole)
    clusters: dict[int, list[dict]] = {}
    for row, cluster in zip(pool, near_duplicates([row["text"] for row in pool]), strict=True):
        clusters.setdefault(int(cluster), []).append(row)

    def place(cluster: list[dict]) -> str:
        first = min(normalise(row["text"]) for row in cluster)
        return hashlib.sha256(f"{task.split['seed']} {first}".encode()).hexdigest()

    wanted = {
        (label, split): share * count
        for label, count in Counter(row["label"] for row in pool).items()
        for split, share in shares.items()
    }
    parts = {split: [] for split in ("train", *shares)}
    for cluster in sorted(clusters.values(), key=place):
        label = Counter(row["label"] for row in cluster).most_common(1)[0][0]
        split = next((split for split in shares if wanted[label, split] >= len(cluster) / 2), "train")
        if split != "train":
            for row in cluster:
                wanted[row["label"], split] -= 1
        parts[split] += cluster
    order = {id(row): index for index, row in enumerate(pool)}
    for split, part in parts.items():
        rows[split] = sorted(part, key=lambda row: order[id(row)])
    return rows
