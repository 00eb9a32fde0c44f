"""A disk that fills up while a run saves: a small tmpfs, which needs root."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from faults.shared import (
    HEADLINES,
    RESUME,
    Fault,
    finish,
    fintune,
    good_run,
    newest,
    outcome,
    reference,
    start,
    succeed,
    train,
    wait_for,
    wait_for_line,
)
from fintune.files import sha256

FULL = "no space left"


def full_disk(fault: Fault) -> None:
    """The disk is filled once the run is at work; then there is room again."""
    if os.geteuid():
        fault.lost.append("not tried: a small tmpfs needs root")
        return
    for number in range(2):
        _while_checkpoints_are_saved(fault, seconds=0.1 * number)
    for number in range(2):
        _while_the_result_is_saved(fault, room=100_000 * number)
    for number in range(2):
        _while_rows_are_labelled(fault, taken=50 * 1024 * number)


def _while_checkpoints_are_saved(fault: Fault, seconds: float) -> None:
    expected = reference()
    with _small_disk(8192) as disk:
        folder = disk / "run"
        process = train(folder)
        begun = wait_for(lambda: newest(folder) is not None, process)
        time.sleep(seconds)
        filler = _fill(disk)
        code, output = finish(process)
        filler.unlink()
        again, resumed = finish(train(folder, *RESUME))
        held = code == 2 and again == 0 and outcome(folder) == expected
        fault.record(begun and FULL in output, held, f"training: {code}, {again}: {(output + resumed)[-300:]}")


def _while_the_result_is_saved(fault: Fault, room: int) -> None:
    """Over an older result; with room for none, or for some, of what is saved."""
    expected = reference()
    with _small_disk(8192) as disk:
        folder, flags = disk / "run", ["--save_strategy", "no"]
        succeed(train(folder, *flags, "--seed", "7"))
        older = {path: sha256(path) for path in folder.iterdir() if path.is_file()}
        process = train(folder, *flags)
        begun = wait_for_line(process, "trains ")
        filler = _fill(disk)
        with filler.open("r+b") as file:
            file.truncate(filler.stat().st_size - room)
        code, output = finish(process)
        untouched = {path: sha256(path) for path in folder.iterdir() if path.is_file()} == older
        filler.unlink()
        again, repeated = finish(train(folder, *flags))
        held = code == 2 and untouched and again == 0 and outcome(folder) == expected
        fault.record(begun and FULL in output, held, f"result: {code}, {again}: {(output + repeated)[-300:]}")


def _while_rows_are_labelled(fault: Fault, taken: int) -> None:
    run = good_run()
    with _small_disk(700) as disk:
        rows = [f"{HEADLINES[i % len(HEADLINES)]} {i}" for i in range(4000)]
        source, target, filler = disk / "in.csv", disk / "out.csv", disk / "filler"
        source.write_text("text\n" + "\n".join(rows) + "\n")
        command = fintune("predict", str(run), str(source), "-o", str(target))
        filler.write_bytes(bytes(taken))
        code, output = finish(start(command))
        begun, half = FULL in output, target.exists()
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=8192k", disk], check=True)
        again, resumed = finish(start(command))
        labelled = target.exists() and sum(1 for _ in target.open()) == 4001
        held = code == 2 and not half and again == 0 and labelled and "4,000 labelled" in resumed
        fault.record(begun, held, f"predict: {code}, {again}: {(output + resumed)[-300:]}")


@contextlib.contextmanager
def _small_disk(kilobytes: int) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="."))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _fill(disk: Path) -> Path:
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler
