"""Label lines of standard input as they come."""

import json
import os
import sys

from fintune.data.inputs import cell
from fintune.data.rows import Row, json_line
from fintune.deploy.answers import Answers, split_rejected
from fintune.deploy.classifier import Classifier

READ_BYTES = 2**16  # at most, of what has arrived


def label_stream(
    classifier: Classifier, threshold: float, prefix: str, text_column: str, columns: dict[str, str]
) -> tuple[int, int]:
    """Label lines of standard input as they come, one JSON line each on standard output, in order and flushed.

    A line is a text, or where the run reads columns too a JSON object, which keeps its other fields. A line that
    cannot be labelled gives {"line", "reason", "text"} in its place.

    Args:
        threshold: confidence below which the model abstains.
        prefix: put before the added columns' names.
        text_column: field of the text in an object.
        columns: what the run reads beside the text -> field of an object.

    Returns:
        (labelled, rejected) lines.
    """
    answers, fields = Answers(classifier, threshold, prefix), {"text": text_column, **columns} if columns else {}
    number = labelled = 0
    incomplete = b""
    while chunk := os.read(0, READ_BYTES):
        *lines, incomplete = (incomplete + chunk).split(b"\n")
        labelled += _answer(lines, number, answers, fields)
        number += len(lines)
    if incomplete:
        labelled += _answer([incomplete], number, answers, fields)
        number += 1
    return labelled, number - labelled


def _answer(lines: list[bytes], before: int, answers: Answers, fields: dict[str, str]) -> int:
    """Answer lines that follow `before` others; how many were labelled.

    Args:
        fields: `text` and the run's columns -> field of an object; empty where lines are texts.
    """
    rows = []
    for number, line in enumerate(lines, start=before + 1):
        try:
            rows.append(Row(number, text=line.removesuffix(b"\r").decode()))
        except UnicodeDecodeError as error:
            rows.append(Row(number, fault=f"not UTF-8 ({error.reason} at byte {error.start})"))
    for row in rows if fields else ():
        _read_object(row, fields, answers.columns)
    good, rejected = split_rejected(rows, answers.classifier)
    added = answers([row.text for row in good])
    found = {row.line: {**(row.cells or {"text": row.text}), **more} for row, more in zip(good, added, strict=True)}
    found |= {line["line"]: line for line in rejected}
    sys.stdout.buffer.write(b"".join(json_line(found[row.line]) for row in rows))
    sys.stdout.buffer.flush()
    return len(good)


def _read_object(row: Row, fields: dict[str, str], added: list[str]) -> None:
    """Turn the line that a row holds into its input, or say why not."""
    if row.fault:
        return
    try:
        cells = json.loads(row.text)
    except RecursionError:
        row.fault = "nested too deep"
    except ValueError as error:
        row.fault = f"not valid JSON ({error})" if row.text.strip() else "an empty line"
    else:
        if not isinstance(cells, dict):
            row.fault = f"{type(cells).__name__}, not an object of columns"
        elif taken := cells.keys() & set(added):
            row.fault = f"has a column {min(taken)!r} already; choose a --prefix for the new ones"
        else:
            row.cells = cells
            row.text = {name: cell(cells.get(field)) for name, field in fields.items()}
