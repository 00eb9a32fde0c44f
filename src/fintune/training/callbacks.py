"""Callbacks of a training: validation accuracy, a line an evaluation, and one on what its curves mean meanwhile."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from statistics import mean, median

import torch
import wandb
from scipy.stats import binomtest
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from fintune.data.load import TaskData, inputs_of
from fintune.errors import UserError
from fintune.model.load import is_sharded
from fintune.model.prompt import Prompt
from fintune.scoring.greedy import greedy_label_rate
from fintune.scoring.label_scorer import LabelScorer

EARLY = 100  # steps in which a run diverges, if it does
RECENT = 3  # logged losses of which the mean is looked at: a single one is noise
RISE = 0.5  # of the first loss, which is about that of guessing: a small loss may double and be one
EXPLODED = 20.0  # times the median gradient norm so far
FLAT = 0.95  # times the first loss: what a first epoch that teaches nothing leaves of it
ROWS = 256  # of the validation split, scored with noise


class ScoreValidation(TrainerCallback):
    """Adds `eval_accuracy` on the validation split to every evaluation, by the same scoring that tests the model."""

    def __init__(self, trainer: Trainer, prompt: Prompt, data: TaskData):
        self.trainer, self.prompt, self.rows = trainer, prompt, data.splits["validation"]

    def on_evaluate(self, args, state, control, model, metrics, **kwargs):
        if is_sharded(self.trainer):  # scoring calls layers by itself, past the hooks that gather their weights
            return
        probabilities = LabelScorer(model, self.prompt).probabilities(inputs_of(self.rows))
        correct = probabilities.argmax(axis=1) == self.rows["label"]
        metrics["eval_accuracy"] = float(correct.mean())
        self.trainer.log({"eval_accuracy": metrics["eval_accuracy"]})


class QuietBar(ProgressCallback):
    """The Trainer's bar without the dicts that it prints."""

    def on_log(self, args, state, control, **kwargs):
        pass


class EvaluationLine(TrainerCallback):
    """Prints each evaluation in one line: where the training is, how good, how fast it learns, how long it takes."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first = time.perf_counter(), state.global_step

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if not state.is_world_process_zero:
            return
        last = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
        done = state.global_step - self.first
        left = (time.perf_counter() - self.started) / max(1, done) * (state.max_steps - state.global_step)
        found = {
            "loss": (last.get("loss"), ".3g"),
            "validation accuracy": (metrics.get("eval_accuracy"), ".4f"),  # a shared model is not scored
            "learning rate": (last.get("learning_rate"), ".2g"),
        }
        parts = [f"{name} {float(value):{form}}" for name, (value, form) in found.items() if value is not None]
        parts.append(f"{timedelta(seconds=round(left))} left")
        where = f"step {state.global_step:,}/{state.max_steps:,}, epoch {state.epoch:.3g}"
        tqdm.write(f"{where}: {', '.join(parts)}")
        sys.stdout.flush()


def show_progress(trainer: Trainer) -> None:
    """A bar, unless `disable_tqdm` is set, and a line an evaluation, in place of the Trainer's printed dicts."""
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(QuietBar)
    trainer.add_callback(EvaluationLine)


