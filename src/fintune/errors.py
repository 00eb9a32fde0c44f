"""What a user can put right ends in one line and exit code 2; everything else keeps its traceback."""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable

MOST_CHARACTERS = 1600  # of a message


class UserError(Exception):
    """A mistake in what the user gave: its message names the value, the place and the remedy, in one line.

    A value of thousands of characters, which a message may quote, is cut in the middle.
    """

    def __init__(self, message: str):
        cut = len(message) > MOST_CHARACTERS
        super().__init__(
            f"{message[: MOST_CHARACTERS // 2]} ... {message[-MOST_CHARACTERS // 2 :]}" if cut else message
        )


class Stopped(Exception):
    """A run was stopped by a signal, after its work was saved; exit code 128 + signum, as a shell expects."""

    def __init__(self, signum: int, where: str, again: str = "the same command with --resume_from_checkpoint true"):
        super().__init__(f"stopped by {signal.Signals(signum).name}, saved {where}; {again} goes on from there")
        self.signum = signum


def run(main: Callable[[list[str]], int | None]) -> None:
    """Run a script's `main` on the command line and end with what it returns or 0, 2 (`UserError`) or 128 + signal."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # its notes to library authors
    warnings.filterwarnings("ignore", message=".*pin_memory.*")  # true by default, on machines without a GPU too
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0":
        # of several processes (accelerate launch) the first one speaks
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        message, code = f"error: {error}", 2
    except Stopped as stop:
        message, code = str(stop), 128 + stop.signum
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fintune"):
            raise
        message, code = f"error: {error.name} is not installed; pip install -c constraints.txt -e '.[dev]' has all", 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still flushes at its end
        message, code = "the reader of standard output went away", 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        message, code = "interrupted; what was saved before stands", 128 + signal.SIGINT
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
            words in str(error) for words in ("No space left", "disk is full")
        )
        if not full:  # safetensors, torch and SQLite raise their own kinds for it
            raise
        where = getattr(error, "filename", None) or "the output folder"
        message, code = f"error: no space left on the disk of {where}: free some", 2
    try:
        sys.stdout.flush()  # the last line is the error's
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(code)
