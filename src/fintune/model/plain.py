"""What a model itself says: its own forward on whole rows, and whether a faster way says the same.

Training and scoring have fast paths (`training/shared_prefix.py`, `scoring/label_scorer.py`) that replace a model's
attention. Windows, sinks, soft caps, state spaces and layers that drop keywords do not fit them, so each is compared
with the model's own forward on a few rows before it is used.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedModel

from fintune.errors import UserError
from fintune.model.forward import evaluation

EXACT = 1e-3  # nats in float32; seen are 1e-6 to 1e-4
ROUNDINGS = (
    5  # in 16 bits: times what rounding the embeddings once more changes; seen are 0 to 3.4, wrong ones 5 to 380
)

# base -> tokens of the longest prompt on which the scorer's tree gave its own scores; None where it once did not
FITS: WeakKeyDictionary[PreTrainedModel, int | None] = WeakKeyDictionary()


def log_likelihoods(model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> np.ndarray:
    """(rows,) log P(answer | prompt) by the model's own forward, summed over the answer's tokens, in nats.

    Rows of one length go together, so that nothing is padded or masked: an answer costs a forward of its whole row.
    """
    scores, device = np.empty(len(prompts)), model.device
    rows = [prompt + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True)]  # the last is never read
    floats = 2 ** (24 if device.type == "cpu" else 28)  # of logits
    vocabulary = model.get_output_embeddings().weight.shape[0]
    with evaluation(model):
        for length, alike in groupby(
            sorted(range(len(rows)), key=lambda row: -len(rows[row])), lambda row: len(rows[row])
        ):
            alike, at_once = list(alike), max(1, floats // (vocabulary * length))
            for some in (alike[start : start + at_once] for start in range(0, len(alike), at_once)):
                ids = torch.tensor([rows[row] for row in some], device=device)
                logits = model(input_ids=ids, use_cache=False).logits
                for row, own in zip(some, logits, strict=True):
                    answer = torch.tensor(answers[row], device=device)
                    log_probs = own[-len(answer) :].float().log_softmax(-1).double()
                    scores[row] = log_probs.gather(1, answer[:, None]).sum().item()
    return scores


def misfit(
    model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]], fast: Callable[[], np.ndarray]
) -> str | None:
    """How a fast path's log-likelihoods of these rows differ from the model's own; None where they do not.

    Bounds: 1e-3 nats in float32. In 16 bits nothing is exact, the model's own forward neither: what it changes by
    where the embeddings are rounded once more, at random, is measured on the same rows, and a fast path may differ by
    5 times that, for each layer rounds too.

    Raises:
        UserError: the model's own forward fails, or looks ahead.
    """
    try:
        own = log_likelihoods(model, prompts, answers)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UserError(
            f"{model.config.name_or_path}: its own forward fails with attention {model.config._attn_implementation}: "
            f"{_line(error)}; set another `attn_implementation`, such as eager"
            f"{', or other `lora_target_modules`' if hasattr(model, 'peft_config') else ''}, or take another model"
        ) from error
    try:
        found, why = fast(), None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever kind: layers of other shapes, caches without keys, refused keywords
        found, why = own, _line(error)
    may = EXACT
    if model.dtype != torch.float32:
        with _rounded_embeddings(model):
            may = max(may, ROUNDINGS * np.abs(log_likelihoods(model, prompts, answers) - own).max())
    largest = np.abs(found - own).max()
    if why is None and largest <= may:
        return None
    if any(abs(_seen_ahead(model, prompt)) > may for prompt in prompts):
        raise UserError(
            f"{model.config.name_or_path}: {type(model).__name__} looks ahead, so it has no answer to what a text is "
            "followed by; train it with train_cls.py, which is for encoders"
        )
    return why or f"{largest:.2g} nats off, where rounding explains {may:.2g}"  # also NaN


def check_longest(model: PreTrainedModel, row: list[int], length: int, **settings) -> None:
    """Refuse a model that cannot be trained on so many tokens, such as one that has fewer positions.

    Args:
        row: token ids of a text; its first one fills the row up.
        settings: of the forward.

    Raises:
        UserError: the forward fails.
    """
    ids, training = torch.tensor([[*row[:1] * (length - len(row)), *row]], device=model.device), model.training
    try:
        with torch.random.fork_rng(), torch.no_grad():
            model.train()(input_ids=ids, **settings)
        model.train(training)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UserError(
            f"{model.config.name_or_path}: its forward fails on {length} tokens, which `max_length` allows "
            f"({_line(error)}); lower it, or take another model"
        ) from error


def _seen_ahead(model: PreTrainedModel, prompt: list[int]) -> float:
    """What seeing a prompt's second half changes in the log-likelihood of its first token: 0 in a causal model."""
    half = len(prompt) // 2
    begins = [prompt[:half], prompt[:half], prompt[: half + 1]]
    alone, whole, rest = log_likelihoods(model, begins, [prompt[half : half + 1], prompt[half:], prompt[half + 1 :]])
    return whole - rest - alone


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


@contextmanager
def _rounded_embeddings(model: PreTrainedModel) -> Iterator[None]:
    """Each number off by up to half a unit in its last place."""
    generator = torch.Generator(model.device).manual_seed(0)
    half = torch.finfo(model.dtype).eps / 2

    def off(module, inputs, embedded: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(embedded.shape, generator=generator, device=embedded.device) * 2 - 1
        return (embedded.float() * (1 + half * noise)).to(embedded.dtype)

    hook = model.get_input_embeddings().register_forward_hook(off)
    try:
        yield
    finally:
        hook.remove()