class CurveWatch(TrainerCallback):
    """Looks at losses, gradients and answers, and says each fault once.

    Attributes:
        said: name of a fault -> its line.
    """

    def __init__(self, trainer: Trainer, prompt: Prompt | None = None, data: TaskData | None = None):
        """
        Args:
            prompt, data: of a language model, whose answers are looked at too.
        """
        self.trainer, self.prompt, self.data = trainer, prompt, data
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.said: dict[str, str] = {}

    def say(self, fault: str, line: str) -> None:
        if fault not in self.said:
            self.said[fault] = line
            print(f"\nwatch: {line}", flush=True)
            if wandb.run is not None:
                wandb.run.alert(title=fault, text=line)

    def on_train_begin(self, args: TrainingArguments, state, control, **kwargs):
        before = [entry for entry in state.log_history if "loss" in entry]  # of a resumed run
        self.losses = [float(entry["loss"]) for entry in before]
        self.norms = [float(entry.get("grad_norm", 0.0)) for entry in before]

    def on_log(self, args: TrainingArguments, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        loss, norm, at = float(logs["loss"]), float(logs.get("grad_norm", 0.0)), f"at step {state.global_step}"
        remedy = f"lower learning_rate ({args.learning_rate:g}), or lengthen warmup_steps ({args.warmup_steps:g})"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.say("loss diverged", f"loss {loss}, gradient norm {norm} {at}; {remedy}")
        elif self.losses and state.global_step <= EARLY:
            first, usual, losses = self.losses[0], median(self.norms), [*self.losses, loss]
            *earlier, now = [mean(losses[max(0, end - RECENT) : end]) for end in range(1, len(losses) + 1)]
            if len(losses) >= RECENT and now > min(earlier) + RISE * first:
                self.say("loss diverges", f"loss {now:.3g} {at}, {min(earlier):.3g} before; {remedy}")
            if norm > EXPLODED * usual:
                self.say("gradients explode", f"gradient norm {norm:.3g} {at}, {usual:.3g} before; {remedy}")
        self.losses.append(loss)
        self.norms.append(norm)

    def on_epoch_end(self, args: TrainingArguments, state, control, **kwargs):
        if state.epoch != 1 or len(self.losses) < 4:
            return
        first, last = self.losses[0], mean(self.losses[-2:])
        if last > FLAT * first:
            self.say(
                "nothing is learned",
                f"loss {first:.3g} at first and {last:.3g} after an epoch; raise learning_rate "
                f"({args.learning_rate:g}), or check that the labels belong to their texts",
            )

    def on_pre_optimizer_step(self, args: TrainingArguments, state, control, model, **kwargs):
        # an adapter's A has no gradient while its B is zero, and B moves once the learning rate is above zero
        if state.global_step != 5 or is_sharded(self.trainer):
            return
        trained = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
        still = [name for name, weights in trained.items() if weights.grad is None or not weights.grad.any()]
        if still:
            self.say(
                "parameters without gradient",
                f"{len(still)} of {len(trained)} trained parameters have no gradient, first {still[0]}; take their "
                "modules out of lora_target_modules, or check what separates them from the loss",
            )

    def on_evaluate(self, args: TrainingArguments, state, control, model, **kwargs):
        if self.prompt is None or is_sharded(self.trainer):
            return
        rows = self.data.splits["validation"].select(range(min(ROWS, len(self.data.splits["validation"]))))
        answers = greedy_label_rate(model, self.prompt, inputs_of(rows)[:8])
        thought = answers.get("first_miss", "").partition("<think>")[2]
        if thought.replace("<think>", "").strip():  # words after it, where an untrained model only repeats a token
            self.say(
                "a reasoning chain",
                f"instead of a label the model answers {answers['first_miss'][:60]!r}; name a `chat_template_path` "
                "that closes the think block, as templates/qwen3-chat.jinja does",
            )
        if args.neftune_noise_alpha:
            self._compare_noise(model, rows, args.neftune_noise_alpha)

    def _compare_noise(self, model: PreTrainedModel, rows, alpha: float) -> None:
        """Exact McNemar test of the answers with noise against those without."""
        inputs, labels = inputs_of(rows), rows["label"]
        plain = LabelScorer(model, self.prompt).probabilities(inputs).argmax(axis=1) == labels
        with noisy(model, alpha, mean(map(len, self.prompt.encode(inputs)))):
            noised = LabelScorer(model, self.prompt).probabilities(inputs).argmax(axis=1) == labels
        lost, won = int((plain & ~noised).sum()), int((noised & ~plain).sum())
        if lost > won and binomtest(lost, lost + won).pvalue < 0.05:
            self.say(
                "too much noise",
                f"validation accuracy {noised.mean():.3f} with NEFTune's noise, {plain.mean():.3f} without; lower "
                f"neftune_noise_alpha ({alpha:g})",
            )


@contextmanager
def noisy(model: PreTrainedModel, alpha: float, length: float) -> Iterator[None]:
    """NEFTune's noise on every embedding, as for rows of that many tokens, also outside training."""

    def add(module, inputs, embedded: torch.Tensor) -> torch.Tensor:
        scale = alpha / math.sqrt(length * embedded.size(-1))
        return embedded + torch.empty_like(embedded).uniform_(-scale, scale)

    random_state = torch.get_rng_state()  # training goes on as if nobody had looked
    cuda_state = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    hook = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()
        torch.set_rng_state(random_state)
        torch.cuda.set_rng_state_all(cuda_state)


@contextmanager
def memory_advice(args: TrainingArguments, quantized: bool | None = None) -> Iterator[None]:
    """Train inside the block: running out of memory ends in one line with the setting to try.

    Args:
        quantized: whether the base is in 4 bits; None where there is no such way.

    Raises:
        UserError: out of memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        rows, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
        ways = []
        if rows > 1:
            size, many = (rows // 2, 2 * steps) if rows % 2 == 0 else (1, rows * steps)
            halved = f"--per_device_train_batch_size {size} --gradient_accumulation_steps {many}"
            ways.append(f"{halved} (the same rows a step)")
        if not args.gradient_checkpointing:
            ways.append("--gradient_checkpointing true (a third slower)")
        if quantized is False:
            ways.append("--load_in_4bit true (as configs/qwen3-8b-qlora.yaml)")
        ways = ways or ["a smaller model (MODEL=auto picks one)"]
        raise UserError(
            f"out of memory with {rows} rows in a micro-batch; try " + ", or ".join(ways) + ", with "
            "--resume_from_checkpoint false"
        ) from error
