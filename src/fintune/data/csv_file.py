"""Cells between delimiters, with a header: read from CSV and TSV files, and written."""

import csv
import io
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from fintune.data.rows import CELL, EMPTY_LINE, Row
from fintune.data.text_file import LINE_CHARACTERS, TextFile, head_of, join_text
from fintune.errors import UserError

RECORD_LINES = 1000  # of one record: an unterminated quote must not swallow the rest of the file
HEAD_LINES = 100  # from which the delimiter is found
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
SIGNS = "=+-@"  # with which a formula begins in a spreadsheet (OWASP, CSV injection)
SEPARATORS = ",;\t\r\n"  # at which some spreadsheet splits, by its locale and the file's name
HINT = re.compile(r'"?sep=(.)"?\1*\s*', re.IGNORECASE)  # Excel's own, above the header
NUMBER = re.compile(
    r"[+-]?[$€£¥₹]?([0-9]{1,3}([ ,.'\u00a0\u202f][0-9]{2,3})+([.,][0-9]*)?|[0-9]+([.,][0-9]*)?|[.,][0-9]+)"
    r"(e[+-]?[0-9]+)?\s*%?",
    re.IGNORECASE,
)


class Cells:
    """What is written as cells between delimiters.

    Attributes:
        columns: names in the header.
        delimiter, encoding, mark, end, compression: of the file that is written, as in `TextFile`.
        preamble: a line above the header, if any.
        spreadsheet_safe: put ' before what a spreadsheet would take for a formula.
    """

    columns: list[str]
    delimiter, encoding, mark, end, compression, preamble = ",", "utf-8", b"", "\n", "", ""
    spreadsheet_safe = False
    _added: Sequence[str] = ()

    def value(self, row: Row, column: str) -> object:
        return row.cells[self.columns.index(column)]

    def add_columns(self, names: list[str]) -> None:
        self._added = names
        try:
            "".join(names).encode(self.encoding)
        except UnicodeEncodeError as error:
            raise UserError(
                f"{error.object[error.start]!r} in a label's name cannot be written in {self.encoding}, the input's "
                "encoding; convert the input to UTF-8"
            ) from error

    def write(self, path: Path, rows: list[Row], added: list[dict]) -> None:
        with path.open("w", encoding=self.encoding, newline="") as file:
            self._write(file, ([*row.cells, *more.values()] for row, more in zip(rows, added, strict=True)))

    def join(self, parts: list[Path], target: Path) -> int:
        """Returns how many rows the parts hold."""
        header = io.StringIO()
        self._write(header, [[*self.columns, *self._added]])
        head = (self.preamble + header.getvalue()).encode(self.encoding)
        join_text(target, self.compression, self.mark + head, parts)
        csv.field_size_limit(LINE_CHARACTERS)
        rows = 0
        for part in parts:
            with part.open(encoding=self.encoding, newline="") as file:
                rows += sum(1 for _ in csv.reader(file, delimiter=self.delimiter, strict=True))
        return rows

    def _write(self, file: TextIO, rows: Iterable[Sequence]) -> None:
        if self.spreadsheet_safe:
            rows = ([defused(cell, self.delimiter) for cell in row] for row in rows)
        write_csv(file, rows, self.delimiter, self.end)


