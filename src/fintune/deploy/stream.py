"""Label lines of standard input as they come."""

import os
import sys

from fintune.data.rows import Row, json_line
from fintune.deploy.answers import Answers, split_rejected
from fintune.deploy.classifier import Classifier

READ_BYTES = 2**16  # at most, of what has arrived


def label_stream(classifier: Classifier, threshold: float, prefix: str) -> tuple[int, int]:
    """Label lines of standard input as they come, one JSON line each on standard output, in order and flushed.

    A line that cannot be labelled gives {"line", "reason", "text"} in its place.

    Args:
        threshold: confidence below which the model abstains.
        prefix: put before the added columns' names.

    Returns:
        (labelled, rejected) lines.
    """
    answers = Answers(classifier, threshold, prefix)
    number = labelled = 0
    incomplete = b""
    while chunk := os.read(0, READ_BYTES):
        *lines, incomplete = (incomplete + chunk).split(b"\n")
        labelled += _answer(lines, number, answers)
        number += len(lines)
    if incomplete:
        labelled += _answer([incomplete], number, answers)
        number += 1
    return labelled, number - labelled


def _answer(lines: list[bytes], before: int, answers: Answers) -> int:
    """Answer lines that follow `before` others; how many were labelled."""
    rows = []
    for number, line in enumerate(lines, start=before + 1):
        try:
            rows.append(Row(number, text=line.removesuffix(b"\r").decode()))
        except UnicodeDecodeError as error:
            rows.append(Row(number, fault=f"not UTF-8 ({error.reason} at byte {error.start})"))
    good, rejected = split_rejected(rows)
    added = answers([row.text for row in good])
    found = {row.line: {"text": row.text, **more} for row, more in zip(good, added, strict=True)}
    found |= {line["line"]: line for line in rejected}
    sys.stdout.buffer.write(b"".join(json_line(found[row.line]) for row in rows))
    sys.stdout.buffer.flush()
    return len(good)
