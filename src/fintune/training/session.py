"""What the training scripts do around their method: guards before it, and a training that survives a signal."""

import math
from contextlib import suppress
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from fintune import machine
from fintune.data import audit
from fintune.data.load import TaskData
from fintune.errors import UserError
from fintune.files import check_writable, read_json
from fintune.model.load import is_sharded
from fintune.recipe.layers import TINY
from fintune.recipe.recipe import Recipe
from fintune.training import tracking
from fintune.training.callbacks import memory_advice, show_progress
from fintune.training.checkpoints import (
    CheckpointManifest,
    checkpoint_to_resume,
    interruptible,
    lock_folder,
    seconds_until,
)

EVALUATIONS = 10  # at most, of a run that `min_steps` lengthens


def check_machine(recipe: Recipe, model: str) -> None:
    """Refuse what this machine cannot train or keep, before anything of it is downloaded.

    Args:
        model: its name, for the message.

    Raises:
        UserError: too little GPU memory is free, several GPUs are visible to one process, the run's folder cannot be
            written, or see `check_optimizer`.
    """
    check_writable(recipe.folder)
    machine.check_fits(model, recipe.run_args.min_gpu_gib, recipe.training_args.use_cpu)
    machine.check_one_gpu(recipe.training_args.n_gpu)
    check_optimizer(recipe.training_args)


def check_optimizer(args: TrainingArguments) -> None:
    """Refuse an optimizer, a schedule or a precision that the Trainer would refuse after the model is loaded.

    Raises:
        UserError: a package is missing, or a key that they need.
    """
    if args.fp16 and args.device.type == "cpu":
        raise UserError("`fp16` needs a GPU; take it out, or set `bf16`")
    try:
        if args.optim_target_modules is None:  # with it, a model is needed
            Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, args.lr_scheduler_kwargs)
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(
            f"`optim` {args.optim.value}, `lr_scheduler_type` {args.lr_scheduler_type.value}: {error}"
        ) from error


def begun(recipe: Recipe) -> Path | None:
    """The folder from whose checkpoints a run goes on; None where it starts."""
    wanted = recipe.training_args.resume_from_checkpoint
    if wanted is None or wanted.lower() in ("false", "no"):
        return None
    return recipe.folder if wanted.lower() in ("true", "yes") else Path(wanted).parent


def start(recipe: Recipe, data: TaskData, example: str) -> None:
    """Say what the run reads and which result it replaces, refuse leaking data and lock the run's folder.

    Args:
        example: a training row as the model sees it.

    Raises:
        UserError: too many test rows are in training too, or another run trains into the folder.
    """
    print(*audit.lines(audit.audit(recipe.task, data)), sep="\n")
    audit.check_leakage(recipe.task, data)
    rows = ", ".join(f"{len(rows):,} for {split}" for split, rows in data.splits.items())
    print(f"data: {data.source}, SHA-256 {data.sha256[:12]}; rows: {rows}")
    print(example)
    if recipe.overrides.get("model_name_or_path") == TINY and data.source != "sample":
        print(
            f"first choice: `tiny` has never read a text; TF-IDF labels better, in seconds "
            f"({machine.linear_command(recipe.task.task)}), and SmolLM2 best, on sentiment from 200 rows on "
            "(configs/smollm2-135m.yaml, docs/ablations.md)"
        )
    recipe.identity(data.sha256)
    tracking.heed_switches(recipe)
    say_replaced(recipe.folder / "metrics.json")
    lock_folder(recipe.folder, recipe.training_args.process_index)


def say_replaced(path: Path) -> None:
    """Name the accuracy of an older result in a line, before another one takes its place.

    Args:
        path: of a metrics.json.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):  # none, or nothing that could be lost
        older = read_json(path)
        accuracy = older[older["split"]]["accuracy"]
        print(f"{path}: holds an older result, {older['split']} accuracy {accuracy:.4f}, which this run replaces")


def reach_min_steps(trainer: Trainer, min_steps: int) -> None:
    """Raise a trainer's `num_train_epochs` where its rows are too few for `min_steps` optimizer steps, and say so.

    Where each epoch would be evaluated and saved, every k-th is, so that there are at most `EVALUATIONS`, and the
    checkpoint of the highest validation accuracy is what the training ends with.
    """
    args, rows = trainer.args, len(trainer.train_dataset)
    steps, before = math.ceil(rows / trainer.get_total_train_batch_size(args)), args.num_train_epochs
    if args.max_steps > 0 or math.ceil(before * steps) >= min_steps:
        return
    epochs = math.ceil(min_steps / steps)
    every = math.ceil(epochs / EVALUATIONS)
    args.num_train_epochs = math.ceil(epochs / every) * every  # the last epoch is evaluated too
    line = (
        f"steps: {rows:,} rows are {steps} steps an epoch: {args.num_train_epochs} epochs instead of {before:g}, for "
        f"min_steps {min_steps}"
    )
    if args.eval_strategy == args.save_strategy == "epoch" and not is_sharded(trainer):  # those have no accuracy
        args.eval_strategy, args.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
        args.eval_steps = args.save_steps = every * steps
        args.load_best_model_at_end, args.metric_for_best_model, args.greater_is_better = True, "eval_accuracy", True
        line += f"; {args.num_train_epochs // every} evaluations, the best checkpoint is kept"
    print(line)


def train(trainer: Trainer, recipe: Recipe, data: TaskData, summary: dict) -> dict:
    """Train from the beginning or from a checkpoint; a signal saves one after the current step.

    Args:
        summary: the model's, of `model_summary`.

    Returns:
        `training` of metrics.json: the Trainer's own metrics, steps, what it resumed from, the trainer, the log.

    Raises:
        UserError: the disk is too small, memory ran out, or the checkpoint is another run's.
        Stopped: SIGTERM or SIGINT came.
    """
    args, identity = recipe.training_args, recipe.identity(data.sha256)
    reach_min_steps(trainer, recipe.run_args.min_steps)
    machine.check_disk(recipe.folder, summary["trained_parameters"], args.save_total_limit)
    print(f"trains {summary['trained_parameters']:,} parameters in {summary['trained_dtype']}")
    with args.main_process_first():
        checkpoint = checkpoint_to_resume(recipe.folder, args.resume_from_checkpoint, identity)
    before = seconds_until(checkpoint)
    manifest = CheckpointManifest(identity, before)
    trainer.add_callback(manifest)
    show_progress(trainer)
    tracking.open_run(recipe, summary["base"], data.source, resumed=checkpoint is not None)
    quantized = getattr(recipe.model_args, "load_in_4bit", None)
    with tracking.trackers_kept_open(trainer), interruptible(trainer, manifest), memory_advice(args, quantized):
        output = trainer.train(checkpoint)
    state = trainer.state
    training = {**_of_all_parts(output.metrics, before), "steps": output.global_step, "resumed_from": checkpoint}
    training |= {"trainer": type(trainer).__name__, "log": state.log_history}
    if state.best_metric is not None:
        name = args.metric_for_best_model.removeprefix("eval_")
        training |= {"best_step": state.best_global_step, f"best_eval_{name}": state.best_metric}
    return training


def _of_all_parts(metrics: dict, before: float) -> dict:
    """The Trainer's metrics with the time of the parts before, in seconds; it divides all rows by its own alone."""
    own = metrics["train_runtime"]
    share = own / (before + own)
    speeds = {key: value * share for key, value in metrics.items() if key.endswith("_per_second")}
    return metrics | speeds | {"train_runtime": before + own}
