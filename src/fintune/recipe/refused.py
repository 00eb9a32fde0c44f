"""Keys of SFTConfig, TrainingArguments and ModelConfig that would do nothing here, or end a run: refused by name.

A key is refused where its value differs from its class's default, so that a recipe of another project may state what
holds anyway. All other keys reach the Trainer, SFTTrainer, PEFT or the loading of the model.
"""

import math
from argparse import Namespace
from collections.abc import Container

from fintune.errors import UserError

_ROWS = "rows reach the trainer as token ids and labels; take it out"
_LABEL = "the label and its end alone are trained; take it out"
_PACKED = "take `batching: shared_prefix`, which packs the rows of a step and pads nothing"
_FIGURES = "an evaluation gives loss and accuracy of all rows; take it out"
_EVALUATED = "an evaluation has the precision of the training; set `bf16`"
_SCRIPT = "the script trains, evaluates by `eval_strategy` and scores the test split; take it out"
_PUSH = "send a finished run with `fintune export RUN FOLDER --push NAME`; take it out"

# of every script with a Trainer: key -> why, and what to do
TRAINER = {
    "auto_find_batch_size": "a run out of memory says which `per_device_train_batch_size` to set; take it out",
    "batch_eval_metrics": _FIGURES,
    "bf16_full_eval": _EVALUATED,
    "do_eval": _SCRIPT,
    "do_predict": _SCRIPT,
    "do_train": _SCRIPT,
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint anyway; take it out",
    "eval_do_concat_batches": _FIGURES,
    "eval_use_gather_object": _FIGURES,
    "fp16_full_eval": _EVALUATED,
    "hub_always_push": _PUSH,
    "hub_model_id": _PUSH,
    "hub_revision": _PUSH,
    "hub_strategy": _PUSH,
    "ignore_data_skip": "a resumed run goes on exactly where it stopped; take it out",
    "include_for_metrics": _FIGURES,
    "label_names": _ROWS,
    "length_column_name": "`group_by_length` counts a row's tokens; take it out",
    "local_rank": "accelerate launch and torchrun say it in the environment; take it out",
    "parallelism_config": "several GPUs train by DDP, FSDP or ZeRO-3, see configs/accelerate/; take it out",
    "prediction_loss_only": _FIGURES,
    "push_to_hub": _PUSH,
    "remove_unused_columns": _ROWS,
    "save_only_model": "a stopped run could not go on from such checkpoints; take it out",
    "use_cache": "training reads no cache; take it out",
}
SFT = TRAINER | {
    "assistant_only_loss": _LABEL,
    "completion_only_loss": _LABEL,
    "dataset_kwargs": _ROWS,
    "dataset_num_proc": _ROWS,
    "dataset_text_field": "the task's YAML names the column: `text_column`",
    "eval_packing": _PACKED,
    "fp16": "take `bf16: true`, or neither for float32",
    "liger_kernel_config": "liger-kernel's layers are used on CUDA wherever it is installed; take it out",
    "lora_task_type": "a label is read as words (CAUSAL_LM); train_cls.py trains a classification head",
    "model_init_kwargs": "`dtype`, `attn_implementation`, `model_revision` and `load_in_4bit` say how the base loads",
    "packing": _PACKED,
    "packing_strategy": _PACKED,
    "padding_free": _PACKED,
    "shuffle_dataset": "`train_sampling_strategy` says the order of the rows, random as it is; take it out",
    "trust_remote_code": "code of a model's repository is never run; take a model that transformers has the code of",
    "truncation_mode": "a long text loses its end, never the instruction or the label; take it out",
    "use_liger_kernel": "liger-kernel's layers are used on CUDA wherever it is installed; take it out",
}
SHARED_PREFIX = {
    "loss_type": "take nll, or `batching: padded`, which has TRL's losses",
    "pad_to_multiple_of": "`batching: shared_prefix` pads nothing; take it out",
}
ENCODER = TRAINER | {
    "liger_kernel_config": "liger-kernel has no layers of encoders; take it out",
    "use_liger_kernel": "liger-kernel has no layers of encoders; take it out",
}
TRACKIO = ("hub_private_repo", "project", "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id")

