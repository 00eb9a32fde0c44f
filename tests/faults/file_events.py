"""Label a file again and again, each time killed at another file event, then to its end; one JSON line a time.

    python tests/faults/file_events.py RUN FOLDER [EVERY]

FOLDER/in.csv is labelled into FOLDER/out.csv. Events are what changes a file: before each one, and in the middle of
each write, a child process kills itself with SIGKILL; with EVERY 5 at every fifth of them.
"""

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from fintune.deploy import label_file
from fintune.deploy.classifier import Classifier
from fintune.errors import UserError

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "sqlite3.connect"}  # audited
SHARD = 8


class Events:
    """Counts file events, and kills this process before one of them."""

    def __init__(self, kill_at: int):
        self.kill_at, self.names = kill_at, []
        self.open, self.fsync = io.open, os.fsync
        sys.addaudithook(self._audit)
        io.open, os.fsync = self._open, lambda file: self.count("fsync") or self.fsync(file)

    def count(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _audit(self, event: str, args: tuple) -> None:
        if event in CHANGES:
            self.count(event)
        elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self.count("open")

    def _open(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if "w" not in mode or opener:  # with an opener it is a temporary file without a name
            return self.open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = io.BufferedWriter(_Written(file, self))
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding, errors, newline)


class _Written(io.FileIO):
    def __init__(self, file, events: Events):
        super().__init__(file, "w")
        self._events = events

    def write(self, content) -> int:
        self._events.count("write")
        half = super().write(memoryview(content)[: len(content) // 2])
        self._events.count("half a write")
        return half + super().write(memoryview(content)[half:])


def child(work: Callable[[int], None], kill_at: int) -> tuple[bool, list]:
    """(killed, what `work` returned of its events) in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            said = work(kill_at)
        except UserError as error:
            said = [str(error)]
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, json.loads(said or b"[]")


def main() -> None:
    run, folder = Path(sys.argv[1]), Path(sys.argv[2])
    classifier, label_file.SHARD = Classifier.from_pretrained(run), SHARD
    classifier.predict("x")  # loads what it loads

    def label(kill_at: int) -> list:
        events = Events(kill_at)
        counts = label_file.label_file(classifier, run, folder / "in.csv", folder / "out.csv", "text", 0.0)
        return [counts, events.names]

    def made() -> dict:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def empty() -> None:
        for path in folder.iterdir():
            if path.name != "in.csv":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    _, (counts, names) = child(label, 0)
    expected = made()
    for number, name in list(enumerate(names, start=1))[:: int((*sys.argv, 1)[3])]:
        for again in (0, 1 + 7 * number % len(names)):  # the second run killed as well, or not
            empty()
            killed, _ = child(label, number)
            child(label, again) if again else None
            left = made()
            _, said = child(label, 0)
            # of a kill after the last file was removed the output is there, and the command says so
            held = said[0] == counts or ("already exists" in said[0] and left.items() >= expected.items())
            held = held and made() == expected and not (folder / "out.csv.parts").exists()
            what = f"event {number}, {name}, then {again}: {said} {sorted(left)}"
            print(json.dumps({"event": name, "fired": killed, "held": held, "what": what}), flush=True)


if __name__ == "__main__":
    main()
