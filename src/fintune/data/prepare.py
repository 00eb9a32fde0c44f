"""Make a task of a file of yours: look at its rows, say what is wrong with them, write what `make train-<task>` needs.

    python data/prepare.py news.csv --text title --label tone --task mine

Reads CSV, JSONL (both gzip'd too) and Parquet. Writes data/mine.csv, the rows that can be trained on, and
data/mine.yaml and templates/mine.jinja, for you to edit. Rows are left out only for reasons it prints, and counted.
"""

import argparse
import io
from collections import Counter, defaultdict
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from fintune.data import audit
from fintune.data.load import load_data
from fintune.data.rows import fault_of, kind_of, write_csv
from fintune.errors import UserError, run
from fintune.files import write_text
from fintune.recipe.layers import read_task

MOST_LABELS = 100  # more different values are hardly classes
FEWEST_ROWS = 10  # of a class: fewer cannot stand in training, validation and test
IMBALANCE = 3  # rows of the commonest class for each of the rarest, from which on weights are offered
TEMPLATE = """\
{{#- Made by data/prepare.py for {task}: say here what the labels mean; `text` is a row's text. -#}}
Classify this text. Answer with one of: {{{{ labels | join("; ") }}}}.

{{{{ text }}}} /no_think
"""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--text", required=True, help="column of the texts")
    parser.add_argument("--label", required=True, help="column of the labels")
    parser.add_argument("--task", required=True, help="name of the task, of its files and of `make train-<task>`")
    parser.add_argument("--force", action="store_true", help="write over the task's files")
    args = parser.parse_args(argv)
    root = Path(__file__).resolve().parents[1]
    paths = [root / "data" / f"{args.task}{end}" for end in (".csv", ".yaml")]
    template = root / "templates" / f"{args.task}.jinja"
    if not args.task.isidentifier():
        raise UserError(f"--task {args.task!r}: letters, digits and _ alone, as in my_news")
    if there := [path for path in (*paths, template) if path.exists() and not args.force]:
        raise UserError(f"{there[0]}: is there already; take another --task, or --force to write over it")
    if not args.file.is_file():
        raise UserError(f"{args.file}: no such file")

    rows, left_out = read(args.file, args.text, args.label)
    counts = Counter(label for _, label in rows)
    if len(counts) < 2 or len(counts) > MOST_LABELS:
        raise UserError(
            f"{args.file}: column {args.label!r} holds {len(counts)} different labels among {len(rows)} usable rows, "
            f"such as {sorted(counts)[:3]}; 2 to {MOST_LABELS} with {FEWEST_ROWS} rows each make a task"
        )
    content = io.StringIO()
    write_csv(content, [("text", "label"), *rows])
    write_text(paths[0], content.getvalue())
    write_text(template, TEMPLATE.format(task=args.task))
    write_text(paths[1], task_text(args, counts, left_out))
    show(args.task, rows, counts, left_out)

    task = read_task(paths[1])
    data = load_data(task)  # as training reads it: now rather than later
    print(*audit.lines(audit.audit(task, data)), sep="\n")
    print("repeats are kept, each cluster of them in one split")
    print(f"splits: {data.summary()['rows']}; {data.clean.count(False)} test rows stand in training too")
    written = ", ".join(str(path.relative_to(root)) for path in (*paths, template))
    print(f"written: {written}; edit the template, then `make train-{args.task}`")


def read(path: Path, text: str, label: str) -> tuple[list[tuple[str, str]], dict[str, list[int]]]:
    """(text, label) of each row that can be trained on, and the lines of the others by reason."""
    table = kind_of(path)(path, text)
    if label not in table.columns:
        raise UserError(
            f"{path}: no column {label!r} for the labels among {list(table.columns)[:20]}; name it with --label"
        )
    rows, left_out = [], defaultdict(list)
    for row in table.rows():
        fault = row.fault or fault_of(row.text)
        value = None if fault else table.value(row, label)
        fault = fault or (None if value is not None and str(value).strip() else "no label")
        fault = fault or fault_of(str(value))
        if fault:
            left_out[fault].append(row.line)
        else:
            rows.append((row.text, str(value).strip(), row.line))
    counts = Counter(value for _, value, _ in rows)
    for _, value, line in rows:
        if counts[value] < FEWEST_ROWS:
            left_out[f"label {value!r} has {counts[value]} rows, {FEWEST_ROWS} are needed"].append(line)
    return [(words, value) for words, value, _ in rows if counts[value] >= FEWEST_ROWS], left_out


def task_text(args: argparse.Namespace, counts: Counter, left_out: dict[str, list[int]]) -> str:
    """The task's YAML, what was found as comments."""
    lines = [f"# Made of {args.file.name} (text: {args.text}, label: {args.label}) by data/prepare.py."]
    lines += [f"# Left out: {len(found):,} rows, {reason}" for reason, found in left_out.items()]
    lines += [
        f"task: {args.task}",
        "",
        "labels: # value in the file: what the model answers; the order is the label id",
    ]
    scalars = {
        label: yaml.safe_dump(label, allow_unicode=True, width=10**9).removesuffix("...\n").strip() for label in counts
    }
    lines += [f"  {scalars[label]}: {scalars[label]} # {counts[label]:,} rows" for label in sorted(counts)]
    lines += ["", "files:", f"  all: {{path: {args.task}.csv, rows: {counts.total()}}}"]
    lines += ["", "split: {seed: 42, validation: 0.1, test: 0.1} # near-duplicates stay on one side"]
    if imbalance(counts) >= IMBALANCE:
        why = f"the commonest class has {imbalance(counts):.1f} times the rows of the rarest"
        lines += ["", f"# class_weights: balanced # {why}"]
    lines += ["", "log_texts: false # true sends texts of rows to Weights & Biases"]
    return "\n".join(lines) + "\n"


def imbalance(counts: Counter) -> float:
    return max(counts.values()) / min(counts.values())


def show(name: str, rows: list[tuple[str, str]], counts: Counter, left_out: dict[str, list[int]]) -> None:
    table = Table(title=f"{name}: {len(rows):,} rows")
    for column in ("label", "rows", "share"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label, count in counts.most_common():
        table.add_row(label, f"{count:,}", f"{count / len(rows):.1%}")
    Console().print(table)
    offer = f"; `class_weights: balanced` in data/{name}.yaml weighs each class the same"
    print(
        f"imbalance: the commonest class has {imbalance(counts):.1f} times the rows of the rarest"
        + offer * (imbalance(counts) >= IMBALANCE)
    )
    print(f"left out: {sum(map(len, left_out.values())):,} rows")
    for reason, lines in left_out.items():
        print(f"  {len(lines):,}: {reason} (line {', '.join(map(str, lines[:5]))}{', ...' * (len(lines) > 5)})")


if __name__ == "__main__":
    run(main)
