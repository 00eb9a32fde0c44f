"""Make a task from a file of labelled texts: report what is wrong with its rows, and write what training needs."""

import io
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from math import isfinite
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from fintune.data import audit
from fintune.data.csv_file import write_csv
from fintune.data.excel_file import ERRORS
from fintune.data.inputs import columns_of, input_fault, named_columns, text_of
from fintune.data.load import load_data
from fintune.data.rows import fault_of
from fintune.data.same_text import name_key, trimmed
from fintune.data.tables import check_column, check_columns, read_inputs, read_table
from fintune.errors import UserError
from fintune.files import write_text
from fintune.recipe.layers import read_task
from fintune.recipe.task import check_column_names

MOST_LABELS = 100  # more different values are hardly classes
FEWEST_ROWS = 10  # of a class: fewer do not reach training, validation and test
# Tokens, as `tokens` estimates them: with 45 of the other words some 100 of max_length 360 are left for the text
LONGEST_LABEL = 60  # more is hardly a class
MOST_LISTED = 210  # of all labels in the instruction and the longest as the answer
IMBALANCE = 3  # rows of the commonest class for each of the rarest, from which on weights are offered
# what pandas reads as missing, and writes for it
NO_LABELS = {"-1.#IND", "1.#QNAN", "1.#IND", "-1.#QNAN", "#N/A N/A", "#N/A", "N/A", "n/a", "NA", "<NA>", "#NA"}
NO_LABELS |= {"NULL", "null", "None", "NaT", *ERRORS}
TEMPLATE = """\
{{#- Made by `fintune prepare` for {task}: say here what the labels mean; `text` is a row's text. -#}}
Classify this text. Answer with {answers}.

{columns}{{{{ text }}}} /no_think
"""


def prepare(
    file: Path,
    text: str,
    label: str,
    task: str,
    force: bool,
    root: Path = Path(),
    delimiter: str | None = None,
    encoding: str | None = None,
    columns: Iterable[str] = (),
) -> None:
    """Write data/<task>.csv, data/<task>.yaml and templates/<task>.jinja, and print what was found in the rows.

    Args:
        file: CSV, TSV or JSONL (compressed too), Parquet or Excel.
        text: column of the texts.
        label: column of the labels.
        task: name of the task; letters, digits and _ alone.
        force: write over the task's files.
        root: folder that holds data/ and templates/.
        delimiter, encoding: of `file`, where they are not to be found out; see `read_table`.
        columns: further columns that the model reads; `ticker=Symbol` where the file has another name for one.

    Raises:
        UserError: the task's files exist, `file` cannot be read, or its rows make no task; then nothing is written.
    """
    names = f"data/{task}.csv", f"templates/{task}.jinja", f"data/{task}.yaml"
    if not task.isidentifier():
        raise UserError(f"--task {task!r}: letters, digits and _ alone, as in my_news")
    if existing := [root / name for name in names if (root / name).exists() and not force]:
        raise UserError(f"{existing[0]}: already exists; choose another --task, or --force to write over it")

    columns = named_columns(columns)
    check_column_names(list(columns), "--columns")
    rows, left_out, spellings = read(file, text, label, columns, delimiter, encoding)
    counts = Counter(value for _, value, *_ in rows)
    if not 2 <= len(counts) <= MOST_LABELS:
        raise UserError(
            f"{file}: column {label!r} holds {len(counts)} different labels among {len(rows)} usable rows, "
            f"such as {sorted(counts)[:3]}; a task needs 2 to {MOST_LABELS} labels with {FEWEST_ROWS} rows each"
            + "".join(f"; left out: {why}" for why in reasons(left_out)[:3])
        )
    table = io.StringIO()
    write_csv(table, [("text", "label", *columns), *rows])
    sources = {"text": text, "label": label, **columns}
    origin = f"{file.name!r} ({', '.join(f'{name}: {column!r}' for name, column in sources.items())})"
    listed = sum(map(tokens, counts)) + len(counts) + max(map(tokens, counts)) <= MOST_LISTED
    answers = 'one of: {{ labels | join("; ") }}' if listed else "its label alone"
    template = TEMPLATE.format(
        task=task, answers=answers, columns="".join(f"{name}: {{{{ {name} }}}}\n" for name in columns)
    )
    written = table.getvalue(), template, task_text(task, origin, counts, left_out, spellings, list(columns))
    contents = dict(zip(names, written, strict=True))
    show(task, rows, counts, left_out, spellings)

    with tempfile.TemporaryDirectory() as trial:  # read as training does, before anything is written
        for name, content in contents.items():
            write_text(Path(trial, name), content)
        made = read_task(Path(trial, f"data/{task}.yaml"))
        data = load_data(made)
        found = audit.audit(made, data)
        print(*audit.lines(found), sep="\n")
    if not listed:
        print(f"instruction: {len(counts)} labels are too long a list for it; a model learns them from the rows")
    print("repeats are kept, each cluster of them in one split" + ", cut ones aside" * bool(found["cut"]["clusters"]))
    print(f"splits: {data.summary()['rows']}; {data.clean.count(False)} test rows are also in training")
    write_all(root, contents)
    print(f"written: {', '.join(sorted(names))}; edit the template, then `make train-{task}`")


