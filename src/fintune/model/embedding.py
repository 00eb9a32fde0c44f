"""Texts as vectors of a frozen encoder: the mean of its last hidden states, scaled to length 1.

It is what sentence-transformers computes for all-MiniLM-L6-v2 (its `1_Pooling` and `2_Normalize`), after Reimers and
Gurevych, Sentence-BERT, https://arxiv.org/abs/1908.10084.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModel, PreTrainedModel

from fintune.data.inputs import Input
from fintune.errors import UserError
from fintune.model.encoder import EncoderInput, check_tokenizer, refuse_damaged
from fintune.model.load import load_tokenizer, missing_model
from fintune.model.plain import check_longest

SAME = 1e-4  # of an embedding's length 1, in float32


class Embedder:
    """A frozen encoder in the place of scikit-learn's vectorizers.

    Attributes:
        encoder: turns texts into the token ids that the model reads.
    """

    def __init__(self, model: PreTrainedModel, encoder: EncoderInput, progress: str | None = None):
        """
        Args:
            progress: title of a progress bar; None shows none.
        """
        self.model, self.encoder, self.progress = model.eval().requires_grad_(False), encoder, progress

    def transform(self, inputs: Sequence[Input]) -> np.ndarray:
        """(texts, hidden size) of `embed`."""
        return self.embed(inputs)[0]

    @torch.no_grad()
    def embed(self, inputs: Sequence[Input]) -> tuple[np.ndarray, np.ndarray]:
        """(texts, hidden size) in float64, in the order of `inputs`, where every row has length 1; (texts,) whether
        each lost its end.
        """
        vectors, truncated = np.empty((len(inputs), self.model.config.hidden_size)), np.zeros(len(inputs), bool)
        for places, batch, cut in self.encoder.batches(list(inputs), self.model.device, self.progress):
            states = self.model(**batch).last_hidden_state
            vectors[places] = mean_pooled(states, batch["attention_mask"]).double().cpu().numpy()
            truncated[places] = cut
        return vectors, truncated


def mean_pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over a text's tokens, special ones included and padding left out, scaled to length 1.

    Args:
        states: (texts, tokens, hidden size).
        mask: (texts, tokens), 0 where a token is padding.

    Returns:
        (texts, hidden size).
    """
    mask = mask.unsqueeze(-1).to(states.dtype)
    return torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


def load_embedder(
    base: str, revision: str | None, max_length: int, texts: list[str], progress: str | None = None
) -> Embedder:
    """An encoder in float32 without a head, on the GPU where there is one.

    Args:
        max_length: tokens of a text with its special tokens; longer texts are truncated.
        texts: what it is checked on, see `check_tokenizer` and `_check_model`; none where it was checked before.
        progress: title of a progress bar; None shows none.

    Raises:
        UserError: the model is missing, gated, pickled, has a decoder or lacks weights; its tokenizer is not its own;
            it cannot read `max_length` tokens, or reads padding.
    """
    tokenizer = load_tokenizer(base, revision)
    if texts:
        check_tokenizer(tokenizer, base, revision, texts)
    with missing_model(base):
        model, loading = AutoModel.from_pretrained(
            base,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if model.config.is_encoder_decoder:
        raise UserError(f"model {base}: it has a decoder, whose states are no embedding; take an encoder such as BERT")
    refuse_damaged(base, loading["missing_keys"])
    print(f"model: {base} in {model.dtype}, {model.num_parameters():,} parameters, frozen")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    if texts:
        _check_model(Embedder(model, EncoderInput(tokenizer, model.config, max_length)), base, texts)
    return Embedder(model, EncoderInput(tokenizer, model.config, max_length), progress)


def _check_model(embedder: Embedder, base: str, texts: list[str]) -> None:
    pair = [min(texts, key=len), max(texts, key=len)]
    check_longest(embedder.model, embedder.encoder.encode(pair[:1])[0], embedder.encoder.max_length)
    gap = np.abs(embedder.transform(pair)[0] - embedder.transform(pair[:1])[0]).max()
    if gap > SAME:
        raise UserError(
            f"model {base}: {type(embedder.model).__name__} reads padding, so that a text's embedding depends on its "
            f"neighbours (by {gap:.2g} of its length 1); take an encoder such as BERT"
        )
