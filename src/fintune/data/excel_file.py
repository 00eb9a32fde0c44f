"""Excel workbooks: the first sheet that has the column of the texts, written as CSV."""

import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import ParseError

from fintune.data.csv_file import Cells
from fintune.data.rows import CELL, EMPTY_LINE, Row
from fintune.errors import UserError

MOST_ROWS = 2**20  # of a sheet, as in Excel
ROW_BYTES = 2**24  # of XML, of which each takes some 20 in memory; a usual row has a thousand
PART_BYTES = 2**28  # of what is read whole, as all texts of the workbook, each once
BROKEN = (zipfile.BadZipFile, zlib.error, ParseError, KeyError, ValueError, EOFError, OSError, IndexError)
BROKEN += (TypeError, AttributeError)  # of openpyxl, where a part is not what it takes it for
SAVE = "save it again, without a password"
ESCAPED = re.compile("_x(?!D[89A-F])([0-9A-F]{4})_", re.IGNORECASE)  # a character that XML cannot hold, as CR
ERRORS = ("#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A", "#SPILL!", "#CALC!")  # of formulas


class Excel(Cells):
    """An .xlsx workbook, read as a stream; what is written is CSV that Excel opens with its accents: UTF-8, marked.

    Attributes:
        about: the sheet, where the workbook has several.
    """

    mark = b"\xef\xbb\xbf"

    def __init__(self, path: Path, text_column: str, content: bytes | None = None):
        import openpyxl  # pip install 'fintune[xlsx]'

        source = path if content is None else io.BytesIO(content)
        self.path, self.text_column, self._read = path, text_column, 0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of parts that hold no cells
                check_size(source, path)
                book = openpyxl.load_workbook(source, read_only=True, data_only=True)
            title = ""
            for sheet in sorted(book.worksheets, key=lambda sheet: sheet.sheet_state != "visible"):
                most = max(1, sheet.max_row or 1)
                sheet.reset_dimensions()  # some programs write wrong ones, which would cut rows off
                values = enumerate(sheet.iter_rows(values_only=True), start=1)
                header = next((cells for _, cells in values if any(cell is not None for cell in cells)), ())
                names = [as_text(cell) for cell in header]
                while names and not names[-1]:
                    names.pop()
                if names and (not title or text_column in names):
                    what = f"column {text_column!r}" if title else "rows"
                    title, self._most, self._values, self.columns = sheet.title, most, values, names
                if text_column in names:
                    break
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from error
            raise UserError(f"{path}: not a complete .xlsx workbook ({error}); {SAVE}") from error
        if not title:
            raise UserError(f"{path}: no sheet of the workbook holds rows")
        several = len(book.worksheets) > 1
        self.about = f"sheet {title!r}, the first of {len(book.worksheets)} with {what}" if several else ""

    def rows(self) -> Iterator[Row]:
        """Empty rows are counted where others follow; below the last one they are what formatting leaves behind."""
        at, width, below = self.columns.index(self.text_column), len(self.columns), 0
        try:
            for number, cells in self._values:
                if number > MOST_ROWS:
                    raise ValueError(f"a row {number:,}, where Excel has {MOST_ROWS:,}")
                below = below or number
                if all(cell is None for cell in cells):
                    continue
                self._read = number
                yield from (Row(empty, fault=EMPTY_LINE) for empty in range(below, number))
                below = 0
                if any(cell not in (None, "") for cell in cells[width:]):
                    yield Row(number, fault=f"{len(cells)} cells where the header has {width}")
                    continue
                cells = [*cells[:width], *[None] * (width - len(cells))]
                texts = [as_text(cell) for cell in cells]
                text = texts[at] if isinstance(cells[at], str) else cells[at]
                fault = f"{text}, an error of a formula" if text in ERRORS else None
                yield Row(number, texts, text, fault, sum(map(len, texts)) + CELL * width)
        except BROKEN as error:
            raise UserError(f"{self.path}: damaged after row {self._read} ({error}); save it again") from error

    def done(self) -> float:
        """Share of the sheet's rows that were read."""
        return min(1.0, self._read / self._most)


def check_size(source: Path | io.BytesIO, path: Path) -> None:
    """Refuse a workbook that takes too much memory: its sheets are unpacked row by row, the rest whole.

    Raises:
        UserError: a row has over `ROW_BYTES`, or another part over `PART_BYTES`.
    """
    with zipfile.ZipFile(source) as archive:
        for part in archive.infolist():
            sheet, limit = part.filename.startswith("xl/worksheets/"), PART_BYTES
            size = part.file_size
            if sheet and size > ROW_BYTES:
                limit = ROW_BYTES
                with archive.open(part) as file:
                    size = longest_row(file)
            if size > limit and not part.filename.startswith("xl/media/"):  # which is not read
                what = ("a row of " if sheet else "") + part.filename
                raise UserError(f"{path}: {what} has over {limit >> 20} MiB when it is unpacked; save it as CSV")


def longest_row(file: BinaryIO) -> int:
    """Bytes from the beginning of a row to the next in a sheet's XML, at most; it is read up to one of `ROW_BYTES`."""
    longest = start = read = 0
    tail = b""
    while longest <= ROW_BYTES and (chunk := file.read(2**20)):
        for found in re.finditer(rb"<(\w+:)?row[\s/>]", tail + chunk):
            row = read - len(tail) + found.start()
            longest, start = max(longest, row - start), row
        read += len(chunk)
        longest, tail = max(longest, read - start), chunk[-100:]  # a tag may lie across two chunks
    return longest


def as_text(cell: object) -> str:
    """A cell as CSV holds it: dates as ISO 8601, empty cells as nothing."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return ESCAPED.sub(lambda found: chr(int(found[1], 16)), cell)
    if isinstance(cell, datetime) and cell.time() == time():
        return cell.date().isoformat()
    if isinstance(cell, datetime):
        return cell.isoformat(" ")
    return cell.isoformat() if isinstance(cell, date | time) else str(cell)