def write_all(root: Path, contents: dict[str, str]) -> None:
    """Write files by their names below `root`, or leave them all as they were."""
    before = {name: (root / name).read_bytes() if (root / name).exists() else None for name in contents}
    try:
        for name, content in contents.items():
            write_text(root / name, content)
    except BaseException as error:
        for name, content in before.items():
            if content is None:
                (root / name).unlink(missing_ok=True)
            else:
                (root / name).write_bytes(content)
        if isinstance(error, OSError):
            raise UserError(f"{error.filename or root}: cannot be written ({error.strerror}); nothing was") from error
        raise


def read(
    path: Path,
    text: str,
    label: str,
    columns: dict[str, str],
    delimiter: str | None = None,
    encoding: str | None = None,
) -> tuple[list[tuple[str, ...]], dict[str, list[int]], list[Counter]]:
    """What of a file can be trained on.

    Args:
        columns: column of the task -> column of the file.

    Returns:
        (text, label, value of each column) of each such row; the lines of the others by reason; for each label with
        several spellings, how often each occurs: the commonest is taken for all.
    """
    table = read_table(path, text, delimiter=delimiter, encoding=encoding)
    if table.about:
        print(f"{path}: {table.about}")
    check_column(table, path, text, "--text {}")
    check_column(table, path, label, "--label {}", texts=False)
    check_columns(table, path, columns, "--columns")
    if label in columns.values():
        raise UserError(f"--columns {label}: is the column of the labels, which a model must not read; leave it out")
    rows, left_out = [], defaultdict(list)
    for row in read_inputs(table, columns):
        fault = row.fault or input_fault(row.text, list(columns))
        try:
            value = None if fault else table.value(row, label)
        except UnicodeDecodeError:  # in Parquet
            fault = "label: not UTF-8"
        if fault := fault or no_label(value):
            left_out[fault.partition(" (")[0]].append(row.line)
        else:
            rows.append((text_of(row.text), str(value), *columns_of(row.text).values(), row.line))
    spellings = defaultdict(Counter)
    for _, value, *_ in rows:
        spellings[name_key(value)][value] += 1
    taken = {key: trimmed(found.most_common(1)[0][0]) for key, found in spellings.items()}
    rows = [(words, taken[name_key(value)], *others) for words, value, *others in rows]
    counts = Counter(value for _, value, *_ in rows)
    for _, value, *_, line in rows:
        if counts[value] < FEWEST_ROWS:
            left_out[f"label {value!r} has {counts[value]} rows, {FEWEST_ROWS} are needed"].append(line)
    kept = [row[:-1] for row in rows if counts[row[1]] >= FEWEST_ROWS]
    return kept, left_out, [found for found in spellings.values() if len(found) > 1]


