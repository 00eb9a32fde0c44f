"""Rows of CSV, JSONL and Parquet files, gzip'd too, one at a time: a fault in a row costs that row alone."""

import csv
import gzip
import io
import json
import shutil
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from fintune.errors import UserError

LINE_BYTES = 16 * 2**20  # of one line; longer ones are rejected without being held
RECORD_LINES = 1000  # of one CSV record: an unterminated quote must not swallow the rest of the file
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one (OWASP, CSV injection)


@dataclass
class Row:
    """One row of a file.

    Attributes:
        line: where it begins, from 1; in Parquet the number of the row.
        cells: all its columns, in the form in which its table writes them again.
        text: what is labelled.
        fault: why it cannot be labelled; then `cells` and `text` may be None.
    """

    line: int
    cells: object = None
    text: object = None
    fault: str | None = None


def fault_of(text: object) -> str | None:
    """Why a value cannot be labelled; None where it can."""
    if not isinstance(text, str):
        return f"{type(text).__name__}, not text" if text is not None else "missing"
    if not text.strip():
        return "empty"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character (lone surrogate {text[error.start]!r})"
    return None


def how_often(count: int) -> str:
    """What to say of a column that a header does not hold exactly once."""
    return "is missing from" if count == 0 else f"appears {count} times in"


class TextTable:
    """What CSV and JSONL have in common: lines of UTF-8, parts that are joined by appending them."""

    def __init__(self, path: Path, text_column: str):
        self.path, self.text_column = path, text_column
        self._raw = path.open("rb")
        self._file = gzip.GzipFile(fileobj=self._raw) if path.suffix == ".gz" else self._raw

    def done(self) -> float:
        """Share of the file's bytes that were read."""
        return self._raw.tell() / max(1, self.path.stat().st_size)

    def join(self, parts: list[Path], target: Path) -> None:
        with target.open("wb") as raw:
            # no name and no time in the gzip header: the same rows give the same bytes
            file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if self.path.suffix == ".gz" else raw
            file.write(self.head())
            for part in parts:
                with part.open("rb") as content:
                    shutil.copyfileobj(content, file)
            if file is not raw:
                file.close()

    def head(self) -> bytes:
        return b""

    def _lines(self) -> Iterator[tuple[int, str | None, str | None]]:
        """(number, line with its end, fault) of each line; U+2028 and the like end none."""
        number = 0
        try:
            while line := self._file.readline(LINE_BYTES):
                number += 1
                if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                    while (rest := self._file.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    yield number, None, f"a line of over {LINE_BYTES >> 20} MiB"
                    continue
                try:
                    yield number, line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode(), None
                except UnicodeDecodeError as error:
                    yield number, None, f"not UTF-8 ({error.reason} at byte {error.start})"
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{self.path}: its gzip is damaged after line {number} ({error}); fetch it again"
            ) from error


class Csv(TextTable):
    """Comma-separated values with a header; cells are kept as text, "NA" and "007" included."""

    def __init__(self, path: Path, text_column: str):
        super().__init__(path, text_column)
        self._added: list[str] = []
        self._records = self._read()
        first = next(self._records, Row(1, []))
        self.columns = first.cells or []
        if first.fault or self.columns.count(text_column) != 1:
            raise UserError(
                f"{path}: column {text_column!r} {how_often(self.columns.count(text_column))} its first line "
                f"{str(first.fault or self.columns)[:200]}; name the right one (columns are separated by commas)"
            )

    def rows(self) -> Iterator[Row]:
        at, width = self.columns.index(self.text_column), len(self.columns)
        for row in self._records:
            if row.fault is None and not row.cells:
                row.fault = "an empty line"
            elif row.fault is None and len(row.cells) != width:
                row.fault = f"{len(row.cells)} cells where the header has {width}"
            elif row.fault is None:
                row.text = row.cells[at]
            yield row

    def value(self, row: Row, column: str) -> object:
        return row.cells[self.columns.index(column)]

    def _read(self) -> Iterator[Row]:
        """Records; where one cannot be read, its first line is rejected and reading continues at the next."""
        lines, pending = self._lines(), deque()
        while True:
            taken = []

            def feed(taken=taken):
                while len(taken) < RECORD_LINES:
                    item = pending.popleft() if pending else next(lines, None)
                    if item is None:
                        return
                    taken.append(item)
                    if item[2]:
                        raise csv.Error(item[2])
                    yield item[1]
                raise csv.Error(f"a quote that is not closed within {RECORD_LINES} lines")

            csv.field_size_limit(LINE_BYTES)
            try:
                cells = next(csv.reader(feed(), strict=True))
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(taken[0][0], fault=taken[0][2] or str(error))
                pending.extendleft(reversed(taken[1:]))
            else:
                yield Row(taken[0][0], cells)

    def write(self, path: Path, rows: list[Row], added: list[dict], spreadsheet_safe: bool) -> None:
        values = ([*row.cells, *more.values()] for row, more in zip(rows, added, strict=True))
        if spreadsheet_safe:
            values = (["'" + cell if str(cell).startswith(FORMULA) else cell for cell in line] for line in values)
        with path.open("w", encoding="utf-8", newline="") as file:
            write_csv(file, values)

    def add_columns(self, names: list[str]) -> None:
        self._added = names

    def head(self) -> bytes:
        line = io.StringIO()
        write_csv(line, [[*self.columns, *self._added]])
        return line.getvalue().encode()


