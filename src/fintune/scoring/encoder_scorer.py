"""Label probabilities of an encoder with a classification head."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from fintune.data.inputs import Input
from fintune.model.encoder import EncoderInput

SAME = 1e-4  # of a probability, in float32


class EncoderScorer:
    """Scores texts with one encoder; see `fintune.scoring.scorer.Scorer`.

    Texts of several lengths go together, padded, which almost every encoder masks. Fourier transforms (FNet),
    convolutions (ConvBERT) and downsampling (CANINE) mix padding into a text, so in the first such batch the shortest
    text is scored alone too; where that differs by more than 1e-4 of a probability, every text is scored alone.
    """

    def __init__(self, model: PreTrainedModel, encoder: EncoderInput):
        self.model, self.encoder = model, encoder
        self._reads_padding: bool | None = None  # not known before the first batch with padding

    @property
    def exact(self) -> bool:
        """Whether it computes in float32."""
        return self.model.dtype == torch.float32

    def probabilities(self, inputs: Sequence[Input], progress: str | None = None) -> np.ndarray:
        """(texts, labels) of `scores`."""
        return self.scores(inputs, progress)[0]

    @torch.no_grad()
    def scores(self, inputs: Sequence[Input], progress: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(texts, labels) probabilities in float64, in the order of `inputs` and of the label ids; (texts,) whether
        the end of each was not read.

        Args:
            progress: title of a progress bar; None shows none.
        """
        scores = np.empty((len(inputs), self.model.config.num_labels))
        truncated = np.zeros(len(inputs), bool)
        training = self.model.training
        self.model.eval()
        for places, batch, cut in self.encoder.batches(inputs, self.model.device, progress):
            truncated[places] = cut
            own = batch["input_ids"] != self.encoder.tokenizer.pad_token_id  # which no text holds
            if self._reads_padding is None and not own.all():
                self._reads_padding = self._differs_alone(batch, own)
            alone = range(len(places)) if self._reads_padding else ()
            scores[places] = np.concatenate(
                [self._scores(_row(batch, own, row)) for row in alone] or [self._scores(batch)]
            )
        self.model.train(training)
        return scores, truncated

    def _scores(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        return torch.softmax(self.model(**batch).logits.double(), dim=-1).cpu().numpy()

    def _differs_alone(self, batch: Mapping[str, torch.Tensor], own: torch.Tensor) -> bool:
        """Whether the shortest text of a batch scores otherwise without the others, which is said."""
        row = own.sum(dim=1).argmin().item()
        gap = np.abs(self._scores(batch)[row] - self._scores(_row(batch, own, row))[0]).max()
        if gap <= SAME:
            return False
        name = type(self.model).__name__
        print(
            f"scoring: {name} reads padding ({gap:.2g} of a probability), so texts are scored alone", file=sys.stderr
        )
        return True

    def further_metrics(self, inputs: Sequence[Input], correct: np.ndarray) -> dict:
        """Empty: an encoder can only answer with a label."""
        return {}

    def merge(self) -> None:
        """Nothing to merge: every weight was trained in place."""

    def save_pretrained(self, folder: Path) -> None:
        """Write model and tokenizer in `from_pretrained` form."""
        self.model.save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)

    def save_merged(self, folder: Path, run_dir: Path) -> None:
        """As `save_pretrained`: the files need nothing of this project."""
        self.save_pretrained(folder)

    def reloaded(self, folder: Path) -> "EncoderScorer":
        """The scorer of what `save_merged` wrote, read as anyone would read it; this one's model is given up."""
        dtype, device = self.model.dtype, self.model.device
        self.model = None  # frees it: two of them might not fit
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        ).to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return EncoderScorer(model, EncoderInput(tokenizer, model.config, self.encoder.max_length))


def _row(batch: Mapping[str, torch.Tensor], own: torch.Tensor, row: int) -> dict[str, torch.Tensor]:
    """One text of a batch without its padding."""
    return {key: values[row : row + 1, own[row]] for key, values in batch.items()}
