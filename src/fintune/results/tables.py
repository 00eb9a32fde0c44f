"""A comparison as tables: in the terminal, in Markdown, and in the README's block."""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from fintune.errors import UserError
from fintune.files import replace_block, write_text
from fintune.machine import console
from fintune.recipe.layers import TINY
from fintune.results.cells import Cell, Group
from fintune.results.runs import LeftOut, machine_of, number_at

MARK = "compare"  # of the block in the README
QWEN = "qwen3-8b"  # the paper's model
RULE = (
    "A difference is called real when both tests say so at 5 %: exact McNemar, corrected by Holm over the table's "
    "pairs, and a bootstrap interval over rows (and seeds) that excludes zero. Everything else is inside noise."
)


def heading(group: Group) -> str:
    """What the figures of a group were measured on: task, rows, source and hash of the data, machines."""
    sources = "invented sample rows" if group.sources == ["sample"] else f"{' and '.join(group.sources)} data"
    machines = group.machines
    named = machines[0] if len(machines) == 1 else "; ".join(f"machine {i}: {m}" for i, m in enumerate(machines, 1))
    sha256 = group.first.result["data"]["sha256"][:12]
    study = f"{group.first.study}: " * bool(group.first.study)
    return f"{study}{group.split} split, {group.rows:,} rows, {sources} (sha256 {sha256}); scored on {named}"


def table(group: Group) -> tuple[list[str], list[list[tuple[str, str, float | None]]]]:
    """Headers, and for each cell (text, note, number to sort by) in every column."""
    headers = ["run", "model", "parameters", "trained", "epochs", "accuracy (95 % interval)", "clean", "macro F1"]
    headers += ["ECE", "rows/s", "training, s", "peak, GiB", "paper", "difference, points"]
    machines = group.machines
    rows = []
    for cell in group.cells:
        parameters, trained = (cell.mean("model", key) for key in ("parameters", "trained_parameters"))
        seconds, epochs = cell.mean("training", "train_runtime"), cell.mean("training", "epoch")
        memory, kind = _peak_memory(cell)
        accuracy = cell.metric("accuracy")
        low, high = cell.interval
        interval = f"{low:.4f} to {high:.4f}"
        if cell.deviation is not None:
            interval += f"; {len(cell.runs)} seeds, sd {cell.deviation:.4f}"
        row = [
            (cell.label, "", None),
            (*base_name(cell.runs[0].result), None),
            (short(parameters), "", parameters),
            (short(trained), "", trained),
            (as_text(epochs, ".3g"), "", epochs),
            (f"{accuracy:.4f}", interval, accuracy),
            *(
                (as_text(cell.metric(key), ".4f"), "", cell.metric(key))
                for key in ("accuracy_clean", "macro_f1", "ece")
            ),
            (_speed(cell.metric("rows_per_second")), "", cell.metric("rows_per_second")),
            (as_text(seconds, ",.0f" if seconds is not None and seconds >= 10 else ".2g"), "", seconds),
            (f"{memory:.1f} {kind}" if memory is not None else "–", "", memory),
            (as_text(cell.paper, ".4f"), "", cell.paper),
            ("–", "", None) if cell.paper is None else (*_paper_difference(cell), accuracy - cell.paper),
        ]
        if len(machines) > 1:
            used = sorted({machines.index(machine_of(run.result)) + 1 for run in cell.runs})
            row.append((" and ".join(map(str, used)), "", float(used[0])))
        rows.append(row)
    headers += ["machine"] if len(machines) > 1 else []
    said = [i for i in range(len(headers)) if any(row[i][0] != "–" for row in rows)]  # no column of dashes
    return [headers[i] for i in said], [[row[i] for i in said] for row in rows]


def base_name(result: dict) -> tuple[str, str]:
    """The base model's name, and where its weights come from if not from the Hub.

    Of a local path only the last part is given, since the rest may be private.
    """
    model = result.get("model") or {}
    base, weights = model.get("base"), model.get("weights")
    if not isinstance(base, str):
        return "–", ""
    name = Path(base).name if base.startswith(("/", "~", ".")) else base
    return name, f"weights of {weights}" if weights else ""


def _paper_difference(cell: Cell) -> tuple[str, str]:
    low, high = cell.interval
    inside = low <= cell.paper <= high
    return points(cell.metric("accuracy") - cell.paper), "inside noise" if inside else "outside our interval"


