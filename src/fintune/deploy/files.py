"""Label a file of any length: in shards that are whole or not there, so that a killed run goes on where it was.

OUT.parts/ holds manifest.json, for each shard its rows and what was rejected, and scores.sqlite, the probabilities of
every text so far. When the last shard is done they become OUT and OUT.rejected.jsonl, and OUT.parts goes.
"""

import hashlib
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from fintune.data.rows import Row, fault_of, json_line, kind_of
from fintune.deploy.classifier import Classifier
from fintune.errors import Stopped, UserError
from fintune.files import sha256, write_json, write_whole

SHARD = 10_000  # rows read, labelled or rejected, between two points from which a killed run goes on
STREAM_BYTES = 2**16
MOST_IN_MEMORY = 1_000_000  # texts of a stream whose scores are kept, some 200 MB; then it begins anew


def added_columns(classifier: Classifier, prefix: str) -> list[str]:
    """Names of the columns that labelling adds to a row."""
    names = ["label", "confidence", *(f"probability_{name}" for name in classifier.names), "abstained"]
    return [prefix + name for name in names]


class Answers:
    """Turns texts into the columns that are added to a row; the same text is scored once, also across a restart."""

    def __init__(self, classifier: Classifier, least: float, prefix: str, store: str | Path = ":memory:"):
        """
        Args:
            least: confidence below which a row is marked as abstained.
            prefix: put in front of the added columns' names.
            store: SQLite file of the scores.
        """
        self.classifier, self.least = classifier, least
        self.columns = added_columns(classifier, prefix)
        self.most = MOST_IN_MEMORY if store == ":memory:" else sys.maxsize
        self.scored = 0
        self.database = sqlite3.connect(store)
        self.database.execute("CREATE TABLE IF NOT EXISTS scores (text BLOB PRIMARY KEY, probabilities BLOB)")

    def __call__(self, texts: list[str]) -> list[dict]:
        keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        known: dict[bytes, np.ndarray] = {}
        for key in set(keys):
            if found := self.database.execute("SELECT probabilities FROM scores WHERE text = ?", (key,)).fetchone():
                known[key] = np.frombuffer(found[0])
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            self.scored += len(new)
            if self.scored > self.most:
                self.database.execute("DELETE FROM scores")
                self.scored = len(new)
            known |= dict(zip(new, self.classifier(list(new.values()))[1], strict=True))
            with self.database:
                self.database.executemany(
                    "INSERT INTO scores VALUES (?, ?)", [(key, known[key].tobytes()) for key in new]
                )
        return [self._columns(known[key]) for key in keys]

    def _columns(self, probabilities: np.ndarray) -> dict:
        label, confidence = self.classifier.names[probabilities.argmax()], float(probabilities.max())
        values = [label, confidence, *map(float, probabilities), confidence < self.least]
        return dict(zip(self.columns, values, strict=True))


def label_file(
    classifier: Classifier,
    run_dir: Path,
    source: Path,
    target: Path,
    text_column: str,
    least: float,
    prefix: str = "",
    spreadsheet_safe: bool = False,
) -> tuple[int, int]:
    """Label every row of `source` into `target`, a file of the same format; rejected rows go to TARGET.rejected.jsonl.

    Killed at any moment, the same call goes on from the last whole shard, and the file ends byte for byte as if it had
    not been.

    Returns:
        (labelled, rejected) rows.

    Raises:
        UserError: the files are of different formats, `target` is there already or begun with other inputs or options,
            a column is missing, would be written twice, or holds no text.
        Stopped: SIGTERM or SIGINT came.
    """
    kind = kind_of(source)
    if kind is not kind_of(target) or (source.suffix == ".gz") != (target.suffix == ".gz"):
        raise UserError(f"{target}: the output has the format of the input, {source.name}; rename it")
    parts = target.with_name(target.name + ".parts")
    if target.exists() and not (parts / "manifest.json").exists():  # with it: killed while it cleaned up
        raise UserError(f"{target}: is there already; remove it, or name another output")
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    table = kind(source, text_column)
    columns = added_columns(classifier, prefix)
    if taken := set(columns).intersection(table.columns):
        raise UserError(f"{source}: has a column {min(taken)!r} already; choose a --prefix for the new ones")
    table.add_columns(columns)
    parts.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(parts / "lock", timeout=0), _stoppable(f"{target}.parts") as stopped:
            options = [text_column, least, prefix, spreadsheet_safe]
            _check_manifest(parts, source, identity(run_dir, classifier.names, classifier.calibration), options)
            answers = Answers(classifier, least, prefix, parts / "scores.sqlite")
            with closing(answers.database):
                counts = _label_shards(table, answers, parts, spreadsheet_safe, stopped)
            _join(table, sorted(parts.glob("*.rows")), parts, target)
            for path in sorted(parts.iterdir(), key=lambda path: path.name == "manifest.json"):
                if path.name != "lock":
                    path.unlink()
    except Timeout as error:
        raise UserError(f"{parts}: another run is writing it; wait for that one, or name another output") from error
    with suppress(OSError):  # another one has come meanwhile
        (parts / "lock").unlink(missing_ok=True)
        parts.rmdir()
    return counts


