"""Trainer for encoders: batches of like length that resume exactly, and a loss that class weights fit into."""

import torch
from datasets import Dataset
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler


class LengthGrouped(LengthGroupedSampler):
    """transformers' sampler, each epoch's order drawn from the seed: a resumed epoch goes on in its own."""

    def __init__(self, *args, seed: int, **kwargs):
        super().__init__(*args, generator=torch.Generator(), **kwargs)
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class EncoderTrainer(Trainer):
    """Trainer whose `group_by_length` resumes within an epoch."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None):
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or self.args.world_size > 1:
            return super()._get_train_sampler(rows)
        at_once = self.args.train_batch_size * self.args.gradient_accumulation_steps
        lengths = [len(ids) for ids in rows["input_ids"]]
        return LengthGrouped(at_once, lengths=lengths, seed=self.args.data_seed or self.args.seed)


def label_logits(logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
    """The (rows, labels) logits of what a Trainer collects; T5 returns its encoder's states after them."""
    return logits[0] if isinstance(logits, tuple) else logits


def loss_of(weights: list[float] | None, label_smoothing: float = 0.0):
    """A Trainer's `compute_loss_func`: cross-entropy, times the weight of the row's class where there are weights.

    Summed and divided by the rows of the step, not of the micro-batch as in the models' own losses, so that
    gradient accumulation and several processes change nothing. Class weights average 1 over the training rows, so
    they leave the divisor alone.
    """

    def loss(outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
        logits, by_class = outputs.logits.float(), None if weights is None else torch.tensor(weights).to(labels.device)
        settings = {"reduction": "sum", "label_smoothing": label_smoothing}
        total = torch.nn.functional.cross_entropy(logits, labels, by_class, **settings)
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def accuracy(prediction) -> dict[str, float]:
    """`eval_accuracy` of an evaluation on the validation split: what early stopping looks at."""
    return {"accuracy": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}
