"""Label lines of standard input as they come."""

import codecs
import os
import sys
from collections.abc import Iterator

from fintune.data.encodings import DAMAGED, damage_of, encoding_of, likely_encoding
from fintune.data.inputs import cell
from fintune.data.jsonl_file import json_line, read_object
from fintune.data.rows import Row
from fintune.data.text_file import FEW, LINE_CHARACTERS, too_long
from fintune.deploy.answers import Answers, judge
from fintune.deploy.classifier import Classifier

READ_BYTES = 2**16  # at most, of what has arrived


def label_stream(
    classifier: Classifier,
    threshold: float,
    prefix: str,
    text_column: str,
    columns: dict[str, str],
    encoding: str | None = None,
) -> tuple[int, int]:
    """Label lines of standard input as they come, one JSON line each on standard output, in order and flushed.

    A line is a text, or where the run reads columns too a JSON object, which keeps its other fields. A line that
    cannot be labelled is answered in its place, with the reason in `rejected`.

    Args:
        threshold: confidence below which the model abstains.
        prefix: put before the added columns' names.
        text_column: field of the text in an object.
        columns: what the run reads beside the text -> field of an object.
        encoding: of the lines; without it, UTF-8 unless a byte order mark says another.

    Returns:
        (labelled, rejected) lines.
    """
    head, fields = b"", {"text": text_column, **columns} if columns else {}
    while len(head) < 4 and b"\n" not in head and (chunk := os.read(0, READ_BYTES)):  # 4: the longest mark
        head += chunk
    encoding, mark = encoding_of(head, encoding, "standard input")
    decoder, answers = codecs.getincrementaldecoder(encoding)(DAMAGED), Answers(classifier, threshold, prefix)
    number = labelled = damaged = 0
    for lines in _arriving(decoder, head[len(mark) :]):
        rows = _rows(lines, number, encoding)
        bad = [line for line, row in zip(lines, rows, strict=True) if line is not None and row.fault]
        labelled += _answer(rows, answers, fields)
        number += len(rows)
        before, damaged = damaged, damaged + len(bad)
        if before <= FEW < damaged and encoding == "utf-8":
            _say_encoding(bad)
    return labelled, number - labelled


def _arriving(decoder: codecs.IncrementalDecoder, chunk: bytes) -> Iterator[list[str | None]]:
    """The lines of standard input that have arrived; None is one of over LINE_CHARACTERS, which is not held.

    Args:
        chunk: what was read of it before.
    """
    begun, length = [], 0  # parts of a line whose end has not come, and its characters
    while True:
        *lines, rest = decoder.decode(chunk).split("\n")
        if lines:
            length += len(lines[0])
            lines[0] = "".join([*begun, lines[0]]) if length <= LINE_CHARACTERS else None
            begun, length = [], 0
        length += len(rest)
        begun = [*begun, rest] if length <= LINE_CHARACTERS else []
        yield lines
        if not (chunk := os.read(0, READ_BYTES)):
            break
    last = decoder.decode(b"", final=True)
    if length := length + len(last):
        yield ["".join([*begun, last]) if length <= LINE_CHARACTERS else None]


def _rows(lines: list[str | None], before: int, encoding: str) -> list[Row]:
    """Rows of lines that follow `before` others; a damaged line and one that is too long have no text."""
    faults = [too_long("line") if line is None else damage_of(line, encoding) for line in lines]
    return [
        Row(number, text=None if fault else line.removesuffix("\r"), fault=fault)
        for number, (line, fault) in enumerate(zip(lines, faults, strict=True), start=before + 1)
    ]


def _answer(rows: list[Row], answers: Answers, fields: dict[str, str]) -> int:
    """Answer the rows; how many were labelled.

    Args:
        fields: `text` and the run's columns -> field of an object; empty where lines are texts.
    """
    lines = [{"text": row.text} for row in rows]
    for row, line in zip(rows, lines, strict=True) if fields else ():
        if row.fault is None:
            found, row.fault = read_object(row.text, set(answers.columns))
        if row.fault is None:
            row.text = {name: cell(found.get(field)) for name, field in fields.items()}
            line.clear()
            line |= found
    added = answers.of_rows(judge(rows, answers.classifier))
    answered = (json_line({**line, **more}) for line, more in zip(lines, added, strict=True))
    sys.stdout.buffer.write(b"".join(answered))
    sys.stdout.buffer.flush()
    return sum(row.fault is None for row in rows)


def _say_encoding(lines: list[str]) -> None:
    guess = likely_encoding("\n".join(lines).encode("utf-8", "surrogateescape"))
    print(f"over {FEW} lines are not UTF-8 and rejected; --encoding {guess or 'NAME'} may read them", file=sys.stderr)
