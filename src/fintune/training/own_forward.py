"""Which trainer fits a base, and the one for bases that need their own forward: padded rows, their logits in full."""

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from fintune.errors import UserError
from fintune.model.forward import evaluation, own_attention
from fintune.model.plain import misfit
from fintune.model.prompt import IGNORE
from fintune.training.shared_prefix import SharedPrefixCollator, SharedPrefixTrainer


def choose_trainer(
    collator: SharedPrefixCollator | None,
    model: PreTrainedModel | PeftModel,
    *datasets: Dataset,
    router_aux_loss_coef: float | None = None,
) -> tuple[type[SFTTrainer], SharedPrefixCollator | None]:
    """The trainer of a recipe's `batching` and its collator, or, with a printed line, one for padded rows.

    The loss of three rows, the shortest, the longest, which a window may cut, and one between, is compared with that
    of the base's own forward of each: six forwards of a row, and in 16 bits nine.

    Args:
        collator: of `SharedPrefixCollator.of`.
        model: with the adapter that is trained: one on the whole of a layer's attention hides it from the fast path.
        datasets: those that will be trained on and evaluated.
        router_aux_loss_coef: of SFTConfig; None is the base's own.

    Raises:
        UserError: the rows have weights, which padded rows would lose; the base's own forward fails or looks ahead;
            it has no router whose loss could be weighted.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    router = _router_coefficient(model, router_aux_loss_coef)
    if collator and router:
        why = f"its routers' loss, `router_aux_loss_coef` {router:g}, is a mean over the tokens of padded rows"
    else:
        why = _misfit(collator, model, datasets)
    if why is None:
        return (SharedPrefixTrainer if collator else SFTTrainer), collator
    said = f"{model.config.name_or_path} does not fit `batching: {'shared_prefix' if collator else 'padded'}` ({why})"
    if any("weight" in dataset.column_names for dataset in datasets):
        raise UserError(f"{said}, and without it there are no `class_weights`; leave them out, or take another base")
    if collator and router and _misfit(None, model, datasets) is None:
        print(f"batching: {said}; its rows are padded: slower (`router_aux_loss_coef: 0` leaves that loss out)")
        return SFTTrainer, None
    print(
        f"batching: {said}; its rows are padded and read by its own forward, attention {own_attention(model)}: slower"
    )
    return OwnForwardTrainer, None


def _router_coefficient(model: PreTrainedModel, stated: float | None) -> float:
    """What SFTTrainer multiplies the load-balancing loss of a mixture of experts by; 0 where it adds none."""
    config = model.config.get_text_config()
    if hasattr(config, "output_router_logits"):
        return getattr(config, "router_aux_loss_coef", 0.0) if stated is None else stated
    if stated:
        raise UserError(
            f"`router_aux_loss_coef` is {stated:g}: {type(model).__name__} has no routers that say what they chose; "
            "take it out"
        )
    return 0.0


def _misfit(
    collator: SharedPrefixCollator | None, model: PreTrainedModel, datasets: tuple[Dataset, ...]
) -> str | None:
    """How the loss of a `batching` differs from the base's own on three of the rows; None where it does not."""
    lengths = [[len(ids) for ids in dataset["input_ids"]] for dataset in datasets]
    places = sorted((n, number, row) for number, some in enumerate(lengths) for row, n in enumerate(some))
    rows = [datasets[number][row] for _, number, row in (places[0], places[-1], places[len(places) // 2])]
    answers = [[token for token in row["labels"] if token != IGNORE] for row in rows]
    prompts = [row["input_ids"][: -len(answer)] for row, answer in zip(rows, answers, strict=True)]
    log_probs = collator.log_probs if collator else _by_trl
    return misfit(model, prompts, answers, lambda: log_probs(model, rows))


def _by_trl(model: PreTrainedModel, rows: list[dict]) -> np.ndarray:
    """(rows,) log-likelihoods of the label tokens by the head that SFTTrainer computes its loss with."""
    before, config = vars(model).get("forward"), model.config.get_text_config()
    # which it asks every base for whose config has both keys
    router = hasattr(config, "output_router_logits") and getattr(config, "router_aux_loss_coef", 0.0) != 0.0
    asked = {"fused_lm_head": True, "use_cache": False} | ({"output_router_logits": True} if router else {})
    add_fused_lm_head(model)
    try:
        with evaluation(model):
            found = []
            for row in rows:
                given = {key: torch.tensor([row[key]], device=model.device) for key in ("input_ids", "labels")}
                found.append(model(**given, **asked).log_probs.sum().item())
            return np.array(found)
    finally:
        del model.forward
        if before is not None:
            model.forward = before


class OwnForwardTrainer(SFTTrainer):
    """SFTTrainer whose loss is read from the logits of the model's own forward.

    TRL multiplies the last states by the head itself, which leaves out what a model does between (ModernBERT), and
    asks MoE outputs for fields that some do not have (Llama 4, Doge).
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.loss_type != "nll":
            raise UserError(
                f"loss_type is {self.args.loss_type!r}, which this base's own forward does not have; take nll"
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy of label tokens, summed and divided by the step's label tokens, and the routers' as TRL's."""
        asked = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**{key: value for key, value in inputs.items() if key != "labels"}, use_cache=False, **asked)
        labels = inputs["labels"][:, 1:]
        logits, labels = outputs.logits[:, :-1][labels != IGNORE].float(), labels[labels != IGNORE]
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.args.label_smoothing_factor)
        loss = loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is of all processes
        if self.aux_loss_enabled:
            loss = loss + self._routers_loss(outputs, num_items_in_batch)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["mean_token_accuracy"].append((logits.argmax(dim=-1) == labels).float().mean().item())
        return (loss, outputs) if return_outputs else loss

    def _routers_loss(self, outputs, num_items_in_batch) -> torch.Tensor | float:
        """A mean of each micro-batch, so that of a step is divided among them; 0 where the base computes none."""
        if getattr(outputs, "aux_loss", None) is None:  # such as Llama 4's and Doge's
            if self.args.router_aux_loss_coef:
                raise UserError(
                    f"`router_aux_loss_coef` is {self.args.router_aux_loss_coef:g}, and this base's own forward gives "
                    "no loss of its routers; take it out"
                )
            return 0.0
        steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        return self.router_aux_loss_coef * outputs.aux_loss / steps
