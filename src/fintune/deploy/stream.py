"""Label lines of standard input as they come."""

import codecs
import os
import sys

from fintune.data.encodings import DAMAGED, damage_of, encoding_of, likely_encoding
from fintune.data.jsonl_file import json_line
from fintune.data.rows import Row
from fintune.data.text_file import FEW
from fintune.deploy.answers import Answers, judge
from fintune.deploy.classifier import Classifier

READ_BYTES = 2**16  # at most, of what has arrived


def label_stream(
    classifier: Classifier, threshold: float, prefix: str, encoding: str | None = None
) -> tuple[int, int]:
    """Label lines of standard input as they come, one JSON line each on standard output, in order and flushed.

    A line that cannot be labelled is answered in its place, with the reason in `rejected`.

    Args:
        threshold: confidence below which the model abstains.
        prefix: put before the added columns' names.
        encoding: of the lines; without it, UTF-8 unless a byte order mark says another.

    Returns:
        (labelled, rejected) lines.
    """
    head = b""
    while len(head) < 4 and b"\n" not in head and (chunk := os.read(0, READ_BYTES)):  # 4: the longest mark
        head += chunk
    encoding, mark = encoding_of(head, encoding, "standard input")
    decoder, answers = codecs.getincrementaldecoder(encoding)(DAMAGED), Answers(classifier, threshold, prefix)
    number = labelled = damaged = 0
    incomplete, chunk = "", head[len(mark) :]
    while True:
        *lines, incomplete = (incomplete + decoder.decode(chunk)).split("\n")
        rows = _rows(lines, number, encoding)
        labelled += _answer(rows, answers)
        number += len(rows)
        before, damaged = damaged, damaged + sum(row.text is None for row in rows)
        if before <= FEW < damaged and encoding == "utf-8":
            _say_encoding(lines)
        if not (chunk := os.read(0, READ_BYTES)):
            break
    if incomplete := incomplete + decoder.decode(b"", final=True):
        labelled += _answer(_rows([incomplete], number, encoding), answers)
        number += 1
    return labelled, number - labelled


def _rows(lines: list[str], before: int, encoding: str) -> list[Row]:
    """Rows of lines that follow `before` others; a damaged line has no text."""
    faults = [damage_of(line, encoding) for line in lines]
    return [
        Row(number, text=None if fault else line.removesuffix("\r"), fault=fault)
        for number, (line, fault) in enumerate(zip(lines, faults, strict=True), start=before + 1)
    ]


def _answer(rows: list[Row], answers: Answers) -> int:
    """Answer the rows; how many were labelled."""
    added = answers.of_rows(judge(rows))
    lines = (json_line({"text": row.text, **more}) for row, more in zip(rows, added, strict=True))
    sys.stdout.buffer.write(b"".join(lines))
    sys.stdout.buffer.flush()
    return sum(row.fault is None for row in rows)


def _say_encoding(lines: list[str]) -> None:
    guess = likely_encoding("\n".join(lines).encode("utf-8", "surrogateescape"))
    print(f"over {FEW} lines are not UTF-8 and rejected; --encoding {guess or 'NAME'} may read them", file=sys.stderr)
