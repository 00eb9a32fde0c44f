"""Imported first by everything that is run: Ctrl-C while the libraries load ends without a traceback.

Python itself then ends by the signal, which shells show as exit code 130. From `fintune.errors.run` on, that says it
in a line.
"""

import sys

_shown = sys.excepthook


def _show(kind, error, trace) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        _shown(kind, error, trace)


sys.excepthook = _show