def flat(rows: list[list[tuple[str, str, float | None]]]) -> list[list[str]]:
    """The rows of `table` as plain texts, each note in brackets after its figure."""
    return [[f"{text} ({note})" if note else text for text, note, _ in row] for row in rows]


def _peak_memory(cell: Cell) -> tuple[float | None, str]:
    """(GiB, `GPU` or `RAM`), the largest of the seeds; that of the GPU where one was used."""
    for key in ("gpu", "ram"):
        found = [number_at(run.result, "peak_memory_gib", key) for run in cell.runs]
        if None not in found:
            return max(found), key.upper()
    return None, ""


def short(number: float | None) -> str:
    """8,190,735,360 as 8.19 B."""
    if number is None:
        return "–"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _speed(number: float | None) -> str:
    return as_text(number, ",.0f" if number is not None and number >= 100 else ".1f")


def as_text(number: float | None, form: str) -> str:
    """A number in a format, a dash for None."""
    return "–" if number is None else format(number, form)


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+z.1f}".replace("-", "−")


def p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


SHOWN = ("run", "accuracy (95 % interval)", "clean", "macro F1", "ECE", "rows/s", "paper")  # in the terminal
PAIRS_SHOWN = ("pair", "difference, points", "95 % interval", "Holm p", "verdict")
PAIR_HEADERS = ["pair", "difference, points", "95 % interval", "right alone", "McNemar p", "Holm p", "verdict"]


def pair_rows(group: Group) -> list[list[str]]:
    """Each pair as text, the largest difference first."""
    return [
        [
            f"{group.cells[pair.first].label} − {group.cells[pair.second].label}",
            points(pair.difference),
            f"{points(pair.interval[0])} to {points(pair.interval[1])}",
            f"{pair.only_first} against {pair.only_second}",
            p_text(pair.p),
            p_text(pair.p_holm),
            pair.verdict,
        ]
        for pair in sorted(group.pairs, key=lambda pair: -abs(pair.difference))
    ]


def print_comparison(groups: list[Group], left_out: list[LeftOut]) -> None:
    """The tables in the terminal, with the columns that fit into its width; report.md has all of them."""
    terminal = console()
    for group in groups:
        headers, rows = table(group)
        cells = [["\n".join([text, *filter(None, note.split("; "))]) for text, note, _ in row] for row in rows]
        terminal.print(_rich(f"{group.task}: {heading(group)}", headers, cells, SHOWN))
        if group.pairs:
            terminal.print(_rich(None, PAIR_HEADERS, pair_rows(group), PAIRS_SHOWN))
    if any(group.pairs for group in groups):
        print(RULE)
    for left in left_out:
        print(left)


def _rich(title: str | None, headers: list[str], rows: list[list[str]], columns: tuple[str, ...]) -> Table:
    shown = Table(title=Text(title) if title else None, title_justify="left")
    places = [headers.index(column) for column in columns if column in headers]
    for place in places:
        name = headers[place] in ("run", "pair")
        left = name or headers[place] == "verdict"
        shown.add_column(headers[place], justify="left" if left else "right", no_wrap=not name, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(row[place]) for place in places))  # Text: a name such as [bold] is not markup
    return shown


def markdown(groups: list[Group], left_out: list[LeftOut], pairs: bool = True) -> str:
    """The tables in Markdown, one section per group.

    Args:
        pairs: also list every pair with its interval and p, and what was left out.
    """
    parts = []
    for group in groups:
        headers, rows = table(group)
        parts += [f"**{_escape(group.task)}**: {_escape(heading(group))}.", ""]
        if group.sources == ["sample"]:
            parts += ["These rows are invented: they show that the method runs, not how well it labels finance.", ""]
        parts += [*markdown_table(headers, flat(rows)), ""]
        if group.pairs:
            parts += ["Accuracy of the row's run minus the column's, in points:", "", *_matrix(group), ""]
        if group.pairs and pairs:
            parts += [*markdown_table(PAIR_HEADERS, pair_rows(group)), ""]
    if any(group.pairs for group in groups):
        parts += [RULE, ""]
    if pairs:
        parts += [f"- {_escape(str(left))}" for left in left_out]
    return "\n".join(parts).rstrip() + "\n"


