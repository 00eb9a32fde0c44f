"""fintune: fine-tune a language model to label financial text, and know how far to trust the labels."""

__version__ = "0.1.0"
