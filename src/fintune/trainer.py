"""SFTTrainer for short texts: rows of an update share one line, and one copy of the instruction they begin with.

`batching: padded` is TRL's own SFTTrainer to the bit. `packed` lays rows behind each other without padding:
[row 1 | row 2 | ...]. `shared_prefix` computes the instruction once: [instruction | rest 1 | rest 2 | ...].
Rows are blind to each other and keep their positions, so loss and gradients equal those of separate rows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from datasets import Dataset
from trl import SFTTrainer

from fintune.prompt import IGNORE
from fintune.scoring import common_prefix


@dataclass
class OneLine:
    """Collates rows of `input_ids` and `labels` into one line.

    Attributes:
        shared: tokens at the beginning of every row that are laid down once; 0 lays the rows down whole.
    """

    shared: int

    @classmethod
    def of(cls, batching: str, *datasets: Dataset) -> "OneLine | None":
        """The collator of a recipe's `batching` for these rows; None, TRL's own, for `padded`."""
        if batching == "padded":
            return None
        rows = [ids for dataset in datasets for ids in dataset["input_ids"]]
        return cls(common_prefix(rows) if batching == "shared_prefix" else 0)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """
        Returns:
            lengths (rows,): tokens of each row, shared ones included; input_ids, labels, position_ids (1, T);
            attention_mask (1, 1, T, T) bool, True where a token (third axis) sees another; token_lengths (1, T):
            length of the row that a token belongs to, for shared tokens the rows' mean.
        """
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        rests = lengths - self.shared
        ids = rows[0]["input_ids"][: self.shared] + [
            token for row in rows for token in row["input_ids"][self.shared :]
        ]
        labels = [IGNORE] * self.shared + [label for row in rows for label in row["labels"][self.shared :]]
        segment = torch.cat([torch.full((self.shared,), -1), torch.repeat_interleave(torch.arange(len(rows)), rests)])
        position = torch.cat([torch.arange(self.shared), *(torch.arange(self.shared, n) for n in lengths)])
        mean = lengths.float().mean().expand(self.shared)
        seen = (segment[:, None] == segment) | (segment == -1)
        return {
            "lengths": lengths,  # first: the Trainer reads the number of rows from it
            "input_ids": torch.tensor(ids)[None],
            "labels": torch.tensor(labels)[None],
            "position_ids": position[None],
            "attention_mask": seen.tril()[None, None],
            "token_lengths": torch.cat([mean, torch.repeat_interleave(lengths.float(), rests)])[None],
        }


class OneLineTrainer(SFTTrainer):
    """SFTTrainer on `OneLine` batches: the head reads label positions alone, NEFTune's noise knows each row's length.

    NEFTune (Jain et al. 2023, arXiv 2310.05914) draws noise uniform in [-1, 1] x alpha / sqrt(L d). transformers takes
    for L the tensor's length, here that of several rows (huggingface/transformers#34659), so the noise is added here.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.neftune_noise_alpha = None  # no hook of the Trainer's
        self._token_lengths = None
        embeddings = self.accelerator.unwrap_model(self.model).get_input_embeddings()
        embeddings.register_forward_hook(self._add_noise)

    def _add_noise(self, module, inputs, embedded: torch.Tensor) -> torch.Tensor:
        alpha = self.args.neftune_noise_alpha
        if self._token_lengths is None or alpha is None or not module.training:
            return embedded
        scale = alpha / (self._token_lengths * embedded.size(-1)).sqrt()
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * scale[..., None].to(embedded.dtype)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy of label tokens, summed and divided by the update's label tokens, as TRL does."""
        inputs = dict(inputs)
        labels, _ = inputs.pop("labels"), inputs.pop("lengths")
        targets = labels[0, 1:]
        where = (targets != IGNORE).nonzero().squeeze(1)
        self._token_lengths = inputs.pop("token_lengths")
        try:
            logits = model(**inputs, logits_to_keep=where, use_cache=False).logits[0]
        finally:
            self._token_lengths = None
        loss = F.cross_entropy(logits.float(), targets[where], reduction="sum")
        loss = loss / (len(where) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is of all processes
        mode = "train" if self.model.training else "eval"
        accuracy = (logits.detach().argmax(dim=-1) == targets[where]).float().mean()
        self._metrics[mode]["mean_token_accuracy"].append(accuracy.item())
        return (loss, {"logits": logits}) if return_outputs else loss