def _matrix(group: Group) -> list[str]:
    cells = group.cells
    rows = []
    for first in range(len(cells) - 1):
        found = {pair.second: pair for pair in group.pairs if pair.first == first}
        texts = [
            f"{points(found[second].difference)}, {found[second].verdict}" if second in found else ""
            for second in range(1, len(cells))
        ]
        rows.append([cells[first].label, *texts])
    return markdown_table(["", *(cell.label for cell in cells[1:])], rows)


def markdown_table(headers: list[str], rows: list[list[str]]) -> list[str]:
    words = ("run", "model", "pair", "verdict", "variant", "fault", "must hold", "lost", "measured", "")
    marks = ["---" if header in words or header.endswith("test rows") else "---:" for header in headers]
    lines = ["| " + " | ".join(map(_escape, line)) + " |" for line in (headers, *rows)]
    return [lines[0], f"|{'|'.join(marks)}|", *lines[1:]]


def _escape(text: str) -> str:
    """Names come from files: none may end a table cell, begin HTML or close the README's block."""
    for char in "\\`*_|[]":
        text = text.replace(char, "\\" + char)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def update_readme(path: Path, groups: list[Group]) -> None:
    """Write a short table of the models' runs between a file's marks: the same runs give the same bytes.

    Raises:
        UserError: the file is missing or lacks the marks; see `check_block`.
    """
    parts = ["<!-- written by `fintune compare --readme`; edits here are overwritten -->", ""]
    for group in models(groups):
        headers, rows = short_table(group)
        parts += [*markdown_table(headers, rows), "", f"*{_escape(heading(group))}, commit {commits(group)}.*", ""]
    replace_block(path, MARK, "\n".join(parts))


def write_results(path: Path, groups: list[Group]) -> None:
    """Write the models' tables with every pair as a page: the same runs give the same bytes.

    Raises:
        UserError: there are only ablations.
    """
    if not models(groups):
        raise UserError(f"{path}: no finished run of a model, only ablations; `make baselines` makes some")
    note = "<!-- written by `fintune compare --results`; edits here are overwritten -->"
    found = ", ".join(sorted({commits(group) for group in models(groups)}))
    head = f"# Results\n\n{note}\n\nAll runs are of commit {found}. [How to read them](method.md#comparison)."
    write_text(path, f"{head}\n\n{markdown(models(groups), [])}")


def models(groups: list[Group]) -> list[Group]:
    """The groups without ablations."""
    return [group for group in groups if not group.first.study]


def commits(group: Group) -> str:
    """The commits that the runs of a group were trained at."""
    return " and ".join(sorted({commit_of(run.result.get("machine") or {}) for run in group.runs}))


def commit_of(machine: dict) -> str:
    """The commit of a result's `machine`, shortened; with `-dirty` where the working tree had changes."""
    commit = machine.get("git") or "unknown"
    return commit[:12] + "-dirty" * commit.endswith("-dirty")


def short_table(group: Group) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the README: each model beside the next best, with the verdict of their paired test.

    `tiny`, the smoke test, is left out. Qwen3-8B is always there, for the paper's figure.
    """
    headers = [f"{group.task}, {group.rows:,} test rows", "accuracy (95 % interval)", "over the next, points"]
    headers += ["clean", "macro F1", "ECE", "rows/s", "training", "the paper's"]
    shown = [i for i, cell in enumerate(group.cells) if cell.runs[0].result["model"]["base"] != TINY]
    rows = []
    for place, i in enumerate(shown):
        cell, (low, high) = group.cells[i], group.cells[i].interval
        seeds = f"; {len(cell.runs)} seeds" if len(cell.runs) > 1 else ""
        row = [cell.label, f"{cell.metric('accuracy'):.4f} ({low:.4f} to {high:.4f}{seeds})", "–"]
        if place + 1 < len(shown):
            pair = group.pair(i, shown[place + 1])
            row[-1] = f"{points(pair.difference)}, {'real' if pair.real else 'inside noise'}"
        row += [as_text(cell.metric(key), ".4f") for key in ("accuracy_clean", "macro_f1", "ece")]
        row += [_speed(cell.metric("rows_per_second")), _duration(cell.mean("training", "train_runtime"))]
        rows.append([*row, as_text(cell.paper, ".4f")])
    papers = (group.first.result["paper"] or {}).get("table") or {}
    if QWEN in papers and not any(cell.label == QWEN for cell in group.cells):
        rows.append([QWEN, "not run", *["–"] * (len(headers) - 3), f"{papers[QWEN]:.4f}"])
    return headers, rows


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