SAME = {"loss_type": "chunked_nll"}  # as what is trained anyway

BOUNDS = {  # key -> least, most
    "early_stopping_patience": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "label_smoothing_factor": (0, 1),
    "learning_rate": (0, math.inf),
    "lora_alpha": (1, math.inf),
    "lora_dropout": (0, 1),
    "lora_r": (1, math.inf),
    "max_length": (1, math.inf),
    "min_steps": (0, math.inf),
    "neftune_noise_alpha": (0, math.inf),
    "num_train_epochs": (0, math.inf),
    "per_device_eval_batch_size": (1, math.inf),
    "per_device_train_batch_size": (1, math.inf),
    "weight_decay": (0, math.inf),
}
METRICS = ("loss", "accuracy")  # of an evaluation, as `metric_for_best_model` may name them


def refused_keys(script: str, values: Namespace) -> dict[str, str]:
    """Key -> why it is refused, and what to do.

    Args:
        values: of the recipe's other keys, on which it can depend.
    """
    refused = dict(ENCODER if script == "train_cls.py" else SFT)
    if getattr(values, "batching", None) == "shared_prefix":
        refused |= SHARED_PREFIX
    if "trackio" not in (values.report_to or ()) and "all" not in (values.report_to or ()):
        refused |= dict.fromkeys(TRACKIO, "is of trackio, which `report_to` does not name; W&B has WANDB_PROJECT")
    if not any(name in str(values.optim) for name in ("galore", "apollo")):
        refused["optim_target_modules"] = f"is of GaLore and APOLLO; `optim` is {values.optim}"
    if str(values.lr_scheduler_type).startswith("constant"):
        refused["lr_scheduler_kwargs"] = f"`lr_scheduler_type: {values.lr_scheduler_type}` takes none; take it out"
    return refused


def check_keys(
    script: str, values: Namespace, defaults: dict, origin: dict[str, str], checked: Container[str]
) -> None:
    """Refuse keys that have no effect, and values that would end in an error only after the model is loaded.

    Args:
        script: train_sft.py or train_cls.py.
        values: every key of the script as it was parsed.
        defaults: key -> what its class has for it.
        origin: key -> where it is stated, for the message.
        checked: keys to look at.

    Raises:
        UserError: names the key, its value, where it stands and what to do.
    """

    def refuse(key: str, why: str, fault: bool) -> None:
        if fault and key in checked:
            raise UserError(f"{origin.get(key, 'recipe')}: `{key}` is {getattr(values, key)!r}: {why}")

    for key, why in refused_keys(script, values).items():
        value = getattr(values, key)
        refuse(key, why, value not in (None, defaults[key], SAME.get(key)))
    for key, (least, most) in BOUNDS.items():
        value, range_ = getattr(values, key, None), f"{least} or more" if most == math.inf else f"{least} to {most}"
        fits = value is None or (isinstance(value, int | float) and least <= value <= most)
        refuse(key, f"it takes {range_}", not fits)
    metric = (values.metric_for_best_model or "loss").removeprefix("eval_")
    refuse("metric_for_best_model", f"an evaluation has {' and '.join(METRICS)}", metric not in METRICS)
    refuse("max_length", "it takes a number of tokens", values.max_length is None)
    refuse("model_name_or_path", "name a model on the Hub, or a local folder", values.model_name_or_path is None)
    if script == "train_cls.py":
        no = str(values.eval_strategy) == "no"
        refuse("eval_strategy", "early stopping reads evaluations; set epoch, or steps with `eval_steps`", no)
    else:
        refuse("use_peft", "a run keeps an adapter; set it to true", not values.use_peft)
