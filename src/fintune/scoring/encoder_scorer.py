"""Label probabilities of an encoder with a classification head."""

from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from fintune.model.encoder import EncoderInput

AT_ONCE = 8192  # texts that are tokenised and sorted together: memory does not grow with their number


class EncoderScorer:
    """Scores texts with one encoder; see `fintune.scoring.scorer.Scorer`."""

    def __init__(self, model: PreTrainedModel, encoder: EncoderInput):
        self.model, self.encoder = model, encoder

    @torch.no_grad()
    def probabilities(self, texts: list[str], progress: str | None = None) -> np.ndarray:
        """(texts, labels) probabilities in float64, in the order of `texts` and of the label ids.

        Args:
            progress: title of a progress bar; None shows none.
        """
        tokens_per_batch = 4096 if self.model.device.type == "cpu" else 65536
        scores = np.empty((len(texts), self.model.config.num_labels))
        training = self.model.training
        self.model.eval()
        with tqdm(total=len(texts), desc=progress, disable=progress is None) as bar:
            for start in range(0, len(texts), AT_ONCE):
                rows = self.encoder.encode(texts[start : start + AT_ONCE])
                order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))  # little padding
                while order:
                    size = max(1, tokens_per_batch // max(1, len(rows[order[0]])))
                    at_once, order = order[:size], order[size:]
                    ids = {"input_ids": [rows[row] for row in at_once]}
                    batch = self.encoder.tokenizer.pad(ids, return_tensors="pt")
                    logits = self.model(**batch.to(self.model.device)).logits
                    probabilities = torch.softmax(logits.double(), dim=-1).cpu().numpy()
                    scores[[start + row for row in at_once]] = probabilities
                    bar.update(len(at_once))
        self.model.train(training)
        return scores

    def further_metrics(self, texts: list[str]) -> dict:
        """Empty: an encoder can only answer with a label."""
        return {}

    def merge(self) -> None:
        """Nothing to merge: every weight was trained in place."""

    def save_merged(self, folder: Path, run_dir: Path) -> None:
        """Write model and tokenizer in `from_pretrained` form."""
        self.model.save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)

    def reloaded(self, folder: Path) -> "EncoderScorer":
        """The scorer of what `save_merged` wrote, read as anyone would read it; this one's model is given up."""
        dtype, device = self.model.dtype, self.model.device
        self.model = None  # frees it: two of them might not fit
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        ).to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return EncoderScorer(model, EncoderInput(tokenizer, model.config, self.encoder.max_length))
