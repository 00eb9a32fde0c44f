"""Write the figures of benchmarks/results/ into docs/, and a run's output into the README.

    .venv/bin/python benchmarks/publish.py intel-xeon-2-cores [--run runs/sentiment/tiny]

The same results give the same bytes.
"""

import argparse
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not the root, whose evaluate.py hides a package
import measure

from fintune.files import replace_block
from fintune.results.summary import print_result
from fintune.results.tables import commit_of, markdown_table
from fintune.results.verify import read_result

DOCS = measure.ROOT / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the results: NAME.json of cpu.py or gpu.py, NAME-layers.json, -file, -serve")
    parser.add_argument("--run", type=Path, help="a run whose closing table goes into the README")
    args = parser.parse_args()
    name = args.name
    if args.run:
        with redirect_stdout(io.StringIO()) as said:
            print_result(read_result(args.run), args.run)
        lines = [line.rstrip() for line in said.getvalue().strip().splitlines()]
        replace_block(measure.ROOT / "README.md", "run", "\n".join(["```", *lines, "```"]))
    for mark, page, ending, table in (
        ("stock", "speed.md", "", stock),
        ("growth", "speed.md", "", growth),
        ("gpu", "speed.md", "", gpu),
        ("layers", "speed.md", "-layers", layers),
        ("file", "deployment.md", "-file", file),
        ("serve", "deployment.md", "-serve", serve),
    ):
        path = measure.RESULTS / f"{name}{ending}.json"
        if not path.is_file():
            print(f"left as it is: docs/{page}, {mark}: no {path.name}")
            continue
        report = json.loads(path.read_text(encoding="utf-8"))
        if (mark in ("stock", "growth")) == ("updates" in report) and not ending:
            continue  # gpu.py and cpu.py have tables of their own
        lines = [f"{measured_on(report['machine'])} ([JSON](../benchmarks/results/{path.name})):", "", *table(report)]
        replace_block(DOCS / page, mark, "\n".join(lines))
        print(f"written: docs/{page}, {mark}")


def measured_on(machine: dict) -> str:
    where = machine["gpu"] or f"{machine['cores']} cores of {machine['processor']}"
    return f"{where}, commit {commit_of(machine)}"


def stock(report: dict) -> list[str]:
    rows = [
        [
            row["what"],
            row["way"],
            row["against"],
            f"{row['ours']:.1f}",
            f"{row['stock']:.2f}",
            f"{row['ratio']:.1f} x",
            f"{row['peak_mib']:.0f}",
            f"{row['peak_mib_stock']:.0f}",
        ]
        for row in report["ratios"]
    ]
    headers = ["what", "here", "against", "rows/s here", "rows/s there", "ratio", "peak MiB here", "peak MiB there"]
    return markdown_table(headers, rows)


def growth(report: dict) -> list[str]:
    rows = [
        [f"{row['rows']:,}", f"{row['rows_per_second']:,.0f}", f"{row['peak_mib']:.0f}"] for row in report["growth"]
    ]
    return markdown_table(["rows in one call", "rows/s", "peak MiB"], rows)


def gpu(report: dict) -> list[str]:
    """The stock table, updates of several sizes, and what a profiler saw of one."""
    lines = [*stock(report), ""]
    headers = ["update", "layers", "tokens", "ms", "rows/s", "TFLOP/s", "times the card's own floor", "peak MiB"]
    rows = [
        [
            f"{one['rows']} rows",
            one["layers"],
            f"{one['tokens']:,}",
            f"{one['ms']:.0f}",
            f"{one['rows_per_second']:.0f}",
            f"{one['tflops']:.0f}",
            f"{one['times_the_floor']:.1f}",
            f"{one['peak_mib']:,.0f}",
        ]
        for one in [*report["updates"], *report.get("compiled", {}).get("updates", [])]
    ]
    lines += [*markdown_table(headers, rows), ""]
    seen = [
        [one["layers"], f"{one['launches']:,}", f"{one['card_ms']:.0f}", f"{one['ms']:.0f}", f"{one['busy']:.0%}"]
        for one in [*report["profile"], *([report["compiled"]["profile"]] if "compiled" in report else [])]
    ]
    lines += markdown_table(["12 rows, profiled", "launches", "the card works, ms", "update, ms", "busy"], seen)
    if "compiled" in report:
        seconds = report["compiled"]["first_updates_seconds"]
        lines += [
            "",
            f"The first three updates with compiled layers, which compile them, took {seconds:.0f} s.",
        ]
    base = report.get("qlora")
    if base:
        memory, speed = f"{base['peak_mib']:,.0f} MiB", f"{base['rows_per_second']:.0f} rows/s"
        said = (
            f"With the base in 4 bits its layers take {base['layers_mib']:,.0f} MiB; training in updates of 12 rows "
        )
        lines += ["", f"{said}peaks at {memory} beyond the model, at {speed}."]
    return lines


def layers(report: dict) -> list[str]:
    """Rows per second with each kind of layers, and how many times those of PEFT and transformers that is."""
    rows = []
    for name, found in report["layers"].items():
        speeds = {kind: way["median"] for kind, way in found["rows_per_second"].items()}
        ratios = [f"{speed:.2f} ({speed / speeds['stock']:.2f} x)" for speed in speeds.values()]
        rows.append([name, *ratios, f"{found['first_updates_seconds']:.0f}"])
    headers = ["shape of", "stock, rows/s", "fused, rows/s", "compiled, rows/s", "the first three compiled updates, s"]
    return markdown_table(headers, rows)


def file(report: dict) -> list[str]:
    counts, kills = report["counted"], len(report["killed_after_rows"])
    same = len(set(report["sha256"])) == len(set(report["sha256_rejected"])) == 1
    rows = [
        ["rows", f"{report['rows']:,}"],
        ["labelled", f"{counts['labelled']:,}"],
        ["rejected, as generated", f"{counts['rejected']:,}"],
        ["rows per second", f"{report['rows_per_second']:,.0f}"],
        ["hours for a million rows", f"{1e6 / report['rows_per_second'] / 3600:.2f}"],
        ["killed with SIGKILL", f"{kills} times"],
        ["output after the kills", "the same bytes" if same else "other bytes"],
        ["growth of resident memory from row 100,000 on", f"{report['growth']:+.1%}"],
    ]
    return markdown_table(["", "measured"], rows)


def serve(report: dict) -> list[str]:
    rows = [
        [
            str(row["clients"]),
            f"{row['p50']:.1f}",
            f"{row['p95']:.1f}",
            f"{row['p99']:.1f}",
            f"{row['per_second']:,.0f}",
        ]
        for row in report["loads"]
    ]
    return markdown_table(["clients", "median, ms", "95 %, ms", "99 %, ms", "headlines/s"], rows)


if __name__ == "__main__":
    main()