def identity(run_dir: Path, names: list[str], calibration: dict) -> list:
    """What tells a run from any other: hashes of its weights, its labels and its temperature."""
    weights = [sha256(path) for path in sorted(run_dir.glob("*.safetensors"))]
    return [weights, names, calibration["temperature"]]


def _check_manifest(parts: Path, source: Path, run: list, options: list) -> None:
    manifest = {"input": sha256(source), "run": run, "options": options, "shard": SHARD}
    path = parts / "manifest.json"
    if not path.exists():
        write_json(path, manifest)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in manifest if before.get(key) != json.loads(json.dumps(manifest[key]))]
    if changed:
        raise UserError(f"{parts}: was begun with another {changed[0]}; give it as it was, or remove the folder")


def _label_shards(table, answers: Answers, parts: Path, spreadsheet_safe: bool, stopped) -> tuple[int, int]:
    labelled = rejected = 0
    rows, started, fresh = table.rows(), time.perf_counter(), 0
    bar = tqdm(total=1000, unit="‰", bar_format="{l_bar}{bar}| {elapsed} < {remaining}{postfix}")
    with bar:
        for number in range(sys.maxsize):
            shard = list(islice(rows, SHARD))
            if not shard:
                return labelled, rejected
            stopped()
            done = parts / f"{number:08}.rows"
            good, bad = _judged(shard)
            if not done.exists():
                write_whole(
                    parts / f"{number:08}.rejected",
                    lambda path, bad=bad: path.write_bytes(b"".join(json_line(line) for line in bad)),
                )
                added = answers([row.text for row in good])
                write_whole(
                    done,
                    lambda path, good=good, added=added: table.write(path, good, added, spreadsheet_safe),
                )
                fresh += len(shard)
            labelled, rejected = labelled + len(good), rejected + len(bad)
            bar.update(int(1000 * table.done()) - bar.n)
            speed = fresh / (time.perf_counter() - started)
            bar.set_postfix_str(f" {labelled + rejected:,} rows, {rejected:,} rejected, {speed:,.0f} rows/s")


def _judged(rows: list[Row]) -> tuple[list[Row], list[dict]]:
    """Rows that can be labelled, and for each other one the line of the file of rejected rows."""
    good, bad = [], []
    for row in rows:
        fault = row.fault or fault_of(row.text)
        if fault is None:
            good.append(row)
        else:
            bad.append({"line": row.line, "reason": fault, "text": _beginning(row.text)})
    return good, bad


def _beginning(text: object) -> str | None:
    return text[:1000] if isinstance(text, str) else None


def _join(table, shards: list[Path], parts: Path, target: Path) -> None:
    """Rejected rows first: where `target` is, all is."""
    rejected = b"".join(path.read_bytes() for path in sorted(parts.glob("*.rejected")))
    place = target.with_name(target.name + ".rejected.jsonl")
    place.unlink(missing_ok=True)
    if rejected:
        write_whole(place, lambda path: path.write_bytes(rejected))
    write_whole(target, lambda path: table.join(shards, path))


@contextmanager
def _stoppable(where: str) -> Iterator[Callable[[], None]]:
    """Gives a function that raises `Stopped` once SIGTERM or SIGINT came; a second one stops at once."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # where no handler may be set: a worker of Ray's
        yield lambda: None
        return

    def flag(signum, frame):
        came.append(signum)
        signal.signal(signum, signal.SIG_DFL)
        message = f"{signal.Signals(signum).name}: stopping after these {SHARD:,} rows; once more stops at once"
        print(f"\n{message}", file=sys.stderr, flush=True)

    def check() -> None:
        if came:
            raise Stopped(came[0], where, "the same command")

    before = {signum: signal.signal(signum, flag) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield check
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def label_stream(classifier: Classifier, least: float, prefix: str) -> tuple[int, int]:
    """Label lines of standard input as they come, one JSON line each on standard output, in order and flushed.

    A line that cannot be labelled gives {"line", "reason", "text"} in its place.
    """
    answers = Answers(classifier, least, prefix)
    number = labelled = 0
    waiting = b""
    while chunk := os.read(0, STREAM_BYTES):
        *lines, waiting = (waiting + chunk).split(b"\n")
        number, labelled = _answer(lines, number, labelled, answers)
    number, labelled = _answer([waiting] if waiting else [], number, labelled, answers)
    return labelled, number - labelled


def _answer(lines: list[bytes], number: int, labelled: int, answers: Answers) -> tuple[int, int]:
    rows = []
    for line in lines:
        number += 1
        try:
            rows.append(Row(number, text=line.removesuffix(b"\r").decode()))
        except UnicodeDecodeError as error:
            rows.append(Row(number, fault=f"not UTF-8 ({error.reason} at byte {error.start})"))
    good, bad = _judged(rows)
    added = answers([row.text for row in good])
    found = {row.line: {"text": row.text, **more} for row, more in zip(good, added, strict=True)}
    found |= {line["line"]: line for line in bad}
    sys.stdout.buffer.write(b"".join(json_line(found[row.line]) for row in rows))
    sys.stdout.buffer.flush()
    return number, labelled + len(good)
