"""The command `fintune`: one verb for each thing that can be done with a trained run, a task or a folder of runs.

What a verb needs is imported inside its function, so that help and mistakes are answered without the model libraries.
"""

import fintune.interrupt  # noqa: F401  before what takes seconds to load

# isort: split
import typer

from fintune import errors
from fintune.cli import run, task, trials  # noqa: F401  their verbs
from fintune.cli.app import app
from fintune.errors import UserError


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
