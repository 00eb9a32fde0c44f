"""Rows of CSV, TSV, JSONL, Parquet and Excel files, one at a time: a fault in a row costs that row alone."""

import shlex
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from fintune.data.csv_file import Csv
from fintune.data.excel_file import Excel
from fintune.data.inputs import cell
from fintune.data.jsonl_file import Jsonl
from fintune.data.parquet_file import Parquet
from fintune.data.rows import Row
from fintune.data.same_text import name_key
from fintune.data.text_file import COMPRESSED, TextFile
from fintune.errors import UserError

KINDS = {".csv": Csv, ".tsv": Csv, ".jsonl": Jsonl, ".parquet": Parquet, ".xlsx": Excel}
TEXT_NAMES = ("text", "headline", "title", "sentence", "news", "tweet", "message", "content", "body", "summary")
WORDS = 3  # that the values of a column of texts have on average, at least

Table = Csv | Jsonl | Parquet | Excel


def ending(path: Path) -> str:
    """The ending by which a file's format is known, in lower case, such as .csv.gz.

    Raises:
        UserError: it is none that is read.
    """
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSED else ""
    kind = (Path(path.stem) if compression else path).suffix.lower()
    if kind not in KINDS or (compression and kind in (".parquet", ".xlsx")):
        raise UserError(
            f"{path}: ends in none of .csv, .tsv, .jsonl (each also with .gz or .zst), .parquet, .xlsx; "
            "convert or rename it"
        )
    return kind + compression


def read_table(
    path: Path,
    text_column: str,
    content: bytes | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    strict: bool = False,
) -> Table:
    """A file as a table, of the format that its ending names.

    Args:
        text_column: what is labelled; `find_column` says whether it is there.
        content: the file's bytes, where they are not to be read from `path`.
        delimiter: between the cells of CSV; without it, the one that fits.
        encoding: of a text file; without it, UTF-8 unless a byte order mark says another.
        strict: refuse a text file for a single line that is damaged.

    Raises:
        UserError: it is missing, of another format or encoding, or damaged.
    """
    kind = KINDS[ending(path).removesuffix(".gz").removesuffix(".zst")]
    if content is None and not path.is_file():
        what = "is no regular file; copy it to one" if path.exists() else "no such file"
        raise UserError(f"{path}: {'is a folder; name a file' if path.is_dir() else what}")
    if delimiter is not None and kind is not Csv:
        raise UserError(f"--delimiter {delimiter!r}: {path.name} has none; only CSV and TSV files have")
    if kind in (Parquet, Excel):
        if encoding is not None and content is None:
            raise UserError(f"--encoding {encoding}: {path.name} is no text file; leave it out")
        return kind(path, text_column, content)
    file = TextFile(path, content, encoding, strict)
    return Csv(file, text_column, delimiter) if kind is Csv else Jsonl(file, text_column)


def check_column(table: Table, where: Path, name: str, option: str, texts: bool = True) -> None:
    """See that a table has a column exactly once; after an error its rows are used up.

    Args:
        where: the file, for messages.
        option: how a name is given, such as "--text {}".
        texts: whether it is the column of the texts, so that the one that looks like them can be proposed.

    Raises:
        UserError: it has not; the message proposes the column that is likely meant.
    """
    count = table.columns.count(name)
    if count == 1 or (not count and isinstance(table, Jsonl) and table.finds(name)):
        return
    if not table.columns:
        raise UserError(f"{where}: has no header, which names the columns; name another file")
    said = str(table.columns[:20])[:200]
    if count:
        raise UserError(f"{where}: column {name!r} appears {count} times in the header {said}; rename one of them")
    likely = [column for column in table.columns if name_key(column) == name_key(name)]
    joined = isinstance(table, Csv) and len(table.columns) == 1 and name_key(name) in name_key(table.columns[0])
    if texts and not likely and not joined:
        likely = [column for column in table.columns if column.strip().casefold() in TEXT_NAMES]
        likely = likely if len(likely) == 1 else _columns_of_words(table)
    remedy = "name the right one: " + option.format("NAME")
    if joined and not likely:
        files = "state what separates its cells: --delimiter CHARACTER"
        remedy = files if option.startswith("--") else "separate its cells by commas"
    if len(likely) == 1:
        remedy = f"{likely[0]!r} is likely meant: " + option.format(shlex.quote(likely[0]))
    raise UserError(f"{where}: column {name!r} is missing from the header {said}; {remedy}")


def check_columns(table: Table, where: Path, columns: dict[str, str], option: str) -> None:
    """As `check_column`, of each column of a task.

    Args:
        columns: column of the task -> column of the file.
        option: where another one is named, for the message.
    """
    for name, column in columns.items():
        check_column(table, where, column, f"{option} {name}={{}}", texts=False)


def read_inputs(table: Table, columns: dict[str, str]) -> Iterator[Row]:
    """The rows of a table; with columns `text` of each is the input, unless the row has a fault.

    Args:
        columns: column of the task -> column of the file.
    """
    for row in table.rows():
        if columns and row.fault is None:
            try:
                row.text = {"text": row.text, **{name: cell(table.value(row, at)) for name, at in columns.items()}}
            except UnicodeDecodeError:  # in Parquet, whose columns are read one by one
                row.fault = "not UTF-8"
        yield row


def _columns_of_words(table: Table) -> list[str]:
    """The columns whose values look like texts in the first rows."""
    columns = [column for column in table.columns if table.columns.count(column) == 1]
    if not columns:
        return []
    table.text_column = columns[0]
    rows, words = 0, dict.fromkeys(columns, 0)
    for row in islice(table.rows(), 50):  # none of which is kept: they may be long
        if row.cells is not None:
            rows += 1
            for column in columns:
                with suppress(UnicodeDecodeError):  # of pictures in Parquet
                    words[column] += len(str(table.value(row, column)).split())
    return [column for column in columns if rows and words[column] >= WORDS * rows]
