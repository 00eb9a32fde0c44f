"""Verbs for many runs: train baselines and grids, compare them."""

from pathlib import Path
from typing import Annotated

import typer

from fintune.cli.app import app, argument, flag, option


@app.command()
def compare(
    folder: Annotated[Path, argument("FOLDER", "Where runs are searched.")] = Path("runs"),
    readme: Annotated[
        Path | None, option("FILE", "Write a short table between this file's compare:begin and compare:end marks.")
    ] = None,
    results: Annotated[Path | None, option("FILE", "Write all tables as a Markdown page.")] = None,
    wandb: Annotated[
        bool, flag("--wandb", "Also save a report in W&B; needs an account, and pip install 'fintune[report]'.")
    ] = False,
) -> None:
    """Compare finished runs: tables, paired tests, one page.

    Writes report.html and report.md into FOLDER. Only runs that were scored on the same rows share a table.

    \b
    Example:
      fintune compare runs --readme README.md --results docs/results.md
    """
    from fintune.results.compare import compare

    compare(folder, readme, results, wandb)


@app.command()
def baselines(
    tasks: Annotated[list[str] | None, argument("TASK", "Names of YAMLs in data/.", default="sentiment topic")] = None,
    encoder: Annotated[Path | None, option("FOLDER", "A local encoder, as one more baseline.")] = None,
) -> None:
    """Train every baseline and model that this machine can run.

    They go from the majority class to the paper's Qwen3-8B. Finished runs are skipped, and so is what this machine
    cannot run, each with the reason; interrupted runs are resumed. A run that fails does not stop the others. Needs a
    checkout. Exit code 1: some runs failed.

    \b
    Example:
      fintune baselines sentiment topic
    """
    from fintune.results.baselines import run_baselines

    run_baselines(tasks or ["sentiment", "topic"], encoder)


@app.command()
def ablations(
    questions: Annotated[
        list[str] | None, argument("QUESTION", "Names of YAMLs in configs/sweeps/.", default="all")
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Recipe in place of `auto` in the grids; auto looks at the machine.")
    ] = "auto",
    task: Annotated[str | None, option("NAME", "Task in place of the grids' own.", default="the grid's")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each grid that are run.")] = 1,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side.", show_default="a CPU's cores, 1 on a GPU")
    ] = None,
    overlay: Annotated[
        str | None,
        option("NAME", "One run alone: with this YAML of configs/ablations/, or `none` for the recipe as it is."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the one run that --overlay asks for.")] = 42,
    report: Annotated[
        bool,
        flag(
            "--report",
            "Train nothing: write docs/ablations.md on all questions from runs/, of --model or else of the model with "
            "most runs; needs pip install 'fintune[ablations]'.",
        ),
    ] = False,
) -> None:
    """Answer the paper's open questions with grids of runs.

    Each question is a YAML in configs/sweeps/. Runs land in runs/TASK/ablations/. Finished ones are skipped,
    interrupted ones are resumed, and of several side by side the longest start first. A GPU takes several too, as many
    as its memory holds. Where all rows take too long, give a recipe of your own that `extends` one and states
    `train_share: 0.25`; the report says how many rows were used. Needs a checkout. Exit code 1: some runs failed.

    \b
    Examples:
      fintune ablations neftune rank --model smollm2-135m --seeds 3 --at-once 8
      fintune ablations --overlay rank-16 --seed 42 --model tiny    as `wandb agent` calls it
      fintune ablations --report --model smollm2-135m
    """
    from fintune.results.ablations import run_ablations, write_report

    if report:
        write_report(model=model, task=task)
        return
    run_ablations(
        questions=questions or [],
        model=model,
        task=task,
        seeds=seeds,
        at_once=at_once,
        overlay=overlay,
        seed=seed,
    )


@app.command()
def cascade(
    runs: Annotated[list[Path], argument("RUN...", "Folders of finished runs of one task on the same rows.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the new run.")],
    max_error: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="The most that may be wrong of what is labelled.")
    ] = 0.05,
    confidence: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Probability with which that bound holds.")
    ] = 0.9,
) -> None:
    """Join runs into one with a bound on its error.

    The fastest is asked first. A run answers what it is confident enough of and leaves the rest to the next slower
    one; what none may answer is marked as abstained. Thresholds are chosen and tested on the validation rows, so that
    of what is labelled at most --max-error is wrong, for texts like those. The new run is one like any other: predict,
    serve, evaluate.py and compare take it.

    \b
    Example:
      fintune cascade runs/topic/tfidf runs/topic/smollm2-135m --max-error 0.05 -o runs/topic/cascade
    """
    from fintune.results.cascade import cascade

    cascade(runs, max_error, confidence, output)
