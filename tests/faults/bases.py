"""Bases of many architectures, causal and encoders, under each attention that they have."""

import contextlib
import io
from collections import Counter
from itertools import product

import numpy as np
import torch
from bases import BASES, ENCODERS, one_label_at_a_time, random_base, random_encoder
from conftest import SMALL
from trl import ModelConfig, SFTConfig

from faults.shared import HEADLINES, Fault
from fintune.data.load import load_data
from fintune.errors import UserError
from fintune.model.load import load_tokenizer
from fintune.model.plain import EXACT, FITS
from fintune.model.prompt import Prompt
from fintune.model.tiny import build_tiny
from fintune.recipe.recipe import SftArguments, parse_recipe
from fintune.scoring.encoder_scorer import EncoderScorer
from fintune.scoring.label_scorer import LabelScorer

TEXTS = [*HEADLINES[::9], "x", "a much longer text, " * 6]


def architectures(fault: Fault) -> None:
    """Each random base scores 14 texts as its own forward of single rows does, or is refused in one line."""
    torch.set_num_threads(1)
    recipe = parse_recipe(["data/toy.yaml", "small.yaml", *SMALL], SftArguments, SFTConfig, ModelConfig)
    args, data = recipe.training_args, load_data(recipe.task)
    base = build_tiny("bases", recipe.task, data.splits["train"]["text"], recipe.run_args, args)
    prompt = Prompt(recipe.task, load_tokenizer(base, None, args.chat_template_path), 120)
    ways, largest = Counter(), 0.0
    for name, attention in product(BASES, ("sdpa", "eager")):
        try:
            model = random_base(name, prompt.tokenizer, attention)
        except ValueError as error:
            if "does not support an attention implementation" in str(error):  # transformers' own words
                continue
            raise
        expected = one_label_at_a_time(model, prompt, TEXTS)
        way, gap = _compared(lambda model=model: LabelScorer(model, prompt).log_likelihoods(TEXTS), expected)
        way = way or ("fast" if FITS[model] else "by its own forward")
        ways[way], largest = ways[way] + 1, max(largest, gap)
        fault.record(True, gap < EXACT, f"{name}, {attention}: {way}, {gap:.2g} nats off")
    for name in ENCODERS:
        model, encoder = random_encoder(name, TEXTS)
        scorer = EncoderScorer(model, encoder)
        expected = np.concatenate([EncoderScorer(model, encoder).probabilities([text]) for text in TEXTS])
        way, gap = _compared(lambda scorer=scorer: scorer.probabilities(TEXTS), expected)
        ways[way or "encoder"], largest = ways[way or "encoder"] + 1, max(largest, gap)
        fault.record(True, gap < EXACT, f"{name}: {gap:.2g} of a probability off")
    fault.measured = ", ".join(f"{count} {way}" for way, count in ways.items()) + f"; at most {largest:.1g} off"


def _compared(run, expected: np.ndarray) -> tuple[str, float]:
    """How it went where it was no score, and the largest difference."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return "", float(np.abs(run() - expected).max())
        except UserError as error:
            return "refused", np.inf if "\n" in str(error) else 0.0
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:200]}", np.inf
