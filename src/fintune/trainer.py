"""SFTTrainer for short texts: rows of an update share one line, and one copy of the instruction they begin with.

`batching: padded` is TRL's own SFTTrainer to the bit. `packed` lays rows behind each other without padding:
[row 1 | row 2 | ...]. `shared_prefix` computes the instruction once: [instruction | rest 1 | rest 2 | ...].
Rows are blind to each other and keep their positions, so loss and gradients equal those of separate rows.
"""

from dataclasses import dataclass

from fintune.prompt import IGNORE
from fintune.scoring import common_prefix

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from trl import SFTTrainer


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
            lengths (rows,): tokens of each row, shared ones and the end included; input_ids, position_ids (1, T),
            without the rows' end tokens, which are predicted and never read; attention_mask (1, 1, T, T) bool, True
            where a token (third axis) sees another; logits_to_keep (n,): where a label token is predicted, and labels
            (1, n), which; token_lengths (1, T): length of a token's row, for shared tokens the rows' mean.
        """
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        rests = lengths - self.shared - 1
        ids, targets = rows[0]["input_ids"][: self.shared], [IGNORE] * self.shared
        for row in rows:
            ids = ids + row["input_ids"][self.shared : -1]
            targets = targets + row["labels"][self.shared + 1 :]
        targets = torch.tensor(targets)
        where = (targets != IGNORE).nonzero().squeeze(1)
        segment = torch.cat([torch.full((self.shared,), -1), torch.repeat_interleave(torch.arange(len(rows)), rests)])
        seen = (segment[:, None] == segment) | (segment == -1)
        position = [torch.arange(self.shared), *(torch.arange(self.shared, n - 1) for n in lengths)]
        mean = lengths.float().mean().expand(self.shared)
        return {
            "lengths": lengths,  # first: the Trainer reads the number of rows from it
            "input_ids": torch.tensor(ids)[None],
            "position_ids": torch.cat(position)[None],
            "attention_mask": seen.tril()[None, None],
            "logits_to_keep": where,
            "labels": targets[None, where],
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
        self._loss_shifts_labels = False  # every label of a OneLine batch is a target, also its first
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
        labels, _ = inputs.pop("labels")[0], inputs.pop("lengths")
        self._token_lengths = inputs.pop("token_lengths")
        try:
            with disable_input_dtype_casting(model, active=self.args.bf16):  # autocast casts: 1,000 operations fewer
                logits = model(**inputs, use_cache=False).logits[0]
        finally:
            self._token_lengths = None
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        loss = loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is of all processes
        mode = "train" if self.model.training else "eval"
        accuracy = (logits.detach().argmax(dim=-1) == labels).float().mean()
        self._metrics[mode]["mean_token_accuracy"].append(accuracy.item())
        return (loss, {"logits": logits}) if return_outputs else loss