def tokens(label: str) -> int:
    """Of a label, estimated from above: two letters of ASCII are a token, of the rest each byte."""
    letters = sum(character.isascii() and character.isalpha() for character in label)
    return (letters + 1) // 2 + len(label.encode()) - letters


def no_label(value: object) -> str | None:
    """Why a value is no label; None where it is one."""
    if isinstance(value, list | dict):
        return f"{type(value).__name__}, not one label"
    words = "" if value is None else trimmed(str(value))
    if not name_key(words):
        return "no label"
    if fault := fault_of(words):
        return f"label: {fault}"
    try:
        missing = words in NO_LABELS or not isfinite(float(words))
    except ValueError:
        missing = False
    if missing:
        return f"{words!r} stands for a missing label; rename it where it is a class"
    if tokens(words) > LONGEST_LABEL:
        return f"label {words[:40]!r}... has {len(words):,} characters; shorten it"
    return None


def task_text(
    task: str,
    origin: str,
    counts: Counter,
    left_out: dict[str, list[int]],
    spellings: list[Counter],
    columns: list[str],
) -> str:
    """The task's YAML, with what was found as comments, of one line each."""
    lines = [f"# Made from {origin} by `fintune prepare`."]
    lines += [f"# Left out: {len(found):,} rows, {reason}" for reason, found in left_out.items()]
    lines += [f"# One label: {spelt(found)}" for found in spellings]
    lines += [
        f"task: {task}",
        "",
        "labels: # value in the file: what the model answers; the order is the label id",
    ]
    lines += [f"  {scalar(label)}: {scalar(label)} # {counts[label]:,} rows" for label in sorted(counts)]
    lines += ["", "files:", f"  all: {{path: {task}.csv, rows: {counts.total()}}}"]
    if columns:
        names = ", ".join(map(scalar, columns))
        lines += ["", f"columns: [{names}] # read beside the text; the template uses each of them"]
    lines += ["", "split: {seed: 42, validation: 0.1, test: 0.1} # near-duplicates stay on one side"]
    if imbalance(counts) >= IMBALANCE:
        why = f"the commonest class has {imbalance(counts):.1f} times the rows of the rarest"
        lines += ["", f"# class_weights: balanced # {why}"]
    lines += ["", "log_texts: false # true sends texts of rows to Weights & Biases"]
    return "\n".join(lines) + "\n"


def scalar(label: str) -> str:
    """A string as YAML in one line."""
    style = None if label.isprintable() else '"'  # which escapes line breaks
    return yaml.safe_dump(label, allow_unicode=True, width=10**9, default_style=style).removesuffix("...\n").strip()


def spelt(found: Counter) -> str:
    """The spellings of a label, the one that is taken first."""
    (taken, count), *others = found.most_common()
    return f"{taken!r} ({count:,} rows), also spelt " + ", ".join(f"{name!r} ({rows:,})" for name, rows in others)


def imbalance(counts: Counter) -> float:
    return max(counts.values()) / min(counts.values())


def show(
    name: str, rows: list[tuple[str, ...]], counts: Counter, left_out: dict[str, list[int]], spellings: list[Counter]
) -> None:
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
    for found in spellings:
        print(f"one label: {spelt(found)}")
    print(f"left out: {sum(map(len, left_out.values())):,} rows")
    for why in reasons(left_out):
        print(f"  {why}")


def reasons(left_out: dict[str, list[int]]) -> list[str]:
    """How many rows were left out for each reason, and where."""
    return [
        f"{len(lines):,}: {reason} (line {', '.join(map(str, lines[:5]))}{', ...' * (len(lines) > 5)})"
        for reason, lines in left_out.items()
    ]
