"""Runs and their comparison in Weights & Biases."""

import importlib.util
import os
from pathlib import Path
from urllib.parse import urlparse

from fintune.errors import UserError, run
from fintune.machine import console, reachable
from fintune.results.cells import Group
from fintune.results.runs import read_runs
from fintune.results.tables import markdown


def publish(groups: list[Group]) -> None:
    """Save the comparison as a report of Weights & Biases: tables, and the panels of each task's logged runs.

    Raises:
        UserError: wandb-workspaces, a key or the network is missing.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("--wandb: wandb-workspaces is not installed; pip install 'fintune[report]', or omit --wandb")
    import wandb

    from fintune.training import tracking

    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(url).hostname
    if not tracking.has_key(host):
        raise UserError("--wandb: no W&B account here; set WANDB_API_KEY, or omit --wandb")
    if not reachable(url):
        raise UserError(f"--wandb: {host} cannot be reached; connect, or omit --wandb")
    entity = os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
    report = wandb_report(groups, os.environ.get("WANDB_PROJECT", "fintune"), entity)
    report.save()
    print(f"wandb: {report.url}")


def wandb_report(groups: list[Group], project: str, entity: str):
    """The report as an object of wandb-workspaces, not yet saved; it holds no text of a row."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    blocks = []
    for group in groups:
        title = f"{group.task}, {group.split} ({' and '.join(group.sources)})"
        filters = expr.And(expr.Tags().isin([group.first.result["task"]]))  # a tag of every run that is logged
        runset = wr.Runset(project=project, entity=entity, name=group.task, filters=filters)
        panels = [
            wr.LinePlot(title="training loss", x="Step", y=["train/loss"]),
            wr.LinePlot(title="validation accuracy", x="Step", y=["eval/accuracy"]),
            wr.BarPlot(title=f"{group.split} accuracy", metrics=[f"{group.split}/accuracy"]),
        ]
        blocks += [wr.H2(text=title), wr.MarkdownBlock(text=markdown([group], []))]
        blocks += [wr.PanelGrid(runsets=[runset], panels=panels)]
    return wr.Report(project=project, entity=entity, title="Comparison of runs", blocks=blocks, width="fluid")


def dashboard() -> None:
    """`make dashboard`: the finished runs by name and accuracy, the best first, and where they are logged."""
    import wandb
    from rich.table import Column, Table
    from rich.text import Text

    from fintune.training import tracking

    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(url).hostname
    if tracking.has_key(host) and reachable(url):
        entity = os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
        print(f"online: https://{host.removeprefix('api.')}/{entity}/{os.environ.get('WANDB_PROJECT', 'fintune')}")
    if not Path("wandb").is_dir():
        raise UserError("no local runs yet: wandb/ is not here; `make train-sentiment` makes one")
    table = Table("task", Column("name", overflow="fold"), Column("accuracy", justify="right"), "W&B id")
    for found in sorted(read_runs(Path("runs"))[0], key=lambda one: (one.result["task"], -one.metrics["accuracy"])):
        logged = tracking.logged_as(Path("runs", found.path)) or {}
        name, accuracy = logged.get("name") or found.result["name"], f"{found.metrics['accuracy']:.4f}"
        table.add_row(*map(Text, (found.result["task"], name, accuracy, logged.get("id", "–"))))
    console().print(table)


if __name__ == "__main__":
    run(lambda argv: dashboard())
