"""OUT.parts, the folder of a labelling at work: what lies in it is believed by hashes, never by its name."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fintune.errors import UserError
from fintune.files import check_writable, read_json, sha256, write_json, write_whole

KEYS = {"input", "run", "options", "shard"}  # of a manifest, by which it is known as one
NAMES = re.compile(r"(\d{8}\.(rows|rejected|json)|output|rejected\.jsonl|scores\.sqlite(-journal)?)(\.part)?")


class Parts:
    """Shards of a labelled file, and the file itself until it is complete.

    A shard is NUMBER.rows and NUMBER.rejected, and counts once NUMBER.json holds the hashes and rows of both.
    manifest.json says what the labelling was begun with. Once it also says `joined`, with the hashes of `output` and
    `rejected.jsonl`, no shard is read any more: these two are moved to their places, and the rest is deleted.

    Attributes:
        places: name in the folder -> where it goes, the labelled file last: where it is, everything is.
    """

    def __init__(self, target: Path):
        self.folder = target.with_name(target.name + ".parts")
        self.places = {"rejected.jsonl": target.with_name(target.name + ".rejected.jsonl"), "output": target}
        self._manifest, self._begun = self.folder / "manifest.json", ""

    def check(self) -> None:
        """See that nothing of the user's would be written over, and that there is a place to write to.

        Raises:
            UserError: the folder is not one of these, one of the places is taken, or nothing can be written there.
        """
        check_writable(self.folder if self.folder.is_dir() else self.folder.parent)
        manifest = self._read()
        for place in reversed(self.places.values()):
            if _taken(place) and "joined" not in manifest:
                if not manifest and self.folder.exists():  # empty: killed as it was about to be removed
                    with suppress(UserError), self.locked():
                        pass
                raise UserError(f"{place}: already exists; remove it, or name another output")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder, made where there is none; an empty one is removed at the end.

        Raises:
            UserError: another run holds it.
        """
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (Timeout, FileNotFoundError) as error:  # the latter: it has just ended, and removed the folder
            message = f"{self.folder}: another run is writing it; wait for that one, or name another output"
            raise UserError(message) from error
        try:
            yield
        finally:
            if not self._manifest.exists():
                Path(lock.lock_file).unlink(missing_ok=True)
                with suppress(OSError):  # it holds what is not ours
                    self.folder.rmdir()
            lock.release()

    def begin(self, manifest: dict) -> None:
        """Write down what is labelled with what, or see that it was begun with the same.

        Raises:
            UserError: it was not.
        """
        begun = json.dumps(manifest, sort_keys=True)
        if before := self._read():
            changed = [key for key in manifest if json.dumps(before[key]) != json.dumps(manifest[key])]
            if changed:
                raise UserError(
                    f"{self.folder}: was begun with another {changed[0]}; give it as it was, or remove the folder"
                )
        else:
            write_json(self._manifest, manifest)
        self._begun = hashlib.sha256(begun.encode()).hexdigest()

    def write_shard(self, number: int, kept: int, lost: int, write: dict[str, Callable[[Path], object]]) -> None:
        """Write a shard's two files and, last, what makes it count.

        Args:
            kept, lost: rows of NUMBER.rows and lines of NUMBER.rejected.
            write: `rows` and `rejected` -> what fills the file.
        """
        for kind, fill in write.items():
            write_whole(self.shard(number, kind), fill)
        write_json(self.shard(number, "json"), self._record(number, kept, lost))

    def has_shard(self, number: int, kept: int, lost: int) -> bool:
        """Whether a shard was written by this labelling, of so many rows, and is as it was written."""
        try:
            record = read_json(self.shard(number, "json"))
            return record == self._record(number, kept, lost)
        except (FileNotFoundError, ValueError):
            return False

    def shard(self, number: int, kind: str) -> Path:
        return self.folder / f"{number:08}.{kind}"

    def write_joined(self, counts: tuple[int, int], names: list[str]) -> None:
        """Write down that these files of `places` are complete.

        Args:
            counts: (labelled, rejected) rows.
        """
        joined = {"counts": counts, "files": {name: sha256(self.folder / name) for name in names}}
        write_json(self._manifest, self._read() | {"joined": joined})

    def place(self) -> tuple[int, int] | None:
        """Move the complete files to their places and remove the folder.

        Returns:
            (labelled, rejected) rows; None where they are not complete, or no longer there.

        Raises:
            UserError: a place was taken meanwhile.
        """
        manifest = self._read()
        if "joined" not in manifest:
            return None
        files = manifest["joined"]["files"]
        for name, place in self.places.items():
            made, hashed = self.folder / name, files.get(name)
            if place.is_file() and not made.exists() and sha256(place) == hashed:
                continue  # moved before a kill
            if _taken(place):
                raise UserError(f"{place}: already exists; move it away, then the same command goes on")
            if hashed is None:
                continue
            if not made.exists() or sha256(made) != hashed:  # taken away or damaged since
                del manifest["joined"]
                write_json(self._manifest, manifest)
                return None
            made.replace(place)
        self.clear()
        return tuple(manifest["joined"]["counts"])

    def clear(self) -> None:
        """Delete what a labelling writes, the manifest last; other files stay."""
        for path in sorted(self.folder.iterdir()):
            if NAMES.fullmatch(path.name):
                path.unlink()
        self._manifest.unlink()

    def _record(self, number: int, kept: int, lost: int) -> dict:
        hashed = {kind: sha256(self.shard(number, kind)) for kind in ("rows", "rejected")}
        return {"begun": self._begun, "rows": kept, "rejected": lost, "sha256": hashed}

    def _read(self) -> dict:
        """The manifest; empty where there is neither one nor anything else."""
        try:
            manifest = read_json(self._manifest)
            joined = manifest.get("joined", {"files": "output", "counts": (0, 0)})
            if manifest.keys() >= KEYS and "output" in joined["files"] and len(joined["counts"]) == 2:
                return manifest
        except FileNotFoundError:
            held = []
            with suppress(FileNotFoundError):  # no folder, or it is just being removed
                held = [path for path in self.folder.iterdir() if path.name != "lock" or path.stat().st_size]
            if {path.name for path in held} <= {"manifest.json.part"}:  # killed as it began or ended
                return {}
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            pass
        raise UserError(
            f"{self.folder}: holds no manifest of `fintune predict`, so nothing in it is touched; move it away, or "
            "name another output"
        )


def _taken(place: Path) -> bool:
    """Whether something is there, be it a link to what is missing now."""
    return place.exists() or place.is_symlink()
