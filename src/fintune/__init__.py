"""fintune: fine-tune a language model to label financial text, and know how far to trust the labels."""

import logging

__version__ = "0.1.0"

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it warns of GPU functions that nobody asked for


def __getattr__(name: str):
    if name == "Classifier":
        from fintune.deploy.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
