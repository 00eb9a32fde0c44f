"""Verbs for a task: make one from a file, look through its rows."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fintune.cli.app import FORMATS, Delimiter, Encoding, app, argument, flag, option
from fintune.errors import UserError


@app.command()
def prepare(
    file: Annotated[Path, argument("FILE", f"A {FORMATS} file.")],
    text: Annotated[str, typer.Option(metavar="NAME", help="Column of the texts.")],
    label: Annotated[str, typer.Option(metavar="NAME", help="Column of the labels.")],
    task: Annotated[str, typer.Option(metavar="NAME", help="Name of the new task: letters, digits and _.")],
    force: Annotated[bool, flag("--force", "Write over the task's files.")] = False,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
) -> None:
    """Make a task from a file of labelled texts.

    Writes data/TASK.csv (the rows that can be trained on), data/TASK.yaml and templates/TASK.jinja below the current
    folder, usually a checkout, for you to edit. Rows are left out only for reasons that it prints, and counted.

    \b
    Example:
      fintune prepare news.csv --text title --label tone --task mine
    """
    from fintune.data.prepare import prepare

    prepare(file, text, label, task, force, delimiter=delimiter, encoding=encoding)


@app.command()
def audit(
    task: Annotated[Path, argument("TASK", "A task's YAML, such as data/topic.yaml.")],
    suspects: Annotated[Path | None, option("FILE.csv", "Write rows whose label is likely wrong.")] = None,
    encoder: Annotated[
        Path | None, option("RECIPE", "Frozen embedding that looks for suspects too.", "TF-IDF alone")
    ] = None,
) -> None:
    """Look for repeats, leaks, contradictions and wrong labels.

    Odd texts are counted too, such as garbled or invisible characters. Training prints the short form of it first.
    Both stop if more of the test split is also in training than the task's `max_leakage` allows.

    \b
    Examples:
      fintune audit data/topic.yaml
      fintune audit data/mine.yaml --suspects suspects.csv \\
        --encoder configs/baselines/minilm-l6-frozen.yaml
    """
    from fintune.recipe.layers import read_task

    description = read_task(task)
    if suspects and suspects.exists():
        raise UserError(f"{suspects}: already exists, perhaps with your edits; name another file, or delete it")
    if encoder and not suspects:
        raise UserError(f"--encoder {encoder}: only looks for suspects; name their file with --suspects")

    from fintune.data import audit
    from fintune.data.load import load_data

    if suspects:
        from fintune.scoring.suspects import read_encoder, report

        embedding = read_encoder(task, encoder) if encoder else None
    data = load_data(description, allow_sample=True)
    audit.show(description, audit.audit(description, data))
    if suspects:
        if description.exclude or description.soft_labels:  # the file's own labels, and all of them
            data = load_data(replace(description, exclude=None, soft_labels=None), allow_sample=True)
        print(report(description, data, suspects, embedding))
    audit.check_leakage(description, data)
