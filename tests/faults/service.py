"""HTTP requests to `fintune serve`: valid, malformed, oversized, slow and broken off.

Not http.py: that name would hide the standard library's where this folder comes first.
"""

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from faults.shared import HEADLINES, Fault, fintune, good_run
from fintune.deploy.classifier import Classifier

REQUESTS, WARM_UP, CLIENTS = 2000, 200, 16
TOLERANCE = 1e-5  # of a probability; batches of other sizes differ by 3e-7
HEAD = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
HEAD += b"Content-Length: %d\r\n\r\n"


@dataclass
class Client:
    """Sends requests and knows their answers.

    Attributes:
        texts: 1,000 different ones.
        scores: (texts, labels), in the order of `names`.
    """

    port: int
    names: list[str]
    texts: list[str]
    scores: np.ndarray

    def send(self, number: int) -> tuple[bool, str]:
        """Whether the answer was as it must be, and what was sent; every second request is valid."""
        try:
            return self._send(number % 8, number // 2 % len(self.texts))
        except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
            return False, f"request {number}: {type(error).__name__}: {error}"

    def _send(self, kind: int, at: int) -> tuple[bool, str]:
        body = json.dumps({"text": self.texts[at]}).encode()
        if kind % 2 == 0:
            answer = self._post(body)
            return answer.status_code == 200 and self._is_own(answer.json(), at), f"valid: {answer.text[:200]}"
        if kind == 1:
            return self._post(b"x" * 200_000).status_code == 413, "oversized"
        if kind == 3:
            return self._post(os.urandom(200)).status_code == 422, "malformed"
        if kind == 5:  # the rest never comes
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
                connection.sendall(HEAD % (len(body) + 50) + body)
            return True, "broken off"
        status, _, content = self._post_slowly(HEAD % len(body) + body).partition(b"\r\n\r\n")
        return b" 200 " in status and self._is_own(json.loads(content), at), f"slow: {status[:100]}"

    def _post(self, body: bytes) -> httpx.Response:
        return httpx.post(
            f"http://127.0.0.1:{self.port}/classify",
            content=body,
            headers={"Content-Type": "application/json"},
            timeout=60,
        )

    def _post_slowly(self, content: bytes) -> bytes:
        """Half of it, a pause, the other half; what comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            half = len(content) // 2
            connection.sendall(content[:half])
            time.sleep(0.2)
            connection.sendall(content[half:])
            received = b""
            while chunk := connection.recv(4096):
                received += chunk
            return received

    def _is_own(self, answer: dict, at: int) -> bool:
        found = np.array([answer["probabilities"][name] for name in self.names])
        return np.abs(found - self.scores[at]).max() < TOLERANCE


def requests(fault: Fault) -> None:
    """2,000 requests from 16 clients, half of them valid; an answer must be that of its own text."""
    run = good_run()
    with contextlib.redirect_stdout(io.StringIO()):
        classifier = Classifier.from_pretrained(run)
    texts = [f"{text} {number}" for number, text in enumerate(HEADLINES * 10)][:1000]
    _, scores = classifier(texts)
    apart = np.abs(scores[:, None] - scores[None]).max(axis=2) + np.eye(len(texts))
    unique = float((apart.min(axis=1) > 2 * TOLERANCE).mean())
    with _service(run) as (process, port):
        client = Client(port, classifier.names, texts, scores)
        with ThreadPoolExecutor(CLIENTS) as pool:
            for held, what in pool.map(client.send, range(WARM_UP)):
                fault.record(True, held, what)
            before = _resident(process)
            for held, what in pool.map(client.send, range(WARM_UP, REQUESTS)):
                fault.record(True, held, what)
        growth = _resident(process) / before - 1
        idle = httpx.get(f"http://127.0.0.1:{port}/healthz").json()["waiting_texts"] == 0
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    counted = dict(re.findall(r'fintune_requests_total\{status="(\d+)"\} (\d+)', metrics))
    sent = {"200": "1250", "413": "250", "422": "250", "499": "250"}
    fault.measured = (
        f"resident memory {growth:+.1%} over the last {REQUESTS - WARM_UP:,}; {unique:.0%} of the answers are unique"
    )
    if counted != sent:
        fault.lost.append(f"the service counted {counted}, sent were {sent}")
    if unique < 0.9:
        fault.lost.append("too few answers are unique to tell whose they are")
    if growth > 0.1 or not idle:
        fault.lost.append(f"memory grew by {growth:.1%}" if idle else "texts are still waiting")


@contextlib.contextmanager
def _service(run: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """`fintune serve`, and its port."""
    process = subprocess.Popen(
        fintune("serve", str(run), "--port", "0", "--max-body", "100000"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = next(int(line.split(":")[-1].split()[0]) for line in process.stderr if "running on" in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process, port
    finally:
        process.terminate()
        process.wait(timeout=60)


def _resident(process: subprocess.Popen) -> int:
    """Kilobytes of memory."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
