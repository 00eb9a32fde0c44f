"""Injects faults of every kind into trainings, checkpoints, files, runs and requests, and says what was lost.

    python tests/faults/run.py [--only KIND ...] [--write [FILE]] [--run DIR ...]

Each fault must fire, or it does not count as held. All take half an hour on two cores; `disk` needs root.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/
os.environ.update(WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
os.environ.pop("FINTUNE_DATA", None)
from conftest import ROOT, write_task
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers.utils import logging

from faults import (
    bases,
    brought,
    checkpoints,
    disk,
    files,
    folders,
    headlines,
    hub,
    labelling,
    places,
    recipes,
    service,
    tracking,
    weights,
)
from faults.shared import Fault
from fintune import machine
from fintune.files import write_text
from fintune.results.tables import commit_of, markdown_table

BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"


def kinds(runs: list[Path]) -> dict[str, tuple[str, str, Callable[[Fault], None]]]:
    """Kind -> (what is done, what must hold, the function that does it).

    Args:
        runs: finished runs to be measured besides the toy one.
    """
    return {
        "kills": ("kill -9 during training", "ends bit for bit as without it", checkpoints.kills),
        "labelling": (
            "kill -9 at every file event of a labelling",
            "the same command ends byte for byte as without it",
            labelling.kills_at_every_file_event,
        ),
        "damage": (
            "a checkpoint's file deleted, truncated or one bit flipped; a changed recipe",
            "refused by name",
            checkpoints.damage,
        ),
        "signals": (
            "SIGTERM, SIGINT during training",
            "saves within one step, exits with 143 or 130, resumes bit for bit",
            checkpoints.signals,
        ),
        "disk": ("full disk", "one line, older results untouched, goes on once there is room", disk.full_disk),
        "tracking": (
            "W&B unreachable, slow, failing or refusing the key",
            "training goes on, the run is kept offline, one line",
            tracking.tracking_fails,
        ),
        "hub": (
            "Hub failing, slow, breaking off or sending other bytes",
            "fetched again, or refused in one line; other bytes are never used",
            hub.hub_fails,
        ),
        "folders": (
            "two runs into one folder",
            "the second is refused by name, the first untouched",
            folders.two_at_once,
        ),
        "places": (
            "places that cannot be read or written, no home, files of a run added or spoilt, closed streams",
            "works without a home; the rest is refused in one line before the work, exit code 2",
            places.places,
        ),
        "headlines": (
            "headlines with control tokens and hidden characters",
            "no control token among the ids",
            partial(headlines.control_tokens, runs=runs),
        ),
        "recipes": ("recipes of random YAML", "parsed, or refused in one line; no code runs", recipes.random_yaml),
        "files": ("damaged data files", "every row as written, or the line is named", files.spoilt_files),
        "bases": (
            "bases with windows, sinks, soft caps, state spaces, shared keys, padding that is read",
            "each scores as its own forward of single rows (1e-3), or is refused in one line",
            bases.architectures,
        ),
        "brought": (
            "files people bring: encodings, delimiters, formats, compression, line ends, endings",
            "every row as written, or refused with the encoding to state; labelled, all rows come out",
            brought.files_people_bring,
        ),
        "weights": (
            "runs with pickled, truncated or foreign weights",
            "refused; nothing is unpickled, no remote code runs",
            weights.foreign_weights,
        ),
        "http": (
            "HTTP requests: valid, malformed, oversized, slow, broken off",
            "each client gets its own answer, memory stays flat",
            service.requests,
        ),
    }


def main() -> None:
    about = "\n".join(f"  {name:<10} {done}" for name, (done, _, _) in kinds([]).items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"kinds:\n{about}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=kinds([]), metavar="KIND", help="of the kinds below; default all")
    parser.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=ROOT / "docs/faults.md",
        metavar="FILE",
        help=f"write the table between the marks {BEGIN} and {END} of a file (without a name: docs/faults.md)",
    )
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="also measure how often this run follows an instruction inside a headline; may be repeated",
    )
    args = parser.parse_args()
    chosen = {
        name: kind
        for name, kind in kinds([run.resolve() for run in args.run]).items()
        if name in (args.only or [name])
    }
    target = args.write and args.write.resolve()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.set_verbosity_error()  # of the weights that do not fit, transformers would print each
    logging.disable_progress_bar()
    started, before = time.monotonic(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_task(Path(folder))
        faults = inject(chosen)
        os.chdir(before)
    minutes = (time.monotonic() - started) / 60
    show(faults, minutes)
    if target:
        write(target, faults, minutes)
    sys.exit(1 if any(fault.lost for fault in faults) else 0)


def inject(chosen: dict[str, tuple[str, str, Callable[[Fault], None]]]) -> list[Fault]:
    """One row for each kind, in a folder that holds the toy task."""
    faults = []
    for name, (done, must_hold, function) in tqdm(chosen.items(), unit="kind"):
        fault, started = Fault(done, must_hold), time.monotonic()
        try:
            function(fault)
        except Exception as error:  # the other kinds are tried all the same
            traceback.print_exc()
            fault.lost.append(f"not tried to the end: {type(error).__name__}: {error}"[:200])
        faults.append(fault)
        print(f"\n{name}: {fault.tried} tried, {fault.held} held, {time.monotonic() - started:.0f} s", flush=True)
        for what in fault.lost[:5]:
            print(f"  lost: {what}", flush=True)
    return faults


def show(faults: list[Fault], minutes: float) -> None:
    """Print the table."""
    table = Table(title=f"faults, {minutes:.1f} minutes")
    for column in ("fault", "tried", "fired", "held", "must hold", "measured"):
        table.add_column(column, justify="right" if column in ("tried", "fired", "held") else "left")
    for fault in faults:
        counts = (f"{count:,}" for count in (fault.tried, fault.fired, fault.held))
        table.add_row(fault.name, *counts, fault.must_hold, fault.measured)
    Console(width=160).print(table)


def write(path: Path, faults: list[Fault], minutes: float) -> None:
    """Write the table between the marks of a Markdown file."""
    rows = []
    for fault in faults:
        lost = fault.lost[0] if fault.lost else "nothing"
        rows.append([fault.name, f"{fault.tried:,}", f"{fault.held:,}", fault.must_hold, lost, fault.measured])
    table = markdown_table(["fault", "tried", "fired and held", "must hold", "lost", "measured"], rows)
    content = path.read_text(encoding="utf-8")
    begin, end = content.index(BEGIN) + len(BEGIN), content.index(END)
    here = machine.description()
    measured_on = f"{minutes:.0f} minutes on {os.cpu_count()} cores of {here['processor']}, commit {commit_of(here)}:"
    write_text(path, "\n".join([content[:begin], measured_on, "", *table, content[end:]]))


if __name__ == "__main__":
    main()
