"""Files that are whole or not there, and their hashes; imports nothing heavy."""

import hashlib
import json
import os
from pathlib import Path


def write_text(path: Path, content: str) -> None:
    """Write a file whole or not at all, line ends as given: a reader never sees half of it, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content.encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, content: object) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """Hash of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
