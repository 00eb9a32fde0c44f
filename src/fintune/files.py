"""Files that are whole or not there, and their hashes; imports nothing heavy."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from fintune.errors import UserError, in_words


def write_text(path: Path, content: str) -> None:
    """Write a file whole or not at all, line ends as given: a reader never sees half of it, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: part.write_bytes(content.encode("utf-8", "replace")))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it there: whole or not at all."""
    check_replaceable(path)
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def read_json(path: Path) -> object:
    """What a JSON file holds.

    Raises:
        ValueError: it is not JSON in UTF-8, or is nested too deep to be any file of ours.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(str(error)) from error


def write_json(path: Path, content: object) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path, newline: str | None = None) -> str:
    """A file's text.

    Args:
        newline: "" to keep its line ends; else they become line feeds.

    Raises:
        UserError: it is not UTF-8.
        OSError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline=newline) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (at byte {error.start}); save it as UTF-8") from error


def check_replaceable(path: Path) -> None:
    """See that what is written may take the place of `path`: it would take that of a device too.

    Raises:
        UserError: a folder, a device or a pipe is there.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no file that can be written over; name another")


def check_writable(folder: Path) -> None:
    """See that a file can be made in a folder, or where that is missing, in the one that it would be made in.

    Raises:
        UserError: it cannot: no permission, a read-only or a full disk, no inodes, or a file in the folder's place.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
    except OSError as error:
        raise UserError(in_words(error, folder)) from error


def check_readable(folder: Path) -> None:
    """See that every file under a folder can be read; says nothing of a folder that is missing.

    Raises:
        UserError: one cannot.
    """
    for path in (folder, *sorted(folder.rglob("*"))) if folder.is_dir() else ():
        try:
            if path.is_dir():
                os.listdir(path)
            elif path.is_file():
                path.open("rb").close()
        except OSError as error:
            raise UserError(f"cannot read {in_words(error, path)}") from error


def modes_of_umask(folder: Path) -> None:
    """Give every file under a folder the mode of a new file; those of safetensors only their owner could read."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        new = Path(scratch, "new")
        new.touch()
        mode = stat.S_IMODE(new.stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def check_block(path: Path, mark: str) -> tuple[str, str]:
    """A text file's content before and after the block of a mark, marks included.

    Raises:
        UserError: the file is missing or not UTF-8, or does not hold `<!-- mark:begin -->` and `<!-- mark:end -->`
            once, in order.
    """
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the file that holds {begin} and {end}")
    content = read_text(path, newline="")
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


def finish_move(folder: Path) -> None:
    """Move a result that lies whole in a run's `staging/` into the run's folder, and remove the older one's files.

    The result counts from the moment that staging/metrics.json, written last, gets its name. Whoever reads the run
    calls this first, so that a move that was killed is finished by the next command.

    Raises:
        UserError: another process is at it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    staging = folder / "staging"
    if not (staging / "metrics.json").is_file():
        return
    try:
        with FileLock(folder.resolve() / ".lock", timeout=0, is_singleton=True):
            for name in _saved_names(folder) - _saved_names(staging):
                path = folder / name
                if path.resolve().is_relative_to(folder.resolve()):
                    path.unlink(missing_ok=True)
                    with suppress(OSError):  # not empty, or the run's own folder
                        path.parent.rmdir()
            for path in sorted(staging.iterdir(), key=lambda path: path.name == "metrics.json"):
                if path.is_dir():
                    shutil.rmtree(folder / path.name, ignore_errors=True)
                path.replace(folder / path.name)
            staging.rmdir()
    except Timeout as error:
        raise UserError(f"{folder}: a result is being saved into it; try again in a moment") from error
    except OSError as error:
        raise UserError(
            f"{folder}: a newer result waits in its staging/ and cannot be moved in: {in_words(error)}"
        ) from error


def _saved_names(folder: Path) -> set[str]:
    """Names of the files that a folder's metrics.json lists."""
    try:
        return set(read_json(folder / "metrics.json")["files"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or one without files
        return set()
