"""Label probabilities of an encoder with a classification head."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from fintune.data.inputs import Input
from fintune.model.encoder import EncoderInput


class EncoderScorer:
    """Scores texts with one encoder; see `fintune.scoring.scorer.Scorer`."""

    def __init__(self, model: PreTrainedModel, encoder: EncoderInput):
        self.model, self.encoder = model, encoder

    @property
    def exact(self) -> bool:
        """Whether it computes in float32."""
        return self.model.dtype == torch.float32

    @torch.no_grad()
    def probabilities(self, inputs: Sequence[Input], progress: str | None = None) -> np.ndarray:
        """(texts, labels) probabilities in float64, in the order of `inputs` and of the label ids.

        Args:
            progress: title of a progress bar; None shows none.
        """
        scores = np.empty((len(inputs), self.model.config.num_labels))
        training = self.model.training
        self.model.eval()
        for places, batch in self.encoder.batches(inputs, self.model.device, progress):
            logits = self.model(**batch).logits
            scores[places] = torch.softmax(logits.double(), dim=-1).cpu().numpy()
        self.model.train(training)
        return scores

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
