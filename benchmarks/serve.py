"""Latency of `fintune serve` under 1, 16 and 64 clients that each ask for one headline at a time, over and over.

    .venv/bin/python benchmarks/serve.py runs/sentiment/tiny        # a minute; the clients run on the same machine

Each headline is another one: the sentiment sample's sentences with a number after each.
"""

import argparse
import asyncio
import itertools
import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not the root, whose evaluate.py hides a package
import measure
import numpy as np

from fintune import machine

CLIENTS, SECONDS, WARM_UP = (1, 16, 64), 15, 3
HEAD = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--name", default=platform.node(), help="of the result's file: the machine's host name")
    args = parser.parse_args()
    _, data = measure.setting("sentiment")
    texts = list(data.splits["train"]["text"])
    headlines = (f"{text} {number}" for number, text in enumerate(itertools.cycle(texts)))
    command = [sys.executable, "-m", "fintune.cli", "serve", str(args.run_dir), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        port = next(int(found[1]) for line in server.stderr if (found := re.search(r"http://\S+:(\d+)", line)))
        loads = []
        for clients in CLIENTS:
            asyncio.run(load(port, headlines, clients, WARM_UP))
            loads.append(asyncio.run(load(port, headlines, clients, SECONDS)))
            print(
                "{clients} clients: median {p50:.1f} ms, p95 {p95:.1f}, p99 {p99:.1f}; {per_second:.0f}/s".format(
                    **loads[-1]
                )
            )
    finally:
        server.terminate()
        server.wait()
    model = json.loads((args.run_dir / "metrics.json").read_text())["model"]
    measure.save({"machine": machine.description(), "model": model, "loads": loads}, f"{args.name}-serve")


async def load(port: int, headlines, clients: int, seconds: float) -> dict:
    """Milliseconds from request to whole answer: median and percentiles over all requests of these clients."""
    end, took = time.perf_counter() + seconds, []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            body = json.dumps({"text": next(headlines)}).encode()
            started = time.perf_counter()
            writer.write(HEAD % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
            took.append(1000 * (time.perf_counter() - started))
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    p50, p95, p99 = np.percentile(took, [50, 95, 99])
    return {
        "clients": clients,
        "requests": len(took),
        "per_second": len(took) / seconds,
        "p50": p50,
        "p95": p95,
        "p99": p99,
    }


if __name__ == "__main__":
    main()
