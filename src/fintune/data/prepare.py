"""Make a task from a file of labelled texts: report what is wrong with its rows, and write what training needs."""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from fintune.data import audit
from fintune.data.inputs import check_columns, columns_of, input_fault, named_columns, read_inputs, text_of
from fintune.data.load import load_data
from fintune.data.rows import fault_of, kind_of, write_csv
from fintune.errors import UserError
from fintune.files import write_text
from fintune.recipe.layers import read_task
from fintune.recipe.task import check_column_names

MOST_LABELS = 100  # more different values are hardly classes
FEWEST_ROWS = 10  # of a class: fewer do not reach training, validation and test
IMBALANCE = 3  # rows of the commonest class for each of the rarest, from which on weights are offered
TEMPLATE = """\
{{#- Made by `fintune prepare` for {task}: say here what the labels mean; `text` is a row's text. -#}}
Classify this text. Answer with one of: {{{{ labels | join("; ") }}}}.

{columns}{{{{ text }}}} /no_think
"""


def prepare(
    file: Path, text: str, label: str, task: str, force: bool, root: Path = Path(), columns: Iterable[str] = ()
) -> None:
    """Write data/<task>.csv, data/<task>.yaml and templates/<task>.jinja, and print what was found in the rows.

    Args:
        file: CSV, JSONL (both gzip'd too) or Parquet.
        text: column of the texts.
        label: column of the labels.
        task: name of the task; letters, digits and _ alone.
        force: write over the task's files.
        root: folder that holds data/ and templates/.
        columns: further columns that the model reads; `ticker=Symbol` where the file has another name for one.

    Raises:
        UserError: the task's files exist, `file` cannot be read, or its rows make no task.
    """
    table, description = root / f"data/{task}.csv", root / f"data/{task}.yaml"
    template = root / f"templates/{task}.jinja"
    written = (table, description, template)
    if not task.isidentifier():
        raise UserError(f"--task {task!r}: letters, digits and _ alone, as in my_news")
    if existing := [path for path in written if path.exists() and not force]:
        raise UserError(f"{existing[0]}: already exists; choose another --task, or --force to write over it")
    if not file.is_file():
        raise UserError(f"{file}: no such file")

    columns = named_columns(columns)
    check_column_names(list(columns), "--columns")
    rows, left_out = read(file, text, label, columns)
    counts = Counter(value for _, value, *_ in rows)
    if not 2 <= len(counts) <= MOST_LABELS:
        raise UserError(
            f"{file}: column {label!r} holds {len(counts)} different labels among {len(rows)} usable rows, "
            f"such as {sorted(counts)[:3]}; a task needs 2 to {MOST_LABELS} labels with {FEWEST_ROWS} rows each"
        )
    content = io.StringIO()
    write_csv(content, [("text", "label", *columns), *rows])
    write_text(table, content.getvalue())
    shown = "".join(f"{name}: {{{{ {name} }}}}\n" for name in columns)
    write_text(template, TEMPLATE.format(task=task, columns=shown))
    sources = {"text": text, "label": label, **columns}
    origin = f"{file.name} ({', '.join(f'{name}: {column}' for name, column in sources.items())})"
    write_text(description, task_text(task, origin, counts, left_out, list(columns)))
    show(task, rows, counts, left_out)

    made = read_task(description)
    data = load_data(made)  # as training reads it: now rather than later
    print(*audit.lines(audit.audit(made, data)), sep="\n")
    print("repeats are kept, each cluster of them in one split")
    print(f"splits: {data.summary()['rows']}; {data.clean.count(False)} test rows are also in training")
    names = ", ".join(str(path.relative_to(root)) for path in written)
    print(f"written: {names}; edit the template, then `make train-{task}`")


def read(
    path: Path, text: str, label: str, columns: dict[str, str]
) -> tuple[list[tuple[str, ...]], dict[str, list[int]]]:
    """(text, label, value of each column) of each row that can be trained on, and the lines of the others by reason.

    Args:
        columns: column of the task -> column of the file.
    """
    table = kind_of(path)(path, text)
    if label not in table.columns:
        raise UserError(
            f"{path}: no column {label!r} for the labels among {list(table.columns)[:20]}; name it with --label"
        )
    check_columns(table, columns, "--columns")
    if label in columns.values():
        raise UserError(f"--columns {label}: is the column of the labels, which a model must not read; leave it out")
    rows, left_out = [], defaultdict(list)
    for row in read_inputs(table, columns):
        fault = row.fault or input_fault(row.text, list(columns))
        value = None if fault else table.value(row, label)
        fault = fault or (None if value is not None and str(value).strip() else "no label")
        fault = fault or fault_of(str(value))
        if fault:
            left_out[fault].append(row.line)
        else:
            rows.append((text_of(row.text), str(value).strip(), *columns_of(row.text).values(), row.line))
    counts = Counter(value for _, value, *_ in rows)
    for _, value, *_, line in rows:
        if counts[value] < FEWEST_ROWS:
            left_out[f"label {value!r} has {counts[value]} rows, {FEWEST_ROWS} are needed"].append(line)
    return [row[:-1] for row in rows if counts[row[1]] >= FEWEST_ROWS], left_out


def task_text(task: str, origin: str, counts: Counter, left_out: dict[str, list[int]], columns: list[str]) -> str:
    """The task's YAML, with what was found as comments."""
    lines = [f"# Made from {origin} by `fintune prepare`."]
    lines += [f"# Left out: {len(found):,} rows, {reason}" for reason, found in left_out.items()]
    lines += [
        f"task: {task}",
        "",
        "labels: # value in the file: what the model answers; the order is the label id",
    ]
    scalars = {
        label: yaml.safe_dump(label, allow_unicode=True, width=10**9).removesuffix("...\n").strip() for label in counts
    }
    lines += [f"  {scalars[label]}: {scalars[label]} # {counts[label]:,} rows" for label in sorted(counts)]
    lines += ["", "files:", f"  all: {{path: {task}.csv, rows: {counts.total()}}}"]
    if columns:
        lines += ["", f"columns: [{', '.join(columns)}] # read beside the text; the template uses each of them"]
    lines += ["", "split: {seed: 42, validation: 0.1, test: 0.1} # near-duplicates stay on one side"]
    if imbalance(counts) >= IMBALANCE:
        why = f"the commonest class has {imbalance(counts):.1f} times the rows of the rarest"
        lines += ["", f"# class_weights: balanced # {why}"]
    lines += ["", "log_texts: false # true sends texts of rows to Weights & Biases"]
    return "\n".join(lines) + "\n"


def imbalance(counts: Counter) -> float:
    return max(counts.values()) / min(counts.values())


def show(name: str, rows: list[tuple[str, ...]], counts: Counter, left_out: dict[str, list[int]]) -> None:
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
