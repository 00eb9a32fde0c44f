"""Data files as people bring them: other encodings, line ends, columns and labels, rows that are broken."""

import csv
import io
import random
from pathlib import Path

from faults.shared import HEADLINES, Fault
from fintune.data.load import _read, load_data
from fintune.errors import UserError
from fintune.recipe.task import DataFile, absolute_paths, make_task

NAMES = {"0": "up", "1": "down"}
KINDS = 12
ROWS = 20


def spoilt_files(fault: Fault) -> None:
    """500 files of known rows, each spoilt in one way: row-exact, or refused with the line."""
    rng = random.Random(0)
    Path("files").mkdir()
    keys = {"task": "t", "labels": NAMES, "files": {"all": "t.csv"}, "template": "x"}
    task = make_task(absolute_paths(keys, Path("files").resolve()), "t")
    for number in range(500):
        end = rng.choice(["\n", "\r\n"])
        rows = [(f'{rng.choice(HEADLINES)} {i}, "so"\nit says é', rng.choice("01")) for i in range(ROWS)]
        kind, sound = number % KINDS, _written(rows, end)
        content, expected = _spoilt(kind, rows, rng.randrange(ROWS), end)
        Path("files/t.csv").write_bytes(content)
        try:
            if kind == 11:
                load_data(task)
            found = [(row["text"], task.names[row["label"]]) for row in _read(task, DataFile("t.csv"), content)]
            held, what = not isinstance(expected, str) and _same(found, expected), "read"
        except UserError as error:
            held, what = isinstance(expected, str) and expected in str(error) and "\n" not in str(error), str(error)
        except Exception as error:
            held, what = False, f"{type(error).__name__}: {error}"
        fault.record(content != sound, held, f"kind {kind}: {what[:200]}")


def _spoilt(kind: int, rows: list[tuple[str, str]], at: int, end: str) -> tuple[bytes, str | list[tuple[str, str]]]:
    """A file that is spoilt in row `at`, and what must come of it: the rows, or words of the message."""
    sound, changed = _written(rows, end), list(rows)
    line, last = 2 + 2 * at, 2 + 2 * ROWS  # each row takes two lines, the header one
    text, label = rows[at]
    match kind:
        case 0:  # a byte order mark
            return b"\xef\xbb\xbf" + sound, rows
        case 1:  # the other line ends, in the texts too
            return sound.replace(b"\n", b"\r\n").replace(b"\r\r\n", b"\r\n"), rows
        case 2:  # a character of Latin-1
            pieces = sound.split("é".encode())
            pieces[at] += b"\xe9" + pieces.pop(at + 1)
            return "é".encode().join(pieces), f"t.csv:{line + 1}:"
        case 3:
            return sound.replace(b"text,label", b"text,tone"), "column 'label' is missing"
        case 4:
            return sound.replace(b"text,label", b"text,label,text"), "column 'text' appears 2 times"
        case 5:
            changed[at] = (text, "sideways")
            return _written(changed, end), f"t.csv:{line}: label 'sideways'"
        case 6:
            changed[at] = ("  ", label)
            return _written(changed, end), f"t.csv:{line}: the text is empty"
        case 7:
            return sound + b'"never closed,1\nand on\n', f"t.csv:{last}:"
        case 8:
            return sound + b"one,two,three\n", f"t.csv:{last}: 3 cells"
        case 9:
            changed[at] = (text + "\x00", label)
            return _written(changed, end), changed
        case 10:  # 1 and 2 for 0 and 1
            first = next((i for i, row in enumerate(rows) if row[1] == "1"), 0)
            more = [(text, str(int(label) + 1)) for text, label in rows]
            return _written(more, end), f"t.csv:{2 + 2 * first}: label '2'"
        case 11:  # one class is missing
            return _written([(text, "1") for text, _ in rows], end), "no row of class up"


def _written(rows: list[tuple[str, str]], end: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows([("text", "label"), *rows])
    return text.getvalue().encode()


def _same(found: list[tuple[str, str]], expected: list[tuple[str, str]]) -> bool:
    """Whether the rows are those, line ends inside a text left aside."""
    return [(text.replace("\r\n", "\n"), label) for text, label in found] == [(t, NAMES[n]) for t, n in expected]
