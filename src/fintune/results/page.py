"""A comparison as one HTML page that needs neither a server nor the network."""

import base64
import hashlib
import json
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from sklearn.metrics import confusion_matrix, f1_score

from fintune.results.cells import Group
from fintune.results.runs import LeftOut, number_at
from fintune.results.tables import PAIR_HEADERS, RULE, heading, p_text, pair_rows, points, table
from fintune.scoring.curves import coverage_risk, reliability

FOLDER = Path(__file__).parent  # of report.html.jinja and report.js
PAGE_ROWS_BYTES = 2_000_000  # of texts and answers in the page, all groups together; a phone still opens it
TEXT_CHARACTERS = 600  # of one text in the page


def html_page(groups: list[Group], left_out: list[LeftOut]) -> str:
    """The page as one file.

    Its content security policy allows one script, by its hash: a row's text could not run even if escaping failed.
    """
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
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
        data[id(group)] = chart_data(group, room // left)  # a larger group may use what smaller ones leave
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

    Learning curves are of every seed; everything else is of each cell's representative.
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
                "shown_seed": run.seed if len(cell.runs) > 1 else None,
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
    return {**data, "cells": cells, "rows": disagreements(group, rows_bytes)}


def learning_curves(result: dict) -> dict[str, list[list[float]]]:
    """(epoch, value) pairs of loss, eval_loss and eval_accuracy, as far as the run logged them."""
    log = (result.get("training") or {}).get("log") or []
    return {
        key: [
            _rounded((entry["epoch"], entry[key]))
            for entry in log
            if number_at(entry, "epoch") is not None and number_at(entry, key) is not None
        ]
        for key in ("loss", "eval_loss", "eval_accuracy")
    }


def disagreements(group: Group, budget: int) -> dict:
    """The rows on which cells disagree or all are wrong, most answers first, as many as `budget` bytes of JSON hold.

    Returns:
        `rows` of [text, file:line, true id, answer of each cell, its confidence in %]; how many rows `differ`, are
        `all_wrong` or `all_right`; how many of the first two the budget `left_out`.
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
        shortened = text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + " …"
        percent = (100 * confidence[:, i]).round().astype(int).tolist()
        row = [shortened, f"{file}:{line}", int(truth[i]), answers[:, i].tolist(), percent]
        size += len(json.dumps(row)) + 2  # and ", " between rows
        if size > budget:
            break
        rows.append(row)
    counts = {"differ": int(differ.sum()), "all_wrong": int(all_wrong.sum()), "all_right": int((wrong == 0).sum())}
    return {"rows": rows, **counts, "left_out": len(order) - len(rows)}


def _rounded(values) -> list[float]:
    return [round(float(value), 5) for value in values]
