"""Excel workbooks: the first sheet that holds rows, written as CSV."""

import io
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from xml.etree.ElementTree import ParseError

from fintune.data.csv_file import Cells
from fintune.data.rows import EMPTY_LINE, Row
from fintune.errors import UserError

BROKEN = (zipfile.BadZipFile, zlib.error, ParseError, KeyError, ValueError, EOFError, OSError, IndexError)


class Excel(Cells):
    """An .xlsx workbook, read as a stream; what is written is CSV that Excel opens with its accents: UTF-8, marked.

    Attributes:
        about: the sheet, where the workbook has several.
    """

    mark = b"\xef\xbb\xbf"

    def __init__(self, path: Path, text_column: str, content: bytes | None = None):
        import openpyxl  # pip install 'fintune[xlsx]'

        self.path, self.text_column, self._read, self._most = path, text_column, 0, 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of parts that hold no cells
                book = openpyxl.load_workbook(
                    path if content is None else io.BytesIO(content), read_only=True, data_only=True
                )
            for sheet in book.worksheets:
                self._most = max(1, sheet.max_row or 1)
                sheet.reset_dimensions()  # some programs write wrong ones, which would cut rows off
                self._values = enumerate(sheet.iter_rows(values_only=True), start=1)
                header = next((cells for _, cells in self._values if any(cell is not None for cell in cells)), ())
                if header:
                    break
            else:
                raise UserError(f"{path}: no sheet of the workbook holds rows")
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from error
            raise UserError(f"{path}: not a complete .xlsx workbook ({error}); save it again") from error
        several = len(book.worksheets) > 1
        self.about = f"sheet {sheet.title!r}, the first of {len(book.worksheets)} with rows" if several else ""
        width = max(at for at, cell in enumerate(header, start=1) if cell is not None)
        self.columns = [as_text(cell) for cell in header[:width]]

    def rows(self) -> Iterator[Row]:
        """Empty rows are counted where others follow; below the last one they are what formatting leaves behind."""
        at, width, empty = self.columns.index(self.text_column), len(self.columns), []
        try:
            for number, cells in self._values:
                self._read = number
                if all(cell is None for cell in cells):
                    empty.append(Row(number, fault=EMPTY_LINE))
                    continue
                yield from empty
                empty.clear()
                if any(cell is not None for cell in cells[width:]):
                    yield Row(number, fault=f"{len(cells)} cells where the header has {width}")
                    continue
                cells = [*cells[:width], *[None] * (width - len(cells))]
                yield Row(number, [as_text(cell) for cell in cells], cells[at])
        except BROKEN as error:
            raise UserError(f"{self.path}: damaged after row {self._read} ({error}); save it again") from error

    def done(self) -> float:
        """Share of the sheet's rows that were read."""
        return min(1.0, self._read / self._most)


def as_text(cell: object) -> str:
    """A cell as CSV holds it: dates as ISO 8601, empty cells as nothing."""
    if cell is None:
        return ""
    if isinstance(cell, datetime) and cell.time() == time():
        return cell.date().isoformat()
    if isinstance(cell, datetime):
        return cell.isoformat(" ")
    return cell.isoformat() if isinstance(cell, date | time) else str(cell)
