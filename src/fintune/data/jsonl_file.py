"""One JSON object a line: read, and written with columns added."""

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from fintune.data.rows import CELL, EMPTY_LINE, Row
from fintune.data.text_file import TextFile, head_of, join_text
from fintune.errors import UserError

HEAD_LINES = 1000  # in which the columns are looked for


class Jsonl:
    """A JSONL file; a row's own characters are kept, and the new columns follow them.

    Attributes:
        columns: those of the first 1,000 lines; each line has its own.
    """

    def __init__(self, file: TextFile, text_column: str):
        self.file, self.text_column = file, text_column
        self.about = "" if file.encoding == "utf-8" else file.encoding.upper()
        self._lines, self._added = file.lines(), set()
        self._head = deque(head_of(self._lines, HEAD_LINES))
        rows = [self._row(*found) for found in self._head]
        self.columns = list(dict.fromkeys(column for row in rows if row.cells for column in json.loads(row.cells)))
        told = [row for row in rows if row.fault != EMPTY_LINE]
        start = next((line.lstrip() for _, line, _ in self._head if line.strip()), "")
        none = bool(told) and not any(row.cells for row in rows)
        if start.startswith("[") and ((none and len(told) == 1) or told[0].fault.startswith("not valid JSON")):
            remedy = "write one object a line, as `jq -c '.[]' array.json > rows.jsonl` does"
            raise UserError(f"{file.path}: is one JSON array; {remedy}")
        if none:
            raise UserError(
                f"{file.path}: line {told[0].line} is {told[0].fault}, and no other is better; write one object a line"
            )

    def rows(self) -> Iterator[Row]:
        while self._head:  # of which none is held any longer
            yield self._row(*self._head.popleft())
        for found in self._lines:
            yield self._row(*found)

    def finds(self, column: str) -> bool:
        """Whether a line after the first ones has a column."""
        return any(column in (read_object(line, set())[0] or {}) for _, line, _ in self.file.lines())

    def value(self, row: Row, column: str) -> object:
        return json.loads(row.cells).get(column)

    def done(self) -> float:
        return self.file.done()

    def _row(self, number: int, line: str, fault: str | None) -> Row:
        line = line.lstrip("\ufeff")  # the mark of a file that was put after another
        cells, fault = (None, fault) if fault else read_object(line, self._added)
        if fault:
            return Row(number, fault=fault)
        if self.text_column not in cells:
            return Row(number, line.strip(), fault=f"no column {self.text_column!r}", size=len(line) + CELL)
        return Row(number, line.strip(), cells[self.text_column], size=2 * (len(line) + CELL))

    def write(self, path: Path, rows: list[Row], added: list[dict]) -> None:
        with path.open("wb") as file:
            for row, more in zip(rows, added, strict=True):
                line = row.cells[:-1].rstrip()
                line += "" if line.endswith("{") else ", "
                file.write(line.encode(self.file.encoding) + json_line(more, self.file.encoding, self.file.end, 1))

    def add_columns(self, names: list[str]) -> None:
        self._added = set(names)

    def join(self, parts: list[Path], target: Path) -> int:
        """Returns how many rows the parts hold."""
        join_text(target, self.file.compression, self.file.mark, parts)
        rows = 0
        for part in parts:
            with part.open(encoding=self.file.encoding, newline=self.file.end) as file:
                rows += sum(1 for _ in file)
        return rows


def read_object(line: str, added: set[str]) -> tuple[dict | None, str | None]:
    """(fields, None) of a line, or (None, why it cannot be labelled); `added` are the columns that labelling adds."""
    try:
        cells = json.loads(line, object_pairs_hook=fields_of)
    except RecursionError:
        return None, "nested too deep"
    except ValueError as error:
        return None, f"not valid JSON ({error})" if line.strip() else EMPTY_LINE
    except UserError as error:
        return None, str(error)
    if not isinstance(cells, dict):
        return None, f"{type(cells).__name__}, not an object of columns"
    if taken := added.intersection(cells):
        return None, f"has a column {min(taken)!r} already; choose a --prefix for the new ones"
    return cells, None


def fields_of(pairs: list[tuple[str, object]]) -> dict:
    """An object of JSON.

    Raises:
        UserError: two of its values have one name, so that nobody knows which is meant.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise UserError(f"has {next(name for name in names if names.count(name) > 1)!r} twice")
    return fields


def json_line(value: dict, encoding: str = "utf-8", end: str = "\n", start: int = 0) -> bytes:
    """JSON from a character on, and a line end; what the encoding cannot hold makes its line plain ASCII."""
    try:
        return (json.dumps(value, ensure_ascii=False)[start:] + end).encode(encoding)
    except UnicodeEncodeError:
        return (json.dumps(value)[start:] + end).encode(encoding)
