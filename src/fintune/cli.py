"""The command `fintune`: one verb for each thing that can be done with a trained run, a task or a folder of runs.

What a verb needs is imported inside its function, so that help and mistakes are answered without the model libraries.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fintune import errors
from fintune.errors import UserError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Label financial text with a trained run, and find out how far to trust the labels.

    Runs are trained by the scripts of the repository (train_sft.py, train_cls.py, train_linear.py); predict, serve,
    export and compare also work without a checkout of it.

    \b
    Example:
      fintune predict runs/sentiment/tiny news.csv --text-column title -o labelled.csv

    `fintune COMMAND --help` lists a command's options.""",
)


def argument(metavar: str, help: str, default: str | None = None) -> typer.models.ArgumentInfo:
    return typer.Argument(metavar=metavar, help=help, show_default=default or True)


def option(metavar: str, help: str, default: str = "none") -> typer.models.OptionInfo:
    """An option that may be left out; `default` describes what happens then."""
    return typer.Option(metavar=metavar, help=help, show_default=default)


def flag(name: str, help: str) -> typer.models.OptionInfo:
    return typer.Option(name, help=help, show_default="off")


FORMATS = ".csv, .csv.gz, .jsonl, .jsonl.gz or .parquet"
Run = Annotated[Path, argument("RUN", "Folder of a finished run.")]
AbstainBelow = Annotated[
    float, typer.Option(min=0, max=1, help="Mark an answer as abstained where its confidence is below this.")
]
TargetAccuracy = Annotated[
    float | None,
    option(
        "SHARE",
        "Instead of --abstain-below: abstain on the least confident answers, so many that the others reached this "
        "accuracy on the run's validation rows, such as 0.95.",
    ),
]


@app.command()
def predict(
    run_dir: Run,
    source: Annotated[
        str,
        argument(
            "INPUT",
            f"A {FORMATS} file; - for lines of standard input; with --engine ray a folder of .parquet files, also one "
            "of a bucket (s3://, gs://).",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUTPUT",
            help="A new file of the input's format; with --engine ray a folder. Required, except with -.",
            show_default="none",
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(metavar="NAME", help="The column that is labelled.")] = "text",
    prefix: Annotated[str, option("TEXT", "Put before the names of the added columns.")] = "",
    abstain_below: AbstainBelow = 0.0,
    target_accuracy: TargetAccuracy = None,
    spreadsheet_safe: Annotated[
        bool, flag("--spreadsheet-safe", "CSV: put ' before what a spreadsheet would run as a formula.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="ray labels a folder on the cluster of RAY_ADDRESS, else on this machine's cores."),
    ] = "local",
) -> int:
    """Label a file, lines as they come, or a folder on a cluster.

    Every row gets a label, a confidence and a probability for each label. Rows that cannot be labelled are written
    to OUTPUT.rejected.jsonl, each with its line and the reason. An interrupted command goes on when it is typed
    again. Exit code 3: done, but some rows were rejected.

    \b
    Examples:
      fintune predict runs/sentiment/tiny news.csv --text-column title -o labelled.csv
      tail -f wire.txt | fintune predict runs/sentiment/tiny - > labelled.jsonl
      fintune predict runs/sentiment/tiny s3://bucket/news --engine ray -o s3://bucket/out
    """
    from fintune.deploy.predict import predict

    options = abstain_below, target_accuracy, spreadsheet_safe, engine
    return predict(run_dir, source, output, text_column, prefix, *options)


@app.command()
def serve(
    run_dir: Run,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    abstain_below: AbstainBelow = 0.0,
    target_accuracy: TargetAccuracy = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Texts that may wait; beyond it, status 429.")] = 4096,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request; beyond it, status 413.")] = 2**20,
    max_connections: Annotated[int, typer.Option(min=1, help="Open connections; beyond it, status 503.")] = 512,
) -> None:
    """Answer requests over HTTP.

    POST /classify takes one text, or {"texts": [...]}; GET /healthz and GET /metrics (Prometheus) report its state.
    Requests that arrive together are scored together. SIGTERM ends it once the open requests are answered. There is no
    authentication and no TLS: put a proxy in front of it before other machines may reach it. Needs the extra:
    pip install 'fintune[serve]'.

    \b
    Example:
      fintune serve runs/sentiment/tiny --port 8000
      curl localhost:8000/classify -d '{"text": "Alder raised its dividend again"}'
    """
    import uvicorn

    from fintune.deploy.classifier import Classifier
    from fintune.deploy.predict import find_threshold
    from fintune.deploy.service import create_app
    from fintune.results.verify import read_result

    result = read_result(run_dir)
    threshold = find_threshold(result["calibration"], abstain_below, target_accuracy)
    classifier = Classifier.from_pretrained(run_dir)
    classifier(["warm up"])
    application = create_app(classifier, threshold, max_waiting, max_body)
    uvicorn.run(application, host=host, port=port, limit_concurrency=max_connections, access_log=False, ws="none")


@app.command()
def export(
    run_dir: Run,
    target: Annotated[Path, argument("FOLDER", "A new folder.")],
    push: Annotated[
        str | None,
        option(
            "ID", "Also send it to this repository on the Hub, such as me/sentiment: a private one, with HF_TOKEN."
        ),
    ] = None,
) -> None:
    """Write a run as plain weights with a model card.

    An adapter is merged into its base, and the result is checked against the run. The folder loads in transformers,
    and in servers such as vLLM, without this project; a linear model's in scikit-learn, through skops.

    \b
    Example:
      fintune export runs/sentiment/qwen3-8b exported/sentiment --push me/sentiment
    """
    from fintune.deploy.export import export

    export(run_dir, target, push)


@app.command()
def prepare(
    file: Annotated[Path, argument("FILE", f"A {FORMATS} file.")],
    text: Annotated[str, typer.Option(metavar="NAME", help="Column of the texts.")],
    label: Annotated[str, typer.Option(metavar="NAME", help="Column of the labels.")],
    task: Annotated[str, typer.Option(metavar="NAME", help="Name of the new task: letters, digits and _.")],
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

    prepare(file, text, label, task, force)


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


def command(argv: list[str]) -> int:
    """Run one command line; its exit code where nothing is raised.

    Raises:
        UserError: what was typed, or what it names, cannot be used.
    """
    root = typer.main.get_command(app)
    try:  # not `app(...)`, which would answer a closed pipe and Ctrl-C in its own way
        with root.make_context("fintune", argv or ["--help"]) as context:
            return root.invoke(context) or 0
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "fintune"
        raise UserError(f"{error.format_message()} (`{where} --help` lists what it takes)") from error


def main() -> None:
    """The entry point of the command."""
    errors.run(command)


if __name__ == "__main__":
    main()
