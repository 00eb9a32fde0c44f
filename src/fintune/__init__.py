"""fintune: fine-tune a language model to label financial text, and know how far to trust the labels."""

import logging

__version__ = "0.1.0"

# Notes that libraries print while they load, of no use to who trains; imports of fintune stand first for this
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str):
    if name == "Classifier":  # loads torch and transformers, which many an import of fintune can do without
        from fintune.inference import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
