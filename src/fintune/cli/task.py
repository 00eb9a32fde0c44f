"""Verbs for a task: make one from a file, look through its rows."""

from pathlib import Path
from typing import Annotated

import typer

from fintune.cli.app import FORMATS, app, argument, flag, option


@app.command()
def prepare(
    file: Annotated[Path, argument("FILE", f"A {FORMATS} file.")],
    text: Annotated[str, typer.Option(metavar="NAME", help="Column of the texts.")],
    label: Annotated[str, typer.Option(metavar="NAME", help="Column of the labels.")],
    task: Annotated[str, typer.Option(metavar="NAME", help="Name of the new task: letters, digits and _.")],
    columns: Annotated[
        str | None,
        option(
            "NAMES",
            "Further columns that the model reads, such as ticker,source; ticker=Symbol renames the column Symbol.",
        ),
    ] = None,
    force: Annotated[bool, flag("--force", "Write over the task's files.")] = False,
) -> None:
    """Make a task from a file of labelled texts.

    Writes data/TASK.csv (the rows that can be trained on), data/TASK.yaml and templates/TASK.jinja below the current
    folder, usually a checkout, for you to edit. Rows are left out only for reasons that it prints, and counted.

    \b
    Example:
      fintune prepare news.csv --text title --label tone --task mine
    """
    from fintune.data.prepare import prepare

    prepare(file, text, label, task, force, columns=[name.strip() for name in columns.split(",")] if columns else ())


@app.command()
def audit(
    task: Annotated[Path, argument("TASK", "A task's YAML, such as data/topic.yaml.")],
) -> None:
    """Look for repeats, leaks and contradictions in a task's rows.

    Odd texts are counted too, such as garbled or invisible characters. Training prints the short form of it first.
    Both stop if more of the test split is also in training than the task's `max_leakage` allows.

    \b
    Example:
      fintune audit data/topic.yaml
    """
    from fintune.recipe.layers import read_task

    description = read_task(task)

    from fintune.data import audit
    from fintune.data.load import load_data

    data = load_data(description, allow_sample=True)
    audit.show(description, audit.audit(description, data))
    audit.check_leakage(description, data)
