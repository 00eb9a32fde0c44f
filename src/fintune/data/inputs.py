"""What a model is asked about: a text, or in a task with `columns` a mapping of `text` and each of them to strings."""

import json
from collections.abc import Iterable, Sequence
from math import isnan

from fintune.data.rows import fault_of
from fintune.errors import UserError

Input = str | dict[str, str]  # text first, then the columns in the order of the task's YAML


def as_input(text: str, columns: dict[str, str]) -> Input:
    return {"text": text, **columns} if columns else text


def text_of(given: Input) -> str:
    return given if isinstance(given, str) else given["text"]


def columns_of(given: Input) -> dict[str, str]:
    """Column -> value without the spaces around it; empty of a text alone."""
    if isinstance(given, str):
        return {}
    return {name: value.strip() for name, value in given.items() if name != "text"}


def key_of(given: Input) -> bytes:
    """Equal for equal inputs of one task alone."""
    return given.encode() if isinstance(given, str) else json.dumps(list(given.items())).encode()


def input_fault(given: object, columns: Sequence[str]) -> str | None:
    """Why a value cannot be labelled in a task with these columns; None where it can."""
    if not columns:
        return fault_of(given)
    if not isinstance(given, dict):
        return f"{type(given).__name__}, without column {columns[0]!r}"
    names = ("text", *columns)
    if foreign := [name for name in given if name not in names]:
        return f"unknown column {foreign[0]!r}"
    for name in names:
        if fault := fault_of(given.get(name)):
            return f"{name!r}: {fault}"
    return None


def wanted(columns: Sequence[str]) -> str:
    """What a message says after `input_fault`."""
    if not columns:
        return "every text must be a non-empty string"
    return f"give {json.dumps(dict.fromkeys(('text', *columns), '...'))}, every value a non-empty string"


def named_columns(words: Iterable[str]) -> dict[str, str]:
    """Column of a task -> column of a file, of words such as `source` and `ticker=Symbol`.

    Raises:
        UserError: a column is given twice, or without its name.
    """
    found = {}
    for word in words:
        name, _, column = word.partition("=")
        if not name or name in found:
            raise UserError(
                f"column {word!r}: {'is given twice' if name else 'has no name'}; write NAME or NAME=COLUMN"
            )
        found[name] = column or name
    return found


def cell(value: object) -> object:
    """A value of a column as text: JSON, Parquet and Excel have numbers and dates too; pandas writes NaN for a gap."""
    if value is None or (isinstance(value, float) and isnan(value)):
        return None
    return value if isinstance(value, str | dict | list) else str(value)


def training_columns(given: Input, where: str) -> dict[str, dict[str, str]]:
    """{"columns": column -> value} of a row to train on; of a text alone nothing.

    Raises:
        UserError: a column is empty.
    """
    if isinstance(given, str):
        return {}
    columns = {name: value for name, value in given.items() if name != "text"}
    for name, value in columns.items():
        if fault := fault_of(value):
            raise UserError(f"{where}: column {name!r} is {fault}; fill it in, or remove the row")
    return {"columns": columns}
