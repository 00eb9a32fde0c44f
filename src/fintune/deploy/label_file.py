"""Label a file of any length: in shards, each written whole or not at all, so that an interrupted run can go on.

OUT.parts/ holds manifest.json, for each shard its rows and the lines that are no rows, and scores.sqlite, the
probabilities of every text so far. When the last shard is done they become OUT and, where there are such lines,
OUT.rejected.jsonl, and OUT.parts is removed.
"""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from fintune.data.jsonl_file import json_line
from fintune.data.rows import Row, slices
from fintune.data.tables import Table, check_column, check_columns, ending, read_inputs, read_table
from fintune.deploy.answers import Answers, added_columns, judge
from fintune.deploy.classifier import Classifier
from fintune.errors import Stopped, UserError
from fintune.files import sha256, write_json, write_whole

SHARD = 10_000  # rows read, labelled or rejected, between two points from which an interrupted run can go on
SHARD_SIZE = 2**24  # of these rows, in characters, which take up to 4 bytes each; then a shard has fewer of them


def open_table(
    source: Path,
    target: Path,
    text_column: str,
    names: list[str],
    prefix: str = "",
    delimiter: str | None = None,
    encoding: str | None = None,
    columns: dict[str, str] | None = None,
) -> Table:
    """The rows of `source`, ready to be labelled into `target`; needs no model, so a command asks here first.

    Args:
        names: the label names.
        prefix: put before the added columns' names.
        delimiter, encoding: of `source`, where they are not to be found out; see `read_table`.
        columns: what the run reads beside the text -> the file's column.

    Raises:
        UserError: the files are of different formats, `source` does not exist, `target` does, or a column is missing,
            would be written twice or holds no text.
    """
    expected = ending(source).replace(".xlsx", ".csv")
    if expected != ending(target):
        raise UserError(f"{target}: what is made of {source.name} ends in {expected}; rename the output")
    if target.exists() and not (_parts(target) / "manifest.json").exists():  # with it: killed while it cleaned up
        raise UserError(f"{target}: already exists; remove it, or name another output")
    table = read_table(source, text_column, delimiter=delimiter, encoding=encoding)
    check_column(table, source, text_column, "--text-column {}")
    check_columns(table, source, columns or {}, "--column")
    added = added_columns(names, prefix)
    if taken := set(added).intersection(table.columns):
        raise UserError(f"{source}: has a column {min(taken)!r} already; choose a --prefix for the new ones")
    table.add_columns(added)
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
    table = open_table(source, target, text_column, classifier.names, prefix, delimiter, encoding, columns)
    parts = _parts(target)
    parts.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(parts / "lock", timeout=0), _stoppable(str(parts)) as stop_if_asked:
            options = [text_column, threshold, prefix, spreadsheet_safe, delimiter, encoding, classifier.long]
            options += columns.items()
            run = run_fingerprint(run_dir, classifier.names, classifier.calibration)
            _check_manifest(
                parts, {"input": sha256(source), "run": run, "options": options, "shard": [SHARD, SHARD_SIZE]}
            )
            answers = Answers(classifier, threshold, prefix, parts / "scores.sqlite")
            with closing(answers.database):
                rows = read_inputs(table, columns)
                counts = _label_shards(table, rows, answers, parts, spreadsheet_safe, stop_if_asked)
            _join(table, sorted(parts.glob("*.rows")), parts, target)
            for path in sorted(parts.iterdir(), key=lambda path: path.name == "manifest.json"):
                if path.name != "lock":
                    path.unlink()
    except Timeout as error:
        raise UserError(f"{parts}: another run is writing it; wait for that one, or name another output") from error
    with suppress(OSError):  # another run has started meanwhile
        (parts / "lock").unlink(missing_ok=True)
        parts.rmdir()
    return counts


def run_fingerprint(run_dir: Path, names: list[str], calibration: dict) -> list:
    """What a labelling that goes on must have in common with its beginning: hashes of weights, labels, temperature."""
    weights = [sha256(path) for kind in ("safetensors", "skops") for path in sorted(run_dir.glob(f"*.{kind}"))]
    return [weights, names, calibration["temperature"]]


def _parts(target: Path) -> Path:
    return target.with_name(target.name + ".parts")


def _check_manifest(parts: Path, manifest: dict) -> None:
    path = parts / "manifest.json"
    if not path.exists():
        write_json(path, manifest)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in manifest if before.get(key) != json.loads(json.dumps(manifest[key]))]
    if changed:
        raise UserError(f"{parts}: was begun with another {changed[0]}; give it as it was, or remove the folder")


def _label_shards(
    table: Table,
    rows: Iterator[Row],
    answers: Answers,
    parts: Path,
    spreadsheet_safe: bool,
    stop_if_asked: Callable[[], None],
) -> tuple[int, int]:
    labelled = rejected = 0
    started, fresh = time.perf_counter(), 0
    bar = tqdm(total=1000, unit="‰", bar_format="{l_bar}{bar}| {elapsed} < {remaining}{postfix}")
    with bar:
        for number, shard in enumerate(slices(rows, SHARD, SHARD_SIZE)):
            stop_if_asked()
            done = parts / f"{number:08}.rows"
            kept = [row for row in judge(shard, answers.classifier) if row.cells is not None]
            if not done.exists():
                lost = [{"line": row.line, "reason": row.fault} for row in shard if row.cells is None]
                write_whole(
                    parts / f"{number:08}.rejected",
                    lambda path, lost=lost: path.write_bytes(b"".join(json_line(line) for line in lost)),
                )
                added = answers.of_rows(kept)
                write_whole(
                    done,
                    lambda path, kept=kept, added=added: table.write(path, kept, added, spreadsheet_safe),
                )
                fresh += len(shard)
            good = sum(row.fault is None for row in kept)
            labelled, rejected = labelled + good, rejected + len(shard) - good
            bar.update(int(1000 * table.done()) - bar.n)
            speed = fresh / (time.perf_counter() - started)
            bar.set_postfix_str(f" {labelled + rejected:,} rows, {rejected:,} rejected, {speed:,.0f} rows/s")
            del shard, kept  # before the next rows are read
    return labelled, rejected


def _join(table: Table, shards: list[Path], parts: Path, target: Path) -> None:
    """Rejected rows first: where `target` exists, everything does."""
    rejected = b"".join(path.read_bytes() for path in sorted(parts.glob("*.rejected")))
    place = target.with_name(target.name + ".rejected.jsonl")
    place.unlink(missing_ok=True)
    if rejected:
        write_whole(place, lambda path: path.write_bytes(rejected))
    write_whole(target, lambda path: table.join(shards, path))


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
            f"{signal.Signals(signum).name}: stopping after at most {SHARD:,} rows; a second signal stops at once"
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
