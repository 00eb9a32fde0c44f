"""SFTTrainer for short texts: the rows of a micro-batch share one sequence, and one copy of their instruction.

`batching: padded` is TRL's own SFTTrainer to the bit. `shared_prefix` packs [instruction | rest 1 | rest 2 | ...]:
rows cannot see each other and keep their positions, so loss and gradients equal those of separate rows.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import DynamoBackend
from datasets import Dataset
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel
from trl import SFTTrainer

from fintune.errors import UserError
from fintune.model.adapted_layers import FusedLayers
from fintune.model.attention import SHARED_PREFIX, causal_masks
from fintune.model.forward import common_prefix, evaluation, last_mlp_at, set_attention
from fintune.model.fused import keep
from fintune.model.load import is_sharded
from fintune.model.prompt import IGNORE


@dataclass
class SharedPrefixCollator:
    """Packs rows of `input_ids` and `labels` into one sequence.

    Attributes:
        shared: tokens at the beginning of every row that are stored once.
    """

    shared: int

    @classmethod
    def of(cls, batching: str, *datasets: Dataset) -> "SharedPrefixCollator | None":
        """The collator of a recipe's `batching` for these rows; None, TRL's own, for `padded`.

        Raises:
            UserError: the rows have weights, which TRL's own trainer would drop.
        """
        if batching == "padded":
            if any("weight" in dataset.column_names for dataset in datasets):
                raise UserError("`class_weights` with `batching: padded`: set batching to shared_prefix")
            return None
        return cls(common_prefix([ids for dataset in datasets for ids in dataset["input_ids"]]))

    def log_probs(self, model: PreTrainedModel, rows: list[dict]) -> np.ndarray:
        """(rows,) log-likelihoods of the label tokens of rows that share one line."""
        batch = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in self(rows).items()}
        labels, lengths = batch.pop("labels")[0], [sum(token != IGNORE for token in row["labels"]) for row in rows]
        for key in ("lengths", "weights", "mean_length"):  # of the trainer
            del batch[key]
        with evaluation(model, SHARED_PREFIX), last_mlp_at(model, batch["logits_to_keep"]):
            logits = model(**batch, use_cache=False).logits[0]
        found = -F.cross_entropy(logits.float(), labels, reduction="none").double()
        return np.array([part.sum().item() for part in found.split(lengths)])

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """
        Returns:
            lengths (rows,): tokens of each row, shared ones and the end included; input_ids, position_ids (1, T),
            without the rows' end tokens, which are predicted and never read; key_tokens, cu_seq_lens_q, cu_seq_lens_k,
            max_length_q, max_length_k: what sees what, of `shared_prefix_attention`, the shared tokens being a
            sequence of their own; logits_to_keep (n,): where a label token is predicted; labels (1, n): which;
            weights (n,): of the rows they belong to; mean_length: tokens of a row, the mean.
        """
        shared = self.shared
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        rests = lengths - shared - 1
        ids, targets, weights = rows[0]["input_ids"][:shared], [IGNORE] * shared, [1.0] * shared
        for row in rows:
            ids = ids + row["input_ids"][shared:-1]
            targets = targets + row["labels"][shared + 1 :]
            weights = weights + [row.get("weight", 1.0)] * (len(row["input_ids"]) - shared - 1)
        targets = torch.tensor(targets)
        where = (targets != IGNORE).nonzero().squeeze(1)
        first = torch.arange(shared)
        position = [first, *(torch.arange(shared, n - 1) for n in lengths)]
        own = torch.arange(shared, len(ids)).split(rests.tolist())
        keys = [first, *(torch.cat([first, tokens]) for tokens in own)] if shared else list(own)
        queries = [first, *own] if shared else own
        return {
            "lengths": lengths,  # first: the Trainer reads the number of rows from it
            "input_ids": torch.tensor(ids)[None],
            "position_ids": torch.cat(position)[None],
            "key_tokens": torch.cat(keys),
            "cu_seq_lens_q": _begins(queries),
            "cu_seq_lens_k": _begins(keys),
            "max_length_q": max(map(len, queries)),
            "max_length_k": max(map(len, keys)),
            "logits_to_keep": where,
            "labels": targets[None, where],
            "weights": torch.tensor(weights)[where],
            "mean_length": lengths.float().mean().item(),
        }


def _begins(sequences: list[torch.Tensor]) -> torch.Tensor:
    return F.pad(torch.tensor([len(tokens) for tokens in sequences]).cumsum(0, dtype=torch.int32), (1, 0))


class CheapDropout(torch.nn.Dropout):
    """LoRA's dropout of layers that are not fused, with `keep`'s cheap draw on the CPU."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.training or hidden.device.type != "cpu":
            return super().forward(hidden)
        kept = keep(hidden.numel(), self.p, hidden.device).view(hidden.shape)
        return (hidden * (1 / (1 - self.p))).mul_(kept)  # one byte an element is kept for the gradient


