"""What the kinds of faults share: the row they fill, the toy runs they start from, processes, a server that errs."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from conftest import COMPANIES, ROOT, TEXTS

from fintune.errors import UserError
from fintune.files import sha256

HEADLINES = [text.format(company) for texts in TEXTS.values() for text in texts for company in COMPANIES]
TOY = ["data/toy.yaml", "small.yaml", "--report_to", "none", "--num_train_epochs", "20", "--save_strategy", "steps"]
TOY += ["--save_steps", "4", "--logging_steps", "1", "--eval_strategy", "no", "--save_total_limit", "3"]
RESUME = ["--resume_from_checkpoint", "true"]


@dataclass
class Fault:
    """A row of the table.

    Attributes:
        tried, fired, held: how often; a fault that did not fire does not count as held.
        lost: what was lost where it did not hold.
        measured: figures besides.
    """

    name: str
    must_hold: str
    tried: int = 0
    fired: int = 0
    held: int = 0
    lost: list[str] = field(default_factory=list)
    measured: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def record(self, fired: bool, held: bool, what: str) -> None:
        """Count one try; `what` is said where it did not fire or did not hold."""
        with self._lock:
            self.tried += 1
            self.fired += fired
            self.held += fired and held
            if not (fired and held):
                self.lost.append(what if fired else f"did not fire: {what}")

    def revoke(self, count: int, what: str) -> None:
        """Tries that were counted as held, and turned out later not to have held."""
        with self._lock:
            self.held -= count
            self.lost.append(what)


def script(name: str, *argv: str, **environment: str | None) -> subprocess.Popen:
    """Start a script of the root; a variable that is None is taken out of its environment."""
    return start(script_command(name, *argv), **environment)


def script_command(name: str, *argv: str) -> list[str]:
    """The command line of a script of the root."""
    return [sys.executable, str(ROOT / name), *argv]


def train(folder: Path, *flags: str, **environment: str | None) -> subprocess.Popen:
    """Start the toy training into `folder`."""
    return script("train_sft.py", *TOY, "--output_dir", str(folder), *flags, **environment)


def fintune(*argv: str) -> list[str]:
    """The command line of a verb of `fintune`."""
    return [sys.executable, "-m", "fintune.cli", *argv]


def start(command: list[str], **environment: str | None) -> subprocess.Popen:
    """Start a command on one core, with both outputs in one pipe."""
    merged = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    merged = {key: value for key, value in merged.items() if value is not None}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=merged)


def finish(process: subprocess.Popen, seconds: int = 300) -> tuple[int, str]:
    """Exit code and output of a process that may take so long."""
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out.decode(errors="replace")


def succeed(process: subprocess.Popen) -> None:
    """Wait for a process that must not fail."""
    code, output = finish(process)
    assert code == 0, output


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> bool:
    """Whether it came true before the process ended."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def wait_for_line(process: subprocess.Popen, beginning: str) -> bool:
    """Whether the process printed such a line before it ended."""
    return any(line.decode(errors="replace").startswith(beginning) for line in process.stdout)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the most steps, whole or not."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return found[-1] if found else None


def outcome(folder: Path) -> tuple:
    """What must be the same, bit for bit: adapter, every logged loss, every metric, every prediction."""
    result = json.loads((folder / "metrics.json").read_text())
    losses = [(entry["step"], entry["loss"]) for entry in result["training"]["log"] if "loss" in entry]
    metrics = {key: value for key, value in result["test"].items() if "second" not in key}
    return sha256(folder / "adapter_model.safetensors"), losses, metrics, sha256(folder / "predictions.jsonl")


@cache
def undisturbed_run() -> Path:
    """The toy training without a fault, with its checkpoints."""
    succeed(train(Path("undisturbed")))
    return Path("undisturbed")


@cache
def reference() -> tuple:
    """What every disturbed toy training must end with."""
    return outcome(undisturbed_run())


@cache
def good_run() -> Path:
    """A run that has learned the toy task: without NEFTune, under which some seeds never tell two labels apart."""
    succeed(train(Path("good"), "--learning_rate", "1e-2", "--neftune_noise_alpha", "0"))
    accuracy = json.loads(Path("good/metrics.json").read_text())["test"]["accuracy"]
    assert accuracy == 1, f"it has an accuracy of {accuracy:.4f}: too little to tell one answer from another"
    return Path("good")


def refusal(run: Callable[[], object]) -> str:
    """The one line of a UserError; empty where it ran through."""
    try:
        run()
    except UserError as error:
        return "" if "\n" in str(error) else str(error)
    return ""


class _Handler(BaseHTTPRequestHandler):
    """Answers every request by the server's `answer`, and counts them by their method."""

    def do_GET(self):
        self.server.requests[self.command] += 1
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body, headers = self.server.answer(self)
        with contextlib.suppress(OSError):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    do_POST = do_HEAD = do_GET

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], tuple[int, bytes, dict]]) -> Iterator[ThreadingHTTPServer]:
    """A server on this machine.

    Args:
        answer: from a request (its `body` is read) to status, body and more headers.
    """
    found = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    found.answer, found.requests = answer, Counter()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        found.shutdown()
        found.server_close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
