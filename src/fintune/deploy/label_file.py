"""Label a file of any length: in shards, each written whole or not at all, so that an interrupted run can go on.

OUT.parts/ holds the shards (see `parts.py`) and scores.sqlite, the probabilities of every text so far. When the last
shard is done they become OUT and, where there are lines that are no rows, OUT.rejected.jsonl; OUT.parts is removed.
"""

import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from fintune.data.csv_file import Cells
from fintune.data.jsonl_file import json_line
from fintune.data.rows import Row, slices
from fintune.data.tables import Table, check_column, check_columns, ending, read_inputs, read_table
from fintune.data.text_file import join_text
from fintune.deploy.answers import Answers, added_columns, judge
from fintune.deploy.classifier import Classifier
from fintune.deploy.parts import Parts
from fintune.errors import Stopped, UserError
from fintune.files import sha256, write_whole

SHARD = 10_000  # rows read, labelled or rejected, between two points from which an interrupted run can go on
AT_ONCE = 2048  # rows of a shard that are scored and their scores kept, between two points where it may be stopped
SHARD_SIZE = 2**24  # of these rows, in characters, which take up to 4 bytes each; then a shard has fewer of them


def open_table(
    source: Path,
    target: Path,
    text_column: str,
    names: list[str],
    prefix: str = "",
    spreadsheet_safe: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
    columns: dict[str, str] | None = None,
    staged: bool = False,
) -> Table:
    """The rows of `source`, ready to be labelled into `target`; needs no model, so a command asks here first.

    Args:
        names: the label names.
        prefix: put before the added columns' names.
        spreadsheet_safe: see `label_file`.
        delimiter, encoding: of `source`, where they are not to be found out; see `read_table`.
        columns: what the run reads beside the text -> the file's column.
        staged: whether the run is a cascade.

    Raises:
        UserError: the files are of different formats, `source` does not exist, `target` or what is written beside it
            does, or a column is missing, would be written twice or holds no text; `spreadsheet_safe` of no CSV.
    """
    expected = ending(source).replace(".xlsx", ".csv")
    if expected != ending(target):
        raise UserError(f"{target}: what is made of {source.name} ends in {expected}; rename the output")
    Parts(target).check()
    table = read_table(source, text_column, delimiter=delimiter, encoding=encoding)
    check_column(table, source, text_column, "--text-column {}")
    check_columns(table, source, columns or {}, "--column")
    added = added_columns(names, prefix, staged)
    if taken := set(added).intersection(table.columns):
        raise UserError(f"{source}: has a column {min(taken)!r} already; choose a --prefix for the new ones")
    table.add_columns(added)
    if spreadsheet_safe:
        if not isinstance(table, Cells):
            raise UserError(f"--spreadsheet-safe: {target.name} is no CSV, to which alone it applies; leave it out")
        table.spreadsheet_safe = True
    return table


def label_file(
    classifier: Classifier,
    run_dir: Path,
    source: Path,
    target: Path,
    text_column: str,
    threshold: float,
    prefix: str = "",
    spreadsheet_safe: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
    columns: dict[str, str] | None = None,
) -> tuple[int, int]:
    """Label every row of `source` into `target`, a file of the same format and encoding, or CSV for an Excel workbook.

    Rows that cannot be labelled keep their place, with the reason in the column `rejected`. Lines that are no rows go
    to TARGET.rejected.jsonl.

    Killed at any moment, the same call goes on from the last finished shard, and the file ends byte for byte as if it
    had not been.

    Args:
        threshold: confidence below which the model abstains.
        prefix: put before the added columns' names.
        spreadsheet_safe: in CSV, put ' before what a spreadsheet would take for a formula.
        delimiter, encoding: of `source`, where they are not to be found out; see `read_table`.
        columns: what the run reads beside the text -> the file's column; by the same names if None.

    Returns:
        (labelled, rejected) rows, lines that are no rows among the latter.

    Raises:
        UserError: see `open_table`; or the output was begun with another input, run or options.
        Stopped: SIGTERM or SIGINT came.
    """
    columns = {name: name for name in classifier.columns} if columns is None else columns
    begun_with = _hash(source)  # before the first line is read
    choices = (prefix, spreadsheet_safe, delimiter, encoding, columns)
    table = open_table(source, target, text_column, classifier.names, *choices, bool(classifier.stages))
    parts = Parts(target)
    with parts.locked(), _stoppable(str(parts.folder)) as stop_if_asked:
        parts.check()  # again: another run may have ended meanwhile
        added = added_columns(classifier.names, prefix, bool(classifier.stages))  # another version may add others
        options = [text_column, threshold, added, spreadsheet_safe, delimiter, encoding, classifier.long]
        options += columns.items()
        run = run_fingerprint(run_dir, classifier.names, classifier.calibration)
        parts.begin({"input": begun_with, "run": run, "options": options, "shard": [SHARD, SHARD_SIZE]})
        if counts := parts.place():  # killed when all was done
            return counts
        with _scores(parts.folder / "scores.sqlite", classifier, threshold, prefix) as answers:
            rows = read_inputs(table, columns)
            sizes, counts = _label_shards(table, rows, answers, parts, stop_if_asked)
        if _hash(source) != begun_with:
            parts.clear()
            raise UserError(f"{source}: was changed while it was read, so nothing is written; label it again")
        _join(table, parts, sizes, counts)
        return parts.place()


