"""A comparison as people read it: terminal, Markdown, the block in the README, a self-contained page, a W&B report."""

import base64
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from urllib.parse import urlparse

import jinja2
import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sklearn.metrics import confusion_matrix, f1_score

from fintune.errors import UserError
from fintune.files import write_text
from fintune.results.runs import Cell, Group, LeftOut, coverage_risk, machine_of, number_at, reliability

BEGIN, END = "<!-- compare:begin -->", "<!-- compare:end -->"
PAGE_ROWS_BYTES = 2_000_000  # of texts and answers in the page, all groups together; a phone still opens it
TEXT_CHARACTERS = 600  # of one text in the page
RULE = (
    "A difference is called real when both tests say so at 5 %: exact McNemar, corrected by Holm over the table's "
    "pairs, and a bootstrap interval over rows (and seeds) without zero. Everything else is inside noise."
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
    """Headers, and for each cell (text, note to it, the number to sort by) in every column."""
    headers = ["run", "model", "parameters", "trained", "epochs", "accuracy (95 % interval)", "clean", "macro F1"]
    headers += ["rows/s", "training, s", "peak, GiB", "paper", "difference, points"]
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
            (base_name(cell.runs[0].result), "", None),
            (short(parameters), "", parameters),
            (short(trained), "", trained),
            (_text(epochs, ".3g"), "", epochs),
            (f"{accuracy:.4f}", interval, accuracy),
            *((_text(cell.metric(key), ".4f"), "", cell.metric(key)) for key in ("accuracy_clean", "macro_f1")),
            (_speed(cell.metric("rows_per_second")), "", cell.metric("rows_per_second")),
            (_text(seconds, ",.0f" if seconds is not None and seconds >= 10 else ".2g"), "", seconds),
            (f"{memory:.1f} {kind}" if memory is not None else "–", "", memory),
            (_text(cell.paper, ".4f"), "", cell.paper),
            ("–", "", None) if cell.paper is None else (*_paper_difference(cell), accuracy - cell.paper),
        ]
        if len(machines) > 1:
            used = sorted({machines.index(machine_of(run.result)) + 1 for run in cell.runs})
            row.append((" and ".join(map(str, used)), "", float(used[0])))
        rows.append(row)
    return headers + (["machine"] if len(machines) > 1 else []), rows


def base_name(result: dict) -> str:
    """The base model's name; of a local path the last part alone, since the rest is nobody's business."""
    base = (result.get("model") or {}).get("base")
    if not isinstance(base, str):
        return "–"
    return Path(base).name if base.startswith(("/", "~", ".")) else base


def _paper_difference(cell: Cell) -> tuple[str, str]:
    low, high = cell.interval
    inside = low <= cell.paper <= high
    return points(cell.metric("accuracy") - cell.paper), "inside noise" if inside else "outside our interval"


def flat(rows: list[list[tuple[str, str, float | None]]]) -> list[list[str]]:
    """The rows of `table` as plain texts, each note behind its figure."""
    return [[f"{text} ({note})" if note else text for text, note, _ in row] for row in rows]


def _peak_memory(cell: Cell) -> tuple[float | None, str]:
    """(GiB, GPU or RAM), the largest of the seeds: of the GPU where one was used."""
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
    return _text(number, ",.0f" if number is not None and number >= 100 else ".1f")


def _text(number: float | None, form: str) -> str:
    return "–" if number is None else format(number, form)


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+z.1f}".replace("-", "−")


def p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


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
    """The tables in the terminal; in a pipe nothing is cut to a width."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    for group in groups:
        headers, rows = table(group)
        console.print(_rich(f"{group.task}: {heading(group)}", headers, flat(rows)))
        if group.pairs:
            console.print(_rich(None, PAIR_HEADERS, pair_rows(group)))
    if any(group.pairs for group in groups):
        print(RULE)
    for left in left_out:
        print(left)


def _rich(title: str | None, headers: list[str], rows: list[list[str]]) -> Table:
    shown = Table(title=Text(title) if title else None, title_justify="left")
    for number, header in enumerate(headers):
        shown.add_column(header, justify="left" if number == 0 or header in ("model", "verdict") else "right")
    for row in rows:
        shown.add_row(*map(Text, row))  # Text: a name such as [bold] is no markup
    return shown


def markdown(groups: list[Group], left_out: list[LeftOut], pairs: bool = True) -> str:
    """The tables in Markdown, one section a group.

    Args:
        pairs: also list every pair with interval and p, and what was left out.
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
    marks = ["---" if header in words else "---:" for header in headers]
    lines = ["| " + " | ".join(map(_escape, line)) + " |" for line in (headers, *rows)]
    return [lines[0], f"|{'|'.join(marks)}|", *lines[1:]]