def write_csv(file: TextIO, rows: Iterable[Sequence]) -> None:
    """Rows as CSV that reads back as they are; Python's writer leaves a lone carriage return without quotes (3.11)."""
    writer = csv.writer(file, lineterminator="\n")
    careful = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        (careful if any("\r" in str(cell) for cell in row) else writer).writerow(row)


class Jsonl(TextTable):
    """One JSON object a line; a row's own characters are kept, and the new columns follow them."""

    def __init__(self, path: Path, text_column: str):
        super().__init__(path, text_column)
        self.columns: list[str] = []  # of the first object; each has its own
        self._added: set[str] = set()
        self._objects = self._read()
        self._first = list(islice(self._objects, 1))

    def rows(self) -> Iterator[Row]:
        return chain(self._first, self._objects)

    def value(self, row: Row, column: str) -> object:
        return json.loads(row.cells).get(column)

    def _read(self) -> Iterator[Row]:
        for number, line, fault in self._lines():
            row = Row(number, line and line.strip(), fault=fault)
            if line is not None:
                try:
                    cells = json.loads(line)
                except RecursionError:
                    row.fault = "nested too deep"
                except ValueError as error:
                    row.fault = f"not valid JSON ({error})" if row.cells else "an empty line"
                else:
                    self._judge(row, cells)
            yield row

    def _judge(self, row: Row, cells: object) -> None:
        if not isinstance(cells, dict):
            row.fault = f"{type(cells).__name__}, not an object of columns"
        elif self.text_column not in cells:
            row.fault = f"no column {self.text_column!r}"
        elif taken := self._added.intersection(cells):
            row.fault = f"has a column {min(taken)!r} already; choose a --prefix for the new ones"
        else:
            row.text = cells[self.text_column]
            self.columns = self.columns or list(cells)

    def write(self, path: Path, rows: list[Row], added: list[dict], spreadsheet_safe: bool) -> None:
        with path.open("wb") as file:
            for row, more in zip(rows, added, strict=True):
                file.write(row.cells[:-1].rstrip().encode() + b", " + json_line(more)[1:])

    def add_columns(self, names: list[str]) -> None:
        self._added = set(names)


class Parquet:
    """A Parquet file; its columns keep their types."""

    def __init__(self, path: Path, text_column: str):
        self.path, self.text_column, self._read = path, text_column, 0
        try:
            self._file = pq.ParquetFile(path)
        except pa.ArrowException as error:
            raise UserError(f"{path}: not a complete Parquet file ({error}); fetch it again") from error
        self.columns = self._file.schema_arrow.names
        if self.columns.count(text_column) != 1:
            raise UserError(
                f"{path}: column {text_column!r} {how_often(self.columns.count(text_column))} its columns "
                f"{self.columns}; name the right one"
            )
        kind = self._file.schema_arrow.field(text_column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise UserError(f"{path}: column {text_column!r} holds {kind}, not text; name another column")

    def rows(self) -> Iterator[Row]:
        try:
            for batch in self._file.iter_batches(batch_size=1024):
                texts = batch.column(self.text_column)
                for at in range(len(batch)):
                    self._read += 1
                    row = Row(self._read, batch.slice(at, 1))
                    try:
                        row.text = texts[at].as_py()
                    except UnicodeDecodeError as error:
                        row.fault = f"not UTF-8 ({error.reason} at byte {error.start})"
                    yield row
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: damaged after row {self._read} ({error}); fetch it again") from error

    def value(self, row: Row, column: str) -> object:
        return row.cells.column(column)[0].as_py()

    def done(self) -> float:
        """Share of the file's rows that were read."""
        return self._read / max(1, self._file.metadata.num_rows)

    def write(self, path: Path, rows: list[Row], added: list[dict], spreadsheet_safe: bool) -> None:
        table = pa.Table.from_batches([row.cells for row in rows], self._file.schema_arrow)
        for name, kind in self._added.items():
            table = table.append_column(name, pa.array([more[name] for more in added], kind))
        pq.write_table(table.combine_chunks(), path)

    def add_columns(self, names: list[str]) -> None:
        kinds = [pa.string(), *[pa.float64()] * (len(names) - 2), pa.bool_()]
        self._added = dict(zip(names, kinds, strict=True))

    def join(self, parts: list[Path], target: Path) -> None:
        schema = self._file.schema_arrow
        for name, kind in self._added.items():
            schema = schema.append(pa.field(name, kind))
        with pq.ParquetWriter(target, schema) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part, schema=schema))


KINDS = {".csv": Csv, ".jsonl": Jsonl, ".parquet": Parquet}


def kind_of(path: Path) -> type:
    """The table class for a file's extension; CSV and JSONL may add `.gz`.

    Raises:
        UserError: it has another extension.
    """
    ending = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if ending not in KINDS or (path.suffix == ".gz" and ending == ".parquet"):
        raise UserError(f"{path}: ends in none of .csv, .csv.gz, .jsonl, .jsonl.gz, .parquet; convert or rename it")
    return KINDS[ending]


def json_line(value: dict) -> bytes:
    """JSON and a line feed in UTF-8; half a character, which UTF-8 cannot hold, makes its line plain ASCII."""
    try:
        return (json.dumps(value, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value) + "\n").encode()