@contextmanager
def _scores(store: Path, classifier: Classifier, threshold: float, prefix: str) -> Iterator[Answers]:
    try:
        answers = Answers(classifier, threshold, prefix, store)
        with closing(answers.database):
            yield answers
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # a full disk, say
            raise
        raise UserError(f"{store}: is damaged ({error}); remove it, then the same command goes on") from error


def _hash(source: Path) -> str | None:
    return sha256(source) if source.is_file() else None


def run_fingerprint(run_dir: Path, names: list[str], calibration: dict) -> list:
    """What a labelling that goes on must have in common with its beginning: hashes of weights, labels, temperature."""
    weights = [path for kind in ("safetensors", "skops") for path in sorted(run_dir.glob(f"*.{kind}"))]
    weights = weights or [run_dir / "recipe.yaml"]  # of a cascade, which has thresholds and stages in place of weights
    return [list(map(sha256, weights)), names, calibration["temperature"]]


def _label_shards(
    table: Table,
    rows: Iterator[Row],
    answers: Answers,
    parts: Parts,
    stop_if_asked: Callable[[], None],
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """(rows and lines that are no rows of each shard, (labelled, rejected) rows)."""
    labelled, rejected, sizes = 0, 0, []
    started, fresh = time.perf_counter(), 0
    bar = tqdm(total=1000, unit="‰", bar_format="{l_bar}{bar}| {elapsed} < {remaining}{postfix}")
    with bar:
        for number, shard in enumerate(slices(rows, SHARD, SHARD_SIZE)):
            stop_if_asked()
            kept = [row for row in judge(shard, answers.classifier) if row.cells is not None]
            lost = [{"line": row.line, "reason": row.fault} for row in shard if row.cells is None]
            sizes.append((len(kept), len(lost)))
            if not parts.has_shard(number, *sizes[-1]):
                added, read, before = [], int(1000 * table.done()), bar.n
                for start in range(0, len(kept), AT_ONCE):
                    stop_if_asked()
                    added += answers.of_rows(kept[start : start + AT_ONCE])
                    bar.update(before + (read - before) * len(added) // len(kept) - bar.n)
                write = {
                    "rejected": lambda path, lost=lost: path.write_bytes(b"".join(map(json_line, lost))),
                    "rows": lambda path, kept=kept, added=added: table.write(path, kept, added),
                }
                parts.write_shard(number, *sizes[-1], write)
                fresh += len(shard)
            good = sum(row.fault is None for row in kept)
            labelled, rejected = labelled + good, rejected + len(shard) - good
            bar.update(int(1000 * table.done()) - bar.n)
            speed = fresh / (time.perf_counter() - started)
            bar.set_postfix_str(f" {labelled + rejected:,} rows, {rejected:,} rejected, {speed:,.0f} rows/s")
            del shard, kept  # before the next rows are read
    return sizes, (labelled, rejected)


def _join(table: Table, parts: Parts, sizes: list[tuple[int, int]], counts: tuple[int, int]) -> None:
    """Make the output of the shards, and see that it holds as many rows as were kept.

    Args:
        sizes: of each shard, its rows and its lines that are no rows.
        counts: (labelled, rejected) rows.
    """
    for number, size in enumerate(sizes):
        if not parts.has_shard(number, *size):
            raise UserError(f"{parts.shard(number, 'rows')}: was changed; the same command labels its rows again")
    rows, rejected = ([parts.shard(n, kind) for n in range(len(sizes))] for kind in ("rows", "rejected"))
    expected, written = sum(kept for kept, _ in sizes), []
    write_whole(parts.folder / "output", lambda path: written.append(table.join(rows, path)))
    if written != [expected]:
        raise UserError(f"{parts.folder}: holds {written[0]:,} rows where {expected:,} were read; report this file")
    if lost := sum(counts) - expected:
        write_whole(parts.folder / "rejected.jsonl", lambda path: join_text(path, "", b"", rejected))
    parts.write_joined(counts, ["output", "rejected.jsonl"] if lost else ["output"])


@contextmanager
def _stoppable(where: str) -> Iterator[Callable[[], None]]:
    """Gives a function that raises `Stopped` once SIGTERM or SIGINT came; a second signal stops at once."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # where no handler may be set: a worker of Ray's
        yield lambda: None
        return

    def flag(signum, frame):
        came.append(signum)
        signal.signal(signum, signal.SIG_DFL)
        message = (
            f"{signal.Signals(signum).name}: stopping after at most {AT_ONCE:,} rows; a second signal stops at once"
        )
        print(f"\n{message}", file=sys.stderr, flush=True)

    def stop_if_asked() -> None:
        if came:
            raise Stopped(came[0], where, "the same command")

    before = {signum: signal.signal(signum, flag) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop_if_asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
