"""A row of a file, and whether it can be labelled."""

from collections.abc import Iterator
from dataclasses import dataclass

CELL = 64  # bytes that a cell takes beside its characters
EMPTY_LINE = "an empty line"


@dataclass
class Row:
    """One row of a file.

    Attributes:
        line: where it begins, from 1; in Parquet and Excel the number of the row.
        cells: all its columns, in the form in which its table writes them again; None where the line is no row.
        text: what is labelled.
        fault: why it cannot be labelled, else None.
        size: characters of its cells, and `CELL` for each.
    """

    line: int
    cells: object = None
    text: object = None
    fault: str | None = None
    size: int = 0


def slices(rows: Iterator[Row], most: int, size: int) -> Iterator[list[Row]]:
    """Rows in order, `most` at a time, or fewer where they come to `size` before: the same rows, the same slices."""
    taken, held = [], 0
    for row in rows:
        taken.append(row)
        held += row.size
        if len(taken) == most or held >= size:
            full, taken, held, row = taken, [], 0, None
            yield full
            del full
    if taken:
        yield taken


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
