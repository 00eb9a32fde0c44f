"""A Hugging Face Hub that fails, is slow, breaks off or sends other bytes."""

import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from conftest import ROOT

from faults.shared import Fault, finish, script, server
from fintune.files import sha256

REVISION = "0" * 40
HEADERS = {"X-Repo-Commit": REVISION, "ETag": '"0123"', "Accept-Ranges": "bytes"}
ALWAYS = 10**9


def hub_fails(fault: Fault) -> None:
    """A Hub of our own that serves the toy task's file, rightly or wrongly."""
    source = Path("data/toy.csv")
    task = yaml.safe_load(Path("data/toy.yaml").read_text())
    task |= {"task": "hubbed", "hub": "me/data", "revision": REVISION, "template": "../templates/toy.jinja"}
    task["files"] = {"all": {"path": "toy.csv", "sha256": sha256(source)}}
    Path("data/hubbed.yaml").write_text(yaml.safe_dump(task))
    cases = _cases(source.read_bytes())

    def one(name: str) -> None:
        answer, works, fetched, asked = cases[name]
        cache, folder = Path(tempfile.mkdtemp(dir=".")), Path(f"hub-{name.replace(' ', '-')}")
        with server(answer) as hub:
            environment = {
                "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HOME": str(cache.resolve()),
                "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            }
            majority = str(ROOT / "configs/baselines/majority.yaml")
            argv = ["data/hubbed.yaml", majority, "--output_dir", str(folder), "--report_to", "none"]
            code, output = finish(script("train_linear.py", *argv, **environment))
            trained = (folder / "metrics.json").exists()
            last = output.strip().splitlines()[-1]
            held = trained and code == 0 if works else not trained and code == 2 and last.startswith("error: ")
            fired = hub.requests["GET"] >= fetched and hub.requests["HEAD"] >= asked
            fault.record(fired, held, f"{name}: {code}, {dict(hub.requests)}: {output[-300:]}")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, cases))


def _cases(content: bytes) -> dict[str, tuple]:
    """What the Hub does -> (its answers, whether the run trains, least requests of the bytes and of their name)."""
    good, seen = (200, content, HEADERS), Counter()

    def first(count: int, fault):
        """`fault` for the first requests of a file's bytes, and what is right after them."""

        def answer(request):
            seen[request.server] += request.command == "GET"
            return fault(request) if request.command == "GET" and seen[request.server] <= count else good

        return answer

    def breaks_off(request):
        """The connection ends at byte 1,000, wherever it begins."""
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        length = {"Content-Length": str(len(content) - start)}
        part = length | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return 206 if start else 200, content[start:1000], HEADERS | (part if start else length)

    def late(request):
        time.sleep(4)
        return good

    other = (200, content.replace(b"dividend", b"DIVIDEND"), HEADERS)
    return {
        "errors": (lambda request: (500, b"no", {}), False, 0, 3),
        "an error for the bytes": (first(ALWAYS, lambda request: (500, b"no", {})), False, 3, 1),
        "two errors for the bytes": (first(2, lambda request: (503, b"busy", {})), True, 3, 1),
        "slow twice": (first(2, late), True, 3, 1),
        "breaks off": (first(ALWAYS, breaks_off), False, 3, 1),
        "other bytes": (first(ALWAYS, lambda request: other), False, 3, 3),
        "other bytes once": (first(1, lambda request: other), True, 2, 2),
        "missing": (lambda request: (404, b"", {"X-Error-Code": "EntryNotFound"}), False, 0, 1),
    }
