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


def loss_of(weights: list[float] | None, label_smoothing: float = 0.0, temperature: float = 1.0):
    """A Trainer's `compute_loss_func`: cross-entropy, times the weight of the row's class where there are weights; for
    rows with a probability of each label in place of one label `distillation`.

    Summed and divided by the rows of the step, not of the micro-batch as in the models' own losses, so that
    gradient accumulation and several processes change nothing. Class weights average 1 over the training rows, so
    they leave the divisor alone.

    Args:
        temperature: of `distillation`.
    """

    def loss(outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
        logits = outputs.logits.float()
        if labels.is_floating_point():
            total = distillation(logits, labels, temperature) * labels.shape[1]  # each probability counts as an item
        else:
            by_class = None if weights is None else torch.tensor(weights).to(labels.device)
            settings = {"reduction": "sum", "label_smoothing": label_smoothing}
            total = torch.nn.functional.cross_entropy(logits, labels, by_class, **settings)
        return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    return loss


def distillation(logits: torch.Tensor, probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || pupil) in nats, summed over rows, both at the temperature, times its square (arXiv 1503.02531).

    Gradients are then of like size at every temperature. At temperature 1 they are those of cross-entropy with the
    probabilities as targets.

    Args:
        logits: (rows, labels) of the pupil.
        probabilities: (rows, labels) of the teacher, at temperature 1.
    """
    teacher = torch.softmax(probabilities.log() / temperature, dim=-1)
    pupil = torch.log_softmax(logits / temperature, dim=-1)
    return temperature**2 * torch.nn.functional.kl_div(pupil, teacher, reduction="sum")


def accuracy(prediction) -> dict[str, float]:
    """`eval_accuracy` of an evaluation on the validation split: what early stopping looks at."""
    return {"accuracy": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}
