"""A row of a file, and whether it can be labelled."""

from dataclasses import dataclass

EMPTY_LINE = "an empty line"


@dataclass
class Row:
    """One row of a file.

    Attributes:
        line: where it begins, from 1; in Parquet and Excel the number of the row.
        cells: all its columns, in the form in which its table writes them again; None where the line is no row.
        text: what is labelled.
        fault: why it cannot be labelled, else None.
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