class SharedPrefixTrainer(SFTTrainer):
    """SFTTrainer on `SharedPrefixCollator` batches: the head reads label positions alone.

    NEFTune is the Trainer's own (Jain et al. 2023, arXiv 2310.05914). Its hook draws noise uniform in [-1, 1] x
    alpha / sqrt(L d), L being the length of the tensor it sees, here that of several rows
    (huggingface/transformers#34659). So alpha is set anew for each batch, for the noise to have the size that it has
    for a row of mean length on its own.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._loss_shifts_labels = False  # every label of a packed batch is a target, also its first
        plain = self.accelerator.unwrap_model(self.model)
        set_attention(plain.get_base_model() if isinstance(plain, PeftModel) else plain, SHARED_PREFIX)
        self._embeddings = plain.get_input_embeddings()
        self._fused = FusedLayers(plain) if FusedLayers.fit(plain) and not is_sharded(self) else None
        if self.args.torch_compile:
            if self._fused is None:
                raise UserError("`torch_compile` compiles LLaMA's and Qwen3's layers with plain LoRA; leave it out")
            self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO  # which would compile the whole model
            self._fused.compile(self.args.torch_compile_backend, self.args.torch_compile_mode)
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                for name, dropout in module.lora_dropout.items():
                    if isinstance(dropout, torch.nn.Dropout):  # Identity where lora_dropout is 0
                        module.lora_dropout[name] = CheapDropout(dropout.p)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["input_ids", "labels", "weight"]  # other columns are removed

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy of label tokens, summed and divided by the step's label tokens, as TRL does.

        Class weights average 1 over the training rows, so they multiply the sum and leave the divisor alone.
        """
        inputs = dict(inputs)
        labels, weights, _ = inputs.pop("labels")[0], inputs.pop("weights"), inputs.pop("lengths")
        longer = inputs["input_ids"].shape[1] / inputs.pop("mean_length")
        if hasattr(self._embeddings, "neftune_noise_alpha"):  # while the Trainer's hook is there
            self._embeddings.neftune_noise_alpha = self.args.neftune_noise_alpha * math.sqrt(longer)
        plain = self.accelerator.unwrap_model(model)
        sparing, columns = nullcontext(), inputs["logits_to_keep"]
        if self._fused:
            dtype = torch.bfloat16 if self.args.bf16 else plain.dtype
            inputs |= self._fused.inputs(dtype, inputs["position_ids"], inputs.pop("logits_to_keep"), model.training)
            if columns.device.type == "cpu":
                inputs["masks"] = causal_masks(inputs["cu_seq_lens_q"], inputs["cu_seq_lens_k"], dtype)
        elif not (self.args.gradient_checkpointing and model.training):  # which computes the forward once more
            sparing = last_mlp_at(plain, columns)
        # autocast casts by itself: 1,000 operations fewer
        with sparing, disable_input_dtype_casting(model, active=self.args.bf16 and not self._fused):
            logits = model(**inputs, use_cache=False).logits[0]
        smoothing = self.args.label_smoothing_factor
        loss = (F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing) * weights).sum()
        loss = loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is of all processes
        mode = "train" if self.model.training else "eval"
        accuracy = (logits.detach().argmax(dim=-1) == labels).float().mean()
        self._metrics[mode]["mean_token_accuracy"].append(accuracy)  # read in `log`: a GPU would have to end first
        return (loss, {"logits": logits}) if return_outputs else loss

    def log(self, logs, start_time=None):
        for metrics in self._metrics.values():
            metrics.update({name: [float(value) for value in values] for name, values in metrics.items()})
        super().log(logs, start_time)
