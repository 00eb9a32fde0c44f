"""The command itself, and how its verbs describe what they take."""

from typing import Annotated

import typer

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


FORMATS = ".csv, .tsv, .jsonl (also .gz, .zst), .parquet or .xlsx"
Delimiter = Annotated[
    str | None,
    option("CHARACTER", "What separates the cells of CSV, such as ; or tab.", "found among , ; tab |"),
]
Encoding = Annotated[
    str | None,
    option("NAME", "Of a text file, such as cp1252.", "UTF-8, or as a byte order mark says"),
]