class Csv(Cells):
    """A file of comma-separated values or the like; cells are kept as text, "NA" and "007" included."""

    def __init__(self, file: TextFile, text_column: str, delimiter: str | None = None):
        """
        Args:
            delimiter: a character, or its name; without it, the one that fits the first lines.
        """
        self.file, self.text_column = file, text_column
        self.encoding, self.mark, self.end, self.compression = file.encoding, file.mark, file.end, file.compression
        self._lines = file.lines()
        self._pending = deque(head_of(self._lines, HEAD_LINES))
        if self._pending and (hint := HINT.fullmatch(self._pending[0][1])):
            self.preamble = self._pending.popleft()[1]
            delimiter = delimiter or hint[1]
        usual = "\t" if ".tsv" in [suffix.lower() for suffix in file.path.suffixes[-2:]] else ","
        if delimiter is None:
            self.delimiter = find_delimiter([line for _, line, _ in self._pending], usual, text_column)
        else:
            self.delimiter = NAMES.get(delimiter.lower(), delimiter)
            written = self.delimiter.encode(self.encoding, "ignore")  # nothing, where the encoding lacks it
            if len(self.delimiter) != 1 or self.delimiter in '"\r\n' or not written:
                raise UserError(f"--delimiter {delimiter!r}: give one character, or one of {', '.join(NAMES)}")
        header = next((line for _, line, _ in self._pending if line.strip()), "")
        self._spaced = 0 < header.count(self.delimiter) == header.count(self.delimiter + " ")  # as in: "a", "b"
        self._records = self._read()
        first = next((row for row in self._records if row.fault or row.cells), Row(1, []))
        if first.fault:
            raise UserError(f"{file.path}:{first.line}: {first.fault}; the header has to be one line of column names")
        self.columns = unmarked(first.cells)
        about = [file.encoding.upper()] * (file.encoding != "utf-8")
        if self.delimiter != usual:
            about.append(f"cells separated by {DELIMITERS.get(self.delimiter, repr(self.delimiter))}")
        self.about = ", ".join(about)

    def rows(self) -> Iterator[Row]:
        at, width = self.columns.index(self.text_column), len(self.columns)
        named = max((number for number, name in enumerate(self.columns, start=1) if name), default=width)
        for row in self._records:
            if row.cells and named <= len(row.cells) != width and not any(row.cells[width:]):
                row.cells = (row.cells + [""] * width)[:width]  # delimiters at a line's end alone are too few or many
            if row.fault is None and not row.cells:
                row.fault = EMPTY_LINE
            elif row.fault is None and len(row.cells) != width:
                row.fault = f"{len(row.cells)} cells where the header has {width}"
            elif row.fault is None and width > 1 and self._is_header(row.cells):
                row.fault = "the header again, as of two files in one"
            elif row.fault is None:
                row.text = row.cells[at]
            if row.fault:
                row.cells, row.size = None, 0
            yield row

    def _is_header(self, cells: list[str]) -> bool:
        """Asked of every row, of which nearly all end with another cell than the header."""
        return cells[-1] == self.columns[-1] and unmarked(cells) == self.columns

    def done(self) -> float:
        return self.file.done()

    def _read(self) -> Iterator[Row]:
        """Records; where one cannot be read, its first line is rejected and reading continues at the next."""
        csv.field_size_limit(LINE_CHARACTERS)
        while True:
            taken = []

            def feed(taken=taken, characters=0):
                while len(taken) < RECORD_LINES:
                    item = self._pending.popleft() if self._pending else next(self._lines, None)
                    if item is None:
                        return
                    taken.append(item)
                    characters += len(item[1])
                    if characters > LINE_CHARACTERS and len(taken) > 1:
                        raise csv.Error(
                            f"a quote that is not closed within {LINE_CHARACTERS >> 20} million characters"
                        )
                    yield item[1]
                raise csv.Error(f"a quote that is not closed within {RECORD_LINES} lines")

            try:
                cells = next(csv.reader(feed(), delimiter=self.delimiter, skipinitialspace=self._spaced, strict=True))
            except StopIteration:
                return
            except csv.Error as error:
                what = "a line end of another kind (CR) outside quotes" if "new-line" in str(error) else error
                yield Row(taken[0][0], fault=taken[0][2] or f"{what}: not valid CSV")
                self._pending.extendleft(reversed(taken[1:]))
            else:
                fault = next((fault for _, _, fault in taken if fault), None)
                size = sum(len(line) for _, line, _ in taken) + CELL * len(cells)
                yield Row(taken[0][0], None if fault else cells, fault=fault, size=0 if fault else size)
                del cells  # before the next record is read


def unmarked(cells: list[str]) -> list[str]:
    """Cells without a byte order mark that was left in the first, as where a file is marked twice or put after one."""
    return [cell.lstrip("\ufeff") for cell in cells[:1]] + cells[1:]


def find_delimiter(lines: list[str], usual: str, text_column: str) -> str:
    """The delimiter of a file's first lines; `usual` where none divides them.

    Of those that give the header two columns or more it is the one that gives it the text column, then the one that
    gives most records as many cells as the header, then the one that gives most columns.
    """
    csv.field_size_limit(LINE_CHARACTERS)
    lines = [re.sub(r"[\r\n](?=.)", " ", line) for line in lines]  # a stray one, which the reader takes for an error
    best, most = usual, (False, 0.0, 1)
    for delimiter in sorted(DELIMITERS, key=lambda delimiter: delimiter != usual):
        try:
            records = [record for record in csv.reader(lines, delimiter=delimiter) if record]
        except csv.Error:
            continue
        header, *others = records or [[]]
        others = others[:-1] or others  # the last may be cut
        agreeing = sum(len(record) == len(header) for record in others) / max(1, len(others))
        named = text_column.strip().casefold() in [name.strip().casefold() for name in header]
        if len(header) > 1 and (named, agreeing, len(header)) > most:
            best, most = delimiter, (named, agreeing, len(header))
    return best


def write_csv(file: TextIO, rows: Iterable[Sequence], delimiter: str = ",", end: str = "\n") -> None:
    """Rows as CSV that reads back as they are; Python's writer leaves other line ends than its own bare (3.11)."""
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    careful = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    for row in rows:
        (careful if any("\r" in str(cell) or "\n" in str(cell) for cell in row) else writer).writerow(row)


def defused(cell: object, delimiter: str) -> object:
    """A cell with ' before what a spreadsheet would take for a formula; plain numbers stay.

    Also inside the cell, after line breaks and what separates cells elsewhere: a spreadsheet that splits at semicolons
    reads `a,"b;=1"` as two cells, `a,"b` and `=1"`.
    """
    if not isinstance(cell, str):
        return cell
    pieces = re.split(f"([{SEPARATORS.replace(delimiter, '')}])", cell)
    if cell.startswith(("\t", "\r", "\n")):  # which spreadsheets skip
        pieces[0] = "'"
    return "".join("'" + piece if is_formula(piece) else piece for piece in pieces)


def is_formula(text: str) -> bool:
    """Whether a sign of formulas, full-width ones too, is the first character that shows, and the text no number."""
    shown = (character for character in text if unicodedata.category(character)[0] not in "ZCM" and character != '"')
    first = unicodedata.normalize("NFKC", next(shown, " "))
    return first in SIGNS and not NUMBER.fullmatch(text.strip('" '))
