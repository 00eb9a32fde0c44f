"""Files that are whole or not there, and their hashes; imports nothing heavy."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fintune.errors import UserError


def write_text(path: Path, content: str) -> None:
    """Write a file whole or not at all, line ends as given: a reader never sees half of it, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: part.write_bytes(content.encode("utf-8", "replace")))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it there: whole or not at all."""
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, content: object) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def check_block(path: Path, mark: str) -> tuple[str, str]:
    """A text file's content before and after the block of a mark, marks included.

    Raises:
        UserError: the file is missing, or does not hold `<!-- mark:begin -->` and `<!-- mark:end -->` once, in order.
    """
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    try:
        content = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; name the file that holds {begin} and {end}") from error
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise UserError(f"{path}: put {begin} and, below it, {end} on lines of their own, once each")
    return content[: content.index(begin) + len(begin)], content[content.index(end) :]


def replace_block(path: Path, mark: str, content: str) -> None:
    """Write `content` between the marks of a file, in place of what is there.

    Raises:
        UserError: as `check_block`.
    """
    before, after = check_block(path, mark)
    write_text(path, f"{before}\n{content.strip()}\n{after}")


def sha256(path: Path) -> str:
    """Hash of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """`sha256` of every file under a folder, by its name there."""
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def faults(folder: Path, saved: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of each file that is not as its hash in `saved` says."""
    for name, expected in saved.items():
        if not (folder / name).is_file():
            yield name, "missing"
        elif sha256(folder / name) != expected:
            yield name, "not what was saved"
