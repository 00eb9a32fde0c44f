"""Lines of a text file, compressed or not, in the encoding and with the line ends that it has; written likewise."""

import gzip
import io
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from fintune.data.encodings import DAMAGED, damage_of, encoding_of, likely_encoding
from fintune.errors import UserError

COMPRESSED = (".gz", ".zst")
HEAD_BYTES = 2**16  # from which encoding and line ends are found
HEAD_CHARACTERS = 2**20  # from which delimiter and columns are found
LINE_CHARACTERS = 16 * 2**20  # of one line; longer ones are rejected without being held
FEW = 5  # damaged lines are rejected one by one; more of them are a wrong encoding
FOREIGN = {  # first bytes -> what such a file is
    b"PK\x03\x04": "is a zip archive or an Excel workbook; unpack it, or name it .xlsx",
    b"\xd0\xcf\x11\xe0": "is an old or encrypted Excel workbook; save it as .xlsx or CSV, without a password",
    b"PAR1": "is a Parquet file; name it .parquet",
    b"\x1f\x8b": "is compressed by gzip; add .gz to its name",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; add .zst to its name",
    b"BZh91AY&SY": "is compressed by bzip2; unpack it",
    b"\xfd7zXZ\0": "is compressed by xz; unpack it",
    b"%PDF-": "is a PDF; export its table as CSV",
}


class TextFile:
    """A text file.

    Attributes:
        encoding: as Python names it, without a byte order mark.
        mark: the byte order mark that it begins with, or none.
        end: its commonest line end outside quotes: "\\n", "\\r\\n" or "\\r".
    """

    def __init__(self, path: Path, content: bytes | None = None, encoding: str | None = None, strict: bool = False):
        """
        Args:
            content: the file's bytes, where they are not to be read from `path`.
            encoding: as the user states it; without it, UTF-8 unless a byte order mark says another.
            strict: refuse the file for one damaged line, whether or not its encoding was stated.

        Raises:
            UserError: it cannot be read, is no text, or not of this encoding.
        """
        self.path, self._content, self._raw = path, content, None
        self.compression = path.suffix.lower() if path.suffix.lower() in COMPRESSED else ""
        with self._readable(lambda: 0):
            head = self._open().read(HEAD_BYTES)
        for magic, what in FOREIGN.items():
            if head.startswith(magic):
                raise UserError(f"{path}: {what}")
        self.encoding, self.mark = encoding_of(head, encoding, str(path))
        start = head[len(self.mark) :].decode(self.encoding, "replace")
        ends = re.findall(r"\r\n|\r|\n", re.sub('"[^"]*"', "", start)) or re.findall(r"\r\n|\r|\n", start)
        self.end = max(("\n", "\r\n", "\r"), key=Counter(ends).__getitem__)
        if strict or encoding is None:
            self._check_encoding(strict)

    def done(self) -> float:
        """Share of the file's bytes that were read."""
        return 1.0 if self._raw.closed else self._raw.tell() / max(1, self.path.stat().st_size)

    def lines(self) -> Iterator[tuple[int, str, str | None]]:
        """(number, line with its end, fault) of each line; U+2028 and the like end none."""
        number, end = 0, "\r" if self.end == "\r" else "\n"
        with self._readable(lambda: number):
            text = self._text()
            while line := text.readline(LINE_CHARACTERS):
                number += 1
                fault, rest = damage_of(line, self.encoding), line
                while len(rest) == LINE_CHARACTERS and not rest.endswith(end):
                    line, fault = "", too_long("line")
                    rest = text.readline(LINE_CHARACTERS)
                yield number, line, fault

    def _check_encoding(self, strict: bool) -> None:
        with self._readable(lambda: 0):
            text = self._text()
            while chunk := text.read(2**20):
                if damage_of(chunk, self.encoding):
                    break
            else:
                return
        found = (line for line in self.lines() if damage_of(line[1], self.encoding))
        (number, start, fault), guess, reads = next(found, (0, "", None)), None, ""
        if not number:  # it is in a line that is too long, and rejected for that
            return
        count = 1
        for _, line, _ in found:
            count += 1
            start += line[: max(0, HEAD_BYTES - len(start))]
        if self.encoding == "utf-8":
            head = start.encode("utf-8", "surrogateescape")
            guess = likely_encoding(head[:HEAD_BYTES])
            shown = guess and head.split(b"\n")[0].decode(guess, "replace").strip()[:60]
            reads = f" the file looks like {guess}, in which line {number} reads {shown!r}:" if guess else ""
        if strict:
            raise UserError(f"{self.path}:{number}: {fault};{reads} convert it, or set `encoding: {guess or '...'}`")
        if count > FEW:
            raise UserError(
                f"{self.path}: {count:,} lines are {fault.partition(' (')[0]}, the first of them line {number};"
                + (f"{reads} --encoding {guess} reads it so" if guess else " state the right --encoding")
                + f", --encoding {self.encoding} leaves such lines out"
            )

    def _text(self) -> io.TextIOWrapper:
        file = self._open()
        file.read(len(self.mark))
        return io.TextIOWrapper(file, self.encoding, DAMAGED, newline="\r" if self.end == "\r" else "\n")

    def _open(self) -> BinaryIO:
        self._raw = self.path.open("rb") if self._content is None else io.BytesIO(self._content)
        if self.compression == ".gz":
            return gzip.GzipFile(fileobj=self._raw)
        if self.compression == ".zst":
            return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(self._raw, "r"), "zstd"))
        return self._raw

    @contextmanager
    def _readable(self, line: Callable[[], int]) -> Iterator[None]:
        """Says in one line what keeps the file from being read after a line."""
        try:
            yield
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno:
                raise UserError(f"{self.path}: cannot be read ({error.strerror})") from error
            kind = "gzip" if self.compression == ".gz" else "zstd"
            raise UserError(
                f"{self.path}: its {kind} is damaged after line {line()} ({error}); fetch it again"
            ) from error


def head_of(lines: Iterator[tuple[int, str, str | None]], most: int) -> list[tuple[int, str, str | None]]:
    """The first lines of `TextFile.lines`: `most`, or fewer where they are long."""
    head, characters = [], 0
    while len(head) < most and characters < HEAD_CHARACTERS and (found := next(lines, None)):
        head.append(found)
        characters += len(found[1])
    return head


def too_long(what: str) -> str:
    """Why a line, a record or a text of over `LINE_CHARACTERS` is rejected."""
    return f"a {what} of over {LINE_CHARACTERS >> 20} million characters"


def join_text(target: Path, compression: str, head: bytes, parts: list[Path]) -> None:
    """Write `head` and the parts after it as one file; the same content gives the same bytes."""
    with target.open("wb") as raw:
        file = raw
        if compression == ".gz":  # without name and time
            file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0)
        elif compression == ".zst":
            file = pa.CompressedOutputStream(pa.PythonFile(raw, "w"), "zstd")
        file.write(head)
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, file)
        if file is not raw:
            file.close()