def _escape(text: str) -> str:
    """Names come from files: none may end a cell, begin HTML or close the README's block."""
    for char in "\\`*_|[]":
        text = text.replace(char, "\\" + char)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def check_readme(path: Path) -> tuple[str, str]:
    """What stands before and after the block that is written, markers included.

    Raises:
        UserError: the file is missing, or does not hold each marker once, in order.
    """
    try:
        content = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the README that holds {BEGIN} and {END}") from error
    if content.count(BEGIN) != 1 or content.count(END) != 1 or content.index(BEGIN) > content.index(END):
        raise UserError(f"{path}: put {BEGIN} and, below it, {END} on lines of their own, once each")
    return content[: content.index(BEGIN) + len(BEGIN)], content[content.index(END) :]


def update_readme(path: Path, groups: list[Group]) -> None:
    """Write the tables between the markers, but for ablations: the same runs give the same bytes.

    Raises:
        UserError: as `check_readme`.
    """
    before, after = check_readme(path)
    note = "<!-- written by compare.py --readme; what is typed here is lost -->"
    models = [group for group in groups if not group.first.study]
    write_text(path, f"{before}\n{note}\n\n{markdown(models, [], pairs=False)}\n{after}")


def html_page(groups: list[Group], left_out: list[LeftOut], templates: Path) -> str:
    """The page: one file that asks nothing of a server or the network.

    Its policy allows the one script by its hash, so that a text of a row could not run even where escaping failed.

    Args:
        templates: folder of report.html.jinja and report.js.
    """
    script = (templates / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    shown = [
        {
            "group": group,
            "heading": heading(group),
            "table": table(group),
            "pairs": pair_rows(group),
            "matrix": [[_matrix_cell(group, i, j) for j in range(len(group.cells))] for i in range(len(group.cells))],
        }
        for group in groups
    ]
    data, room = {}, PAGE_ROWS_BYTES
    for left, group in zip(range(len(groups), 0, -1), sorted(groups, key=lambda group: group.rows), strict=True):
        data[id(group)] = chart_data(group, room // left)  # what a small group does not need, a larger one may use
        room -= len(json.dumps(data[id(group)]["rows"]["rows"]))
    return environment.get_template("report.html.jinja").render(
        groups=shown,
        data=[data[id(group)] for group in groups],
        left_out=left_out,
        script=Markup(script),
        script_hash=digest,
        pair_headers=PAIR_HEADERS,
        rule=RULE,
    )


def _matrix_cell(group: Group, row: int, column: int) -> dict | None:
    """Row minus column: text, verdict, and which of eleven shades, -5 (far worse) to 5 (far better, 10 points)."""
    if row == column:
        return None
    pair = group.pair(row, column)
    difference = pair.difference if pair.first == row else -pair.difference
    return {
        "text": points(difference),
        "verdict": pair.verdict,
        "real": pair.real,
        "shade": int(np.clip(np.sign(difference) * np.ceil(abs(difference) * 50), -5, 5)) if pair.real else 0,
        "p": p_text(pair.p_holm),
    }


def chart_data(group: Group, rows_bytes: int) -> dict:
    """What the page's charts and rows are drawn from, ready for JSON; shares lie in 0..1.

    Learning curves are of every seed; the rest is of the run that stands for its cell.
    """
    ids = range(len(group.labels))
    cells = []
    for cell in group.cells:
        run = cell.run
        cells.append(
            {
                "label": cell.label,
                "accuracy": cell.metric("accuracy"),
                "interval": cell.interval,
                "seeds": [each.metrics["accuracy"] for each in cell.runs] if len(cell.runs) > 1 else [],
                "stands": f"seed {run.seed}" if len(cell.runs) > 1 else None,
                "paper": cell.paper,
                "f1": _rounded(f1_score(run.truth, run.answers, labels=ids, average=None, zero_division=0)),
                "confusion": confusion_matrix(run.truth, run.answers, labels=ids).tolist(),
                "reliability": [_rounded(point) for point in reliability(run.confidence, run.correct)],
                "coverage": [_rounded(point) for point in coverage_risk(run.confidence, run.correct)],
                "curves": [learning_curves(each.result) for each in cell.runs],
            }
        )
    support = np.bincount(group.first.truth, minlength=len(group.labels)).tolist()
    data = {"task": group.task, "split": group.split, "n": group.rows, "labels": group.labels, "support": support}
    return {**data, "cells": cells, "rows": telling_rows(group, rows_bytes)}


def learning_curves(result: dict) -> dict[str, list[list[float]]]:
    """(epoch, value) pairs of loss, eval_loss and eval_accuracy in `training.log`, as far as the run logged them."""
    log = (result.get("training") or {}).get("log") or []
    return {
        key: [
            _rounded((entry["epoch"], entry[key]))
            for entry in log
            if number_at(entry, "epoch") is not None and number_at(entry, key) is not None
        ]
        for key in ("loss", "eval_loss", "eval_accuracy")
    }


def telling_rows(group: Group, budget: int) -> dict:
    """The rows on which cells disagree or all are wrong, most answers first, as many as `budget` bytes of JSON hold.

    Returns:
        rows: [text, file:line, true id, answer of each cell, its confidence in %]; counts of what is there and not.
    """
    answers = np.array([cell.run.answers for cell in group.cells])
    confidence = np.array([cell.run.confidence for cell in group.cells])
    truth = group.first.truth
    distinct = np.array([len(set(column)) for column in answers.T.tolist()])
    wrong = (answers != truth).sum(axis=0)
    differ, all_wrong = distinct > 1, (distinct == 1) & (wrong > 0)
    order = [int(i) for i in np.lexsort((-wrong, -distinct)) if wrong[i]]
    rows, size = [], 0
    for i in order:
        file, line, text = group.first.rows[i]
        cut = text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + " …"
        percent = (100 * confidence[:, i]).round().astype(int).tolist()
        row = [cut, f"{file}:{line}", int(truth[i]), answers[:, i].tolist(), percent]
        size += len(json.dumps(row)) + 2  # and ", " between rows
        if size > budget:
            break
        rows.append(row)
    counts = {"differ": int(differ.sum()), "all_wrong": int(all_wrong.sum()), "all_right": int((wrong == 0).sum())}
    return {"rows": rows, **counts, "left_out": len(order) - len(rows)}


def _rounded(values) -> list[float]:
    return [round(float(value), 5) for value in values]


def publish(groups: list[Group]) -> None:
    """Save the comparison as a report of Weights & Biases: tables, and the panels of each task's logged runs.

    Raises:
        UserError: wandb-workspaces, a key or the network is missing.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("--wandb: wandb-workspaces is not installed; pip install -e '.[report]', or leave --wandb out")
    import wandb  # here, not above: with machine and tracking it takes ten seconds

    from fintune import machine, tracking

    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(url).hostname
    if not tracking.has_key(host):
        raise UserError("--wandb: no W&B account here; set WANDB_API_KEY, or leave --wandb out")
    if not machine.reachable(url):
        raise UserError(f"--wandb: {host} is out of reach; connect, or leave --wandb out")
    entity = os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
    report = wandb_report(groups, os.environ.get("WANDB_PROJECT", "fintune"), entity)
    report.save()
    print(f"wandb: {report.url}")


def wandb_report(groups: list[Group], project: str, entity: str):
    """The report as an object of wandb-workspaces, not yet saved; no text of a row is in it."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    blocks = []
    for group in groups:
        title = f"{group.task}, {group.split} ({' and '.join(group.sources)})"
        filters = expr.And(
            expr.Metric("Group") == group.first.result["task"]
        )  # the group that fintune.tracking logs to
        runset = wr.Runset(project=project, entity=entity, name=group.task, filters=filters)
        panels = [
            wr.LinePlot(title="training loss", x="Step", y=["train/loss"]),
            wr.LinePlot(title="validation accuracy", x="Step", y=["eval/accuracy"]),
            wr.BarPlot(title=f"{group.split} accuracy", metrics=[f"{group.split}/accuracy"]),
        ]
        blocks += [wr.H2(text=title), wr.MarkdownBlock(text=markdown([group], []))]
        blocks += [wr.PanelGrid(runsets=[runset], panels=panels)]
    return wr.Report(project=project, entity=entity, title="Comparison of runs", blocks=blocks, width="fluid")
