"""Label a million rows twice, once killed three times at random: is it the same file, and does memory stay level?

    .venv/bin/python benchmarks/label_file.py runs/sentiment/tiny      # two hours on two cores

Rows are the sentiment sample's sentences with a number behind each; of 100 rows one repeats an earlier text and one
cannot be labelled. Ends in an error where rows, files or memory are not what they must be.
"""

import argparse
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not the root, whose evaluate.py hides a package
import matplotlib
import measure

from fintune import machine
from fintune.deploy.label_file import SHARD
from fintune.files import sha256

matplotlib.use("agg")  # no screen needed
import matplotlib.pyplot as plt

FROM, GROWTH = 100_000, 0.1  # memory may grow by this share between that row and the end
BAD = [b'7,""', b"7,\xff", b"7,a,b", b"7", b"7,  "]  # no text, no UTF-8, a cell too many, one too few, blank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--name", default=platform.node(), help="of the result's file: the machine's host name")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.csv"
        expected = generate(source, args.rows)
        whole = run_once(args.run_dir, source, Path(folder) / "whole.csv")
        memory = whole["memory"]
        begin = memory[min(rows for rows in memory if rows >= min(FROM, args.rows))]
        end = max(mib for rows, mib in memory.items() if rows >= min(FROM, args.rows))
        killed_at, killed = [], None
        rng = random.Random(0)
        for share in sorted(rng.uniform(0.05, 0.95) for _ in range(args.kills)):
            killed = run_once(args.run_dir, source, Path(folder) / "killed.csv", kill_at=int(share * args.rows))
            killed_at.append(killed["rows"])
        killed = run_once(args.run_dir, source, Path(folder) / "killed.csv")
        report = {
            "machine": machine.description(),
            "run": str(args.run_dir),
            "base": json.loads((args.run_dir / "metrics.json").read_text())["model"],
            "rows": args.rows,
            "expected": expected,
            "counted": whole["counts"],
            "counted_after_kills": killed["counts"],
            "killed_after_rows": killed_at,
            "seconds": whole["seconds"],
            "rows_per_second": args.rows / whole["seconds"],
            "sha256": [sha256(Path(folder) / name) for name in ("whole.csv", "killed.csv")],
            "sha256_rejected": [sha256(Path(folder) / f"{name}.csv.rejected.jsonl") for name in ("whole", "killed")],
            "growth": end / begin - 1,
            "resident_mib": memory,
        }
    measure.save(report, f"{args.name}-file")
    draw(memory, measure.RESULTS / f"{args.name}-file.png")
    print(
        f"{args.rows:,} rows, {report['rows_per_second']:.0f} a second; killed at {killed_at}; resident {begin:.0f} "
        f"MiB at row {FROM:,}, at most {end:.0f} from there on ({report['growth']:+.1%})"
    )
    assert report["counted"] == report["counted_after_kills"] == expected, report
    assert all(len(set(report[key])) == 1 for key in ("sha256", "sha256_rejected")), report
    assert report["growth"] < GROWTH, report["growth"]


def generate(path: Path, rows: int) -> dict[str, int]:
    """Write the file; {"labelled", "rejected"} as they must be counted."""
    _, data = measure.setting("sentiment")
    texts = list(data.splits["train"]["text"])
    rejected = 0
    with path.open("wb") as file:
        file.write(b"id,text\n")
        for row in range(rows):
            if row % 100 == 99:
                file.write(BAD[row // 100 % len(BAD)] + b"\n")
                rejected += 1
                continue
            number = row // 2 if row % 100 == 50 else row  # half-way back: long written, in another shard
            text = f'"{texts[number % len(texts)].replace(chr(34), chr(34) * 2)} {number}"'
            file.write(f"{row},{text}\n".encode())
    return {"labelled": rows - rejected, "rejected": rejected}


def run_once(run_dir: Path, source: Path, target: Path, kill_at: int | None = None) -> dict:
    """Run `fintune predict` to its end, or kill it some seconds after that many rows are done.

    Returns:
        rows done; at its end also seconds, counts, and memory: rows done -> the most MiB resident while they were.
    """
    command = [sys.executable, "-m", "fintune.cli", "predict", str(run_dir), str(source), "-o", str(target)]
    command += ["--encoding", "utf-8"]  # stated, lines that are not are rejected one by one
    parts = target.with_name(target.name + ".parts")
    started, rows, memory = time.perf_counter(), 0, {}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            rows = max(rows, SHARD * len(list(parts.glob("*.rows"))))
            if resident := _resident_mib(process.pid):
                memory[rows] = max(round(resident, 1), memory.get(rows, 0))
            if kill_at is not None and rows >= kill_at:
                time.sleep(random.Random(kill_at).uniform(0, 10))  # somewhere within a shard
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                return {"rows": rows}
            time.sleep(1)
        log.seek(0)
        text = log.read().decode()
    assert process.returncode in (0, 3), text[-2000:]
    [last] = re.findall(r"([\d,]+) rows: ([\d,]+) labelled, ([\d,]+) rejected", text)
    total, labelled, rejected = (int(number.replace(",", "")) for number in last)
    assert total == labelled + rejected
    seconds = time.perf_counter() - started
    return {
        "rows": total,
        "seconds": seconds,
        "memory": memory,
        "counts": {"labelled": labelled, "rejected": rejected},
    }


def _resident_mib(pid: int) -> float | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), None)


def draw(memory: dict[int, float], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot([rows / 1000 for rows in memory], list(memory.values()), color="#d55e00")
    axes.set(xlabel="thousand rows labelled", ylabel="resident memory, MiB", title="fintune predict on a long file")
    axes.set_ylim(0, 1.25 * max(memory.values()))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
