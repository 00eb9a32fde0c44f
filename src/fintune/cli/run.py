"""Verbs for a trained run: label with it, serve it, export it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fintune.cli.app import FORMATS, Delimiter, Encoding, app, argument, flag, option

Run = Annotated[Path, argument("RUN", "Folder of a finished run.")]
Base = Annotated[
    Path | None,
    option("FOLDER", "The model that the run was trained on, where it was moved since.", "where it was in training"),
]
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
            help="A new file of the input's format, or .csv for .xlsx; with ray a folder. Required, except with -.",
            show_default="none",
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(metavar="NAME", help="The column that is labelled.")] = "text",
    column: Annotated[
        list[str] | None,
        option(
            "NAME=COLUMN",
            "Where the input has another name for a column that the run reads, such as ticker=Symbol; repeatable.",
        ),
    ] = None,
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
    long: Annotated[
        Literal["cut", "split"],
        typer.Option(
            help="How a text longer than the model reads is read: its beginning alone, or all of it in overlapping "
            "windows whose log-probabilities are averaged."
        ),
    ] = "cut",
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    base: Base = None,
) -> int:
    """Label a file, lines as they come, or a folder on a cluster.

    Every row gets a label, a confidence, a probability for each label, and whether its text was truncated. A row that
    cannot be labelled keeps its place, with the reason in the column `rejected`; lines that are no rows are written to
    OUTPUT.rejected.jsonl. An interrupted command goes on when it is typed again. Exit code 3: done, but some rows were
    rejected. A run that reads columns beside the text takes them from the input, from standard input as JSON lines.

    \b
    Examples:
      fintune predict runs/sentiment/tiny news.csv --text-column title -o labelled.csv
      tail -f wire.txt | fintune predict runs/sentiment/tiny - > labelled.jsonl
      fintune predict runs/sentiment/tiny s3://bucket/news --engine ray -o s3://bucket/out
    """
    from fintune.deploy.predict import predict

    options = abstain_below, target_accuracy, spreadsheet_safe, engine, delimiter, encoding, column or (), base, long
    return predict(run_dir, source, output, text_column, prefix, *options)


@app.command()
def serve(
    run_dir: Run,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    abstain_below: AbstainBelow = 0.0,
    target_accuracy: TargetAccuracy = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Texts of one client that may wait; beyond it, 429.")] = 4096,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request; beyond it, status 413.")] = 2**20,
    max_connections: Annotated[int, typer.Option(min=1, help="Open connections; beyond it, silent ones end.")] = 512,
    allowed_host: Annotated[
        list[str] | None,
        option("NAME", "A name that requests may call it by, beside localhost and --host; repeatable."),
    ] = None,
    graceful_timeout: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="After SIGTERM, for the open requests.")
    ] = 25,
    base: Base = None,
) -> None:
    """Answer requests over HTTP.

    POST /classify takes one text, or {"texts": [...]}, with the columns that the run reads; GET /healthz and GET
    /metrics (Prometheus) report its state. Requests that arrive together are scored together, those of each client
    (address) in turn. SIGTERM ends it once the open requests are answered. There is no authentication and no TLS:
    put a proxy in front of it before other machines may reach it. Needs the extra: pip install 'fintune[serve]'.

    \b
    Example:
      fintune serve runs/sentiment/tiny --port 8000
      curl localhost:8000/classify -H 'Content-Type: application/json' -d '{"text": "Alder raised its dividend again"}'
    """
    from fintune.data.inputs import as_input
    from fintune.deploy import service
    from fintune.deploy.classifier import Classifier
    from fintune.deploy.http_guard import host_names
    from fintune.deploy.predict import find_threshold
    from fintune.results.verify import read_result

    result = read_result(run_dir)
    threshold = find_threshold(result["calibration"], abstain_below, target_accuracy)
    allowed_hosts = host_names(allowed_host or ())
    listening = service.listen(host, port)
    classifier = Classifier.from_pretrained(run_dir, base=base)
    classifier([as_input("warm up", {name: name for name in classifier.columns})])
    application = service.create_app(classifier, threshold, max_waiting, max_body, host, allowed_hosts)
    service.serve(application, listening, max_connections, graceful_timeout)


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
    base: Base = None,
) -> None:
    """Write a run as plain weights with a model card.

    An adapter is merged into its base, and the result is checked against the run. The folder loads in transformers,
    and in servers such as vLLM, without this project; a linear model's in scikit-learn, through skops.

    \b
    Example:
      fintune export runs/sentiment/qwen3-8b exported/sentiment --push me/sentiment
    """
    from fintune.deploy.export import export

    export(run_dir, target, push, base)
