"""Jobs: trainings as processes of their own, one after the other or side by side."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fintune.errors import UserError
from fintune.machine import RUNS_AT_ONCE


def checkout() -> Path:
    """The repository's root, which holds the training scripts and their recipes.

    Raises:
        UserError: fintune is installed without them.
    """
    root = Path(__file__).parents[3]  # above src/fintune/results
    if not (root / "train_sft.py").is_file():
        raise UserError(
            "fintune is installed without its training scripts; clone the repository and run `pip install -e .` there"
        )
    return root


@dataclass
class Job:
    """A command that trains or scores one run.

    Attributes:
        name: of the run, for messages.
        log: file that receives its output, where several run side by side; None shows it.
    """

    name: str
    command: list[str]
    log: Path | None = None


def run_all(jobs: list[Job], at_once: int = 1) -> list[str]:
    """Run jobs, `at_once` of them side by side, each on its share of the cores; a failure does not stop the others.

    SIGINT, SIGTERM and SIGHUP let each running job save its checkpoint, then end this process with 128 + signal.

    Returns:
        Names of the jobs that failed.
    """
    waiting, running, failed, received = list(jobs), {}, [], []
    environment = dict(os.environ)
    if at_once > 1:
        environment[RUNS_AT_ONCE] = str(at_once)
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // at_once))

    def stop(signum, frame):
        if not received:  # a second one would stop a child in the middle of its save
            for child in running:
                child.send_signal(signal.SIGTERM if signum == signal.SIGHUP else signum)
        received.append(signum)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, stop) for signum in signals if signal.getsignal(signum) != signal.SIG_IGN}
    started = time.monotonic()
    try:
        while running or (waiting and not received):
            while waiting and len(running) < at_once and not received:
                job = waiting.pop(0)
                running[_start(job, environment)] = job
            time.sleep(0.1)
            for child in [child for child in running if child.poll() is not None]:
                job = running.pop(child)
                if child.returncode and not received:
                    failed.append(job.name)
                    where = f"see {job.log}" if job.log else "its message is above"
                    print(f"failed {job.name}: exit code {child.returncode}, {where}; continuing", flush=True)
                elif job.log and not received:
                    done = len(jobs) - len(waiting) - len(running)
                    left = (time.monotonic() - started) / done * (len(jobs) - done) / 60
                    print(f"done {job.name}: {done} of {len(jobs)}, about {left:.0f} min left", flush=True)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if received:
        print("stopped; the same command skips what is finished", file=sys.stderr)
        sys.exit(128 + received[0])
    return failed


def _start(job: Job, environment: dict) -> subprocess.Popen:
    if job.log is None:
        print(f"\nrun {job.name}: {' '.join(job.command[1:])}", flush=True)
        return subprocess.Popen(job.command, env=environment, start_new_session=True)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w") as log:
        return subprocess.Popen(
            job.command,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # signals come from `run_all` alone
        )
