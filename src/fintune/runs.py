"""What a run leaves behind, and how it is read again.

runs/<task>/<name>/ holds the PEFT adapter (adapter_model.safetensors, adapter_config.json), the tokenizer, `base/`
where the base was built here, recipe.yaml, template.jinja, predictions.jsonl and, written last, metrics.json.
"""

import hashlib
import json
import shutil
import time
import warnings
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path

from fintune import machine
from fintune.baichuan import as_llama
from fintune.calibration import calibrate, scaled
from fintune.data import TaskData
from fintune.errors import UserError
from fintune.files import faults, hashes, sha256, write_json, write_text
from fintune.kv_heads import set_key_value_heads
from fintune.metrics import LabelMetrics, expected_calibration_error
from fintune.prompt import Prompt
from fintune.recipe import Recipe, dump_recipe
from fintune.scoring import Scorer, evaluation
from fintune.task import Task
from fintune.tiny import TINY

import numpy as np
import torch
from huggingface_hub.errors import GatedRepoError
from peft import PeftConfig, PeftModel
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available
from trl import ModelConfig, get_peft_config, get_quantization_config

SCHEMA = 1  # of metrics.json; readers leave out what they do not know


class ScoreValidation(TrainerCallback):
    """Adds `eval_accuracy` on the validation split to every evaluation, by the same scoring that tests the model."""

    def __init__(self, trainer: Trainer, prompt: Prompt, data: TaskData):
        self.trainer, self.prompt, self.rows = trainer, prompt, data.splits["validation"]

    def on_evaluate(self, args, state, control, model, metrics, **kwargs):
        if is_sharded(self.trainer):  # scoring calls layers by itself, past the hooks that gather their weights
            return
        probabilities = Scorer(model, self.prompt).probabilities(self.rows["text"])
        correct = probabilities.argmax(axis=1) == self.rows["label"]
        metrics["eval_accuracy"] = float(correct.mean())
        self.trainer.log({"eval_accuracy": metrics["eval_accuracy"]})


def evaluate_model(
    task: Task, data: TaskData, prompt: Prompt, model: PreTrainedModel, temperature: float, split: str = "test"
):
    """Score a split with a causal language model and check its own first answers; returns as `score_split` does."""
    texts, cut_before = data.splits[split]["text"], prompt.cut_texts
    started = time.perf_counter()
    probabilities = Scorer(model, prompt).probabilities(texts, progress=f"scoring {split}")
    metrics, predictions = score_split(task, data, split, probabilities, temperature, time.perf_counter() - started)
    metrics["texts_cut"] = prompt.cut_texts - cut_before
    metrics["answers_at_once"] = answers_at_once(model, prompt, texts[:64])
    return metrics, predictions


def calibrate_model(data: TaskData, prompt: Prompt, model: PreTrainedModel) -> dict:
    """`calibrate` on the validation split, scored with a causal language model."""
    rows = data.splits["validation"]
    return calibrate(Scorer(model, prompt).probabilities(rows["text"], progress="calibrating"), rows["label"])


def score_split(task: Task, data: TaskData, split: str, probabilities: np.ndarray, temperature: float, seconds: float):
    """Metrics and predictions of a split, the same for every kind of model.

    Args:
        probabilities: (rows, labels), in the split's row order and label id order, as the model gives them.
        temperature: what calibrates them; see fintune/calibration.py.
        seconds: what the scoring took, tokenising included.

    Returns:
        (metrics, predictions): metrics of `LabelMetrics` with `accuracy_clean`, `ece_uncalibrated` and speed; one
        prediction a row: file, line, text, label, prediction, clean, calibrated probabilities by label name.
    """
    rows = data.splits[split]
    raw_confidence, probabilities = probabilities.max(axis=1), scaled(probabilities, temperature)
    metrics = LabelMetrics().compute(predictions=probabilities, references=rows["label"], label_names=task.names)
    clean = data.clean if split == "test" else [True] * len(rows)
    answers = probabilities.argmax(axis=1)
    all_correct = answers == rows["label"]
    metrics["ece_uncalibrated"] = expected_calibration_error(raw_confidence, all_correct)
    correct = all_correct[clean]
    metrics["accuracy_clean"], metrics["rows_clean"] = float(correct.mean()), int(correct.size)
    metrics["seconds"], metrics["rows_per_second"] = seconds, len(rows) / seconds
    predictions = [
        {
            "file": row["file"],
            "line": row["line"],
            "text": row["text"],
            "label": task.names[row["label"]],
            "prediction": task.names[answer],
            "clean": is_clean,
            "probabilities": dict(zip(task.names, map(float, scores), strict=True)),
        }
        for row, answer, is_clean, scores in zip(rows, answers, clean, probabilities, strict=True)
    ]
    return metrics, predictions


def answers_at_once(model: PreTrainedModel, prompt: Prompt, texts: list[str]) -> dict:
    """Greedy generation on a few rows: what share is a label and its end, as a check on the model itself."""
    prompts = prompt.encode(texts)
    longest, new_tokens = max(map(len, prompts)), max(map(len, prompt.label_ids))
    ids = torch.full((len(prompts), longest), prompt.tokenizer.pad_token_id)
    for row, prompt_ids in enumerate(prompts):
        ids[row, longest - len(prompt_ids) :] = torch.tensor(prompt_ids)
    mask = (torch.arange(longest) >= longest - torch.tensor([len(p) for p in prompts])[:, None]).long()
    with evaluation(model):
        answers = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new_tokens,
            do_sample=False,  # Qwen3 ships do_sample: true, which answers differently every time
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=prompt.tokenizer.pad_token_id,
            eos_token_id=prompt.tokenizer.eos_token_id,
        )[:, longest:].tolist()
    misses = [answer for answer in answers if not any(answer[: len(label)] == label for label in prompt.label_ids)]
    report = {"rows": len(prompts), "share": 1 - len(misses) / len(prompts)}
    if misses:
        report["first_miss"] = prompt.tokenizer.decode(misses[0])
        report["first_miss_lacks_end"] = any(misses[0][: len(label) - 1] == label[:-1] for label in prompt.label_ids)
    return report


def explain_answers(report: dict | None) -> str | None:
    """The likely cause when a model does not answer with a label at once; None when it mostly does, or cannot talk."""
    if report is None or report["share"] >= 0.9:
        return None
    miss = report["first_miss"]
    if "<think>" in miss:
        cause = "a reasoning chain: name a `chat_template_path` that closes the think block"
    elif report.get("first_miss_lacks_end"):
        cause = "a label with more behind it: not trained on this task, or trained too little to end"
    elif not miss.replace("<|im_end|>", "").replace("<|endoftext|>", "").strip():
        cause = "an empty answer: the end token was trained without the label, or the prompt ends in another token"
    else:
        cause = "other words than the labels: not trained on this task, or trained too little"
    share = f"{report['share']:.0%} of {report['rows']}"
    return f"greedy answers: {share} are a label and its end; the first miss is {miss!r}, {cause}"


def base_fingerprint(base: str, revision: str | None) -> str:
    """What the adapter was trained on: hash of a local folder's weights, or name and revision on the Hub."""
    if not Path(base).is_dir():
        return f"{base}@{revision}"
    digest = hashlib.sha256()
    for path in sorted(Path(base).glob("*.safetensors")):
        digest.update(sha256(path).encode())
    return digest.hexdigest()


def load_tokenizer(base: str, revision: str, chat_template_path: str | None) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with the recipe's own chat template where it names one.

    Raises:
        UserError: the model is missing or gated.
    """
    with missing_model(base):
        folder, revision = as_llama(base, revision)
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token  # LLaMA has none; padding with the end token would mask the end
    if chat_template_path:
        if not Path(chat_template_path).is_file():
            raise UserError(f"{chat_template_path}: no such chat template; mend `chat_template_path` in the recipe")
        tokenizer.chat_template = Path(chat_template_path).read_text(encoding="utf-8")
    return tokenizer


def load_model(
    model_args: ModelConfig,
    base: str,
    device: torch.device,
    key_value_heads: int | None = None,
    adapter: Path | None = None,
) -> PreTrainedModel:
    """The base model in the recipe's dtype and quantization, with a run's adapter on it.

    Args:
        key_value_heads: of the recipe; None leaves the base as it is.

    Raises:
        UserError: the model is missing, gated or no causal language model in safetensors; the adapter does not fit.
    """
    with missing_model(base):
        folder, revision = as_llama(base, model_args.model_revision)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            revision=revision,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation or machine.attention(),
            quantization_config=get_quantization_config(model_args),
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,  # said, because transformers would ask at a terminal
        )
    if key_value_heads is not None:
        set_key_value_heads(model, key_value_heads)
    print(
        f"model: {base} in {model.dtype}, {model.num_parameters():,} parameters, "
        f"attention {model.config._attn_implementation}{', liger layers' * use_liger(model)}"
    )
    if adapter is None:
        return model
    if not (adapter / "adapter_model.safetensors").is_file():  # PEFT would read a pickle instead
        raise UserError(f"{adapter}: no adapter_model.safetensors, and pickled weights are never read; train again")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, adapter)
        except (UserWarning, RuntimeError, ValueError, SafetensorError) as error:
            raise UserError(f"{adapter}: its adapter does not fit {base}: {error}; train the run again") from error


def use_liger(model: PreTrainedModel) -> bool:
    """Fuse a model's norms, rotations and SwiGLU in place, on CUDA where liger-kernel is installed; whether it did."""
    fits = model.device.type == "cuda" and is_liger_kernel_available()
    if fits:  # the loss is computed at the label alone, where nothing is left to fuse
        apply_liger_kernel(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})
    return fits


def is_sharded(trainer: Trainer) -> bool:
    """Whether processes share the model among them: FSDP, ZeRO-3."""
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def whole_model(
    trainer: Trainer, base: str, model_args: ModelConfig, key_value_heads: int | None
) -> PreTrainedModel | None:
    """The trained model in one piece; where processes share it, the first one saves its adapter and loads it again.

    Returns:
        None in the other processes that share it.
    """
    if not is_sharded(trainer):
        return trainer.model
    adapter = Path(trainer.args.output_dir, "whole")
    trainer.save_model(str(adapter))  # gathered from all processes
    trainer.model = trainer.model_wrapped = trainer.optimizer = None  # room for the whole one
    trainer.accelerator.free_memory()
    if trainer.args.process_index > 0:
        return None
    model = load_model(model_args, base, trainer.args.device, key_value_heads, adapter)
    shutil.rmtree(adapter)
    return model


class missing_model:
    """Turns what transformers raises for a model that cannot be had into one line with the remedy."""

    def __init__(self, base: str):
        self.base = base

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        text = str(error)
        misshapen = isinstance(error, RuntimeError) and "mismatch" in text
        expected = misshapen or isinstance(error, OSError | ValueError | SafetensorError)
        if not expected or getattr(error, "errno", None) == ENOSPC:
            return
        if "gated repo" in text.lower() or isinstance(error.__cause__, GatedRepoError):
            remedy = f"it is gated: ask for access on https://huggingface.co/{self.base} and set HF_TOKEN"
        elif isinstance(error, SafetensorError) or "safetensors" in text:
            remedy = "it has no whole safetensors weights; fetch it again (pickled weights are never read)"
        elif isinstance(error, OSError):
            remedy = "check the name, or connect; with HF_HUB_OFFLINE=1 it must be in the Hub cache"
        else:
            remedy = "transformers refuses it"
        raise UserError(f"model {self.base} cannot be loaded: {remedy} ({text.splitlines()[0][:200]})") from error


def peft_config(model_args: ModelConfig) -> PeftConfig | None:
    """TRL's `get_peft_config`, with trained embeddings kept tied to the head where the base ties them."""
    config = get_peft_config(model_args)
    if config is not None and config.modules_to_save:
        config.ensure_weight_tying = True
    return config


def model_summary(model: PreTrainedModel, base: str, model_args: ModelConfig) -> dict:
    """What was trained on what: names, sizes, dtypes."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if hasattr(model, "get_nb_trainable_parameters"):  # counts 4-bit weights whole
        parameters = model.get_nb_trainable_parameters()[1]
        parameters -= sum(p.numel() for name, p in model.named_parameters() if "original_module" in name)
    else:
        parameters = model.num_parameters()
    return {
        "base": model_args.model_name_or_path,
        "fingerprint": base_fingerprint(base, model_args.model_revision),
        "parameters": parameters,
        "trained_parameters": sum(p.numel() for p in trained),
        "dtype": str(model.dtype).removeprefix("torch."),
        "trained_dtype": str(trained[0].dtype).removeprefix("torch.") if trained else None,
    }


def load_result(folder: Path) -> dict:
    """metrics.json of a finished run of a language model.

    Raises:
        UserError: as `read_result` and `check_files`, or the run is of another kind of model.
    """
    result = read_result(folder)
    if not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}: no language model's run; train_cls.py and train_linear.py score their own at the end"
        )
    check_files(folder, result)
    return result


def read_result(folder: Path) -> dict:
    """metrics.json of a finished run.

    Raises:
        UserError: the folder is no finished run, or one of another version.
    """
    if not ((folder / "recipe.yaml").is_file() and (folder / "metrics.json").is_file()):
        raise UserError(
            f"{folder}: no finished run (recipe.yaml, metrics.json); to score a model, add --task data/X.yaml"
        )
    try:
        result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder}/metrics.json: no JSON ({error}); train the run again") from error
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{folder}/metrics.json: schema {schema}, this version reads {SCHEMA}; train again")
    return result


def check_weights(folder: Path) -> None:
    """Refuse a run that keeps none.

    Raises:
        UserError: it is one of train_linear.py.
    """
    if not ((folder / "adapter_config.json").is_file() or (folder / "config.json").is_file()):
        raise UserError(f"{folder}: holds no weights, as runs of train_linear.py do; take one of train_sft.py")


def check_files(folder: Path, result: dict) -> None:
    """Refuse a run whose weights, tokenizer, templates or recipe are not those that were scored.

    Raises:
        UserError: a file is missing or has other bytes.
    """
    for name, what in faults(folder, result.get("files", {})):  # runs of before hold none
        raise UserError(f"{folder}/{name}: {what}; copy the run's folder whole, or train it again")


def calibration_of(result: dict) -> dict:
    """What confidences are calibrated by; a temperature of 1 for a run that was trained before they were."""
    return result.get("calibration") or {"temperature": 1.0}


def base_of(folder: Path, model_args: ModelConfig) -> str:
    """The base model of a run: its own folder where it was built here, else the recipe's name or path."""
    return str(folder / "base") if model_args.model_name_or_path == TINY else model_args.model_name_or_path


def check_same(folder: Path, trained: dict, data: TaskData, base: str, model_args: ModelConfig) -> None:
    """Refuse to score a run on other rows or another base than it was trained on.

    Raises:
        UserError: hash of the data or fingerprint of the base differs from the run's metrics.json.
    """
    if not trained:
        return
    if trained["data"]["sha256"] != data.sha256:
        raise UserError(
            f"{folder}: trained on {trained['data']['source']} data {trained['data']['sha256'][:12]}, found now is "
            f"{data.source} data {data.sha256[:12]}; set FINTUNE_DATA as it was, or train again"
        )
    check_base(folder, trained, base, model_args)


def check_base(folder: Path, trained: dict, base: str, model_args: ModelConfig) -> None:
    """Refuse an adapter on another base than it was trained on.

    Raises:
        UserError: the fingerprint of the base differs from the run's metrics.json.
    """
    found = base_fingerprint(base, model_args.model_revision)
    if trained["model"]["fingerprint"] != found:
        raise UserError(
            f"{folder}: its adapter belongs to base {trained['model']['fingerprint'][:60]}, not {found[:60]}"
        )


def save_run(folder: Path, recipe: Recipe, result: dict, predictions: list[dict], *parts) -> None:
    """Write everything (`parts` by their save_pretrained) beside the run, then move it in, metrics.json last.

    An older result in the folder stays whole until the new one is.

    recipe.yaml, template.jinja and chat_template.jinja give the same run again: `python train_sft.py RUN/recipe.yaml`.
    """
    staging = folder / "staging"
    for path in staging.glob("*"):
        if path.is_file():  # of a save that was cut off; base/, built before training, stays
            path.unlink()
    for part in parts:
        part.save_pretrained(staging)
    stated = dict(recipe.stated)
    if "chat_template_path" in stated:
        stated["chat_template_path"] = "chat_template.jinja"
    write_text(staging / "template.jinja", Path(recipe.task.template).read_text(encoding="utf-8"))
    here = replace(recipe, task=replace(recipe.task, template="template.jinja"), stated=stated)
    write_text(staging / "recipe.yaml", dump_recipe(here))
    files = hashes(staging)
    files.pop("README.md", None)  # PEFT's card, which its owner may write anew
    save_result(staging, result | {"files": files}, predictions)
    (folder / "metrics.json").unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "metrics.json"):
        if path.is_dir():
            shutil.rmtree(folder / path.name, ignore_errors=True)
        path.replace(folder / path.name)
    staging.rmdir()


def save_result(folder: Path, result: dict, predictions: list[dict], suffix: str = "") -> None:
    """Predictions first, metrics last: a metrics.json always has its predictions beside it."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
    write_text(folder / f"predictions{suffix}.jsonl", lines)
    write_json(folder / f"metrics{suffix}.json", result)


def make_result(recipe: Recipe, data: TaskData, metrics: dict, split: str = "test", **more) -> dict:
    """The content of metrics.json: what was measured, on which rows, model, machine and versions."""
    task, run_args = recipe.task, recipe.args[0]
    paper = task.paper.get(run_args.paper_row) if data.source != "sample" else None
    return {
        "schema": SCHEMA,
        "task": task.task,
        "name": recipe.name,
        "data": data.summary() | {"license": task.license, "labels": task.names},
        "split": split,
        split: metrics,
        "paper": {"row": run_args.paper_row, "accuracy": paper} if paper else None,
        "machine": machine.description(),
        "peak_memory_gib": machine.peak_memory_gib(),
        **more,
    }


def print_result(result: dict) -> None:
    """The table at the end of a run: ours beside the paper's, never on other data without saying so."""
    split, test = result["split"], result[result["split"]]
    low, high = test["accuracy_interval"]
    table = Table(
        title=f"{result['task']}: {result['name']} on {split}, {test['rows']} rows ({result['data']['source']})"
    )
    table.add_column("figure")
    table.add_column("ours", justify="right")
    paper = result["paper"] or {"row": "no row for it", "accuracy": None}
    table.add_column(f"paper ({paper['row']})", justify="right")
    table.add_row("accuracy", f"{test['accuracy']:.4f}", f"{paper['accuracy']:.4f}" if paper["accuracy"] else "")
    table.add_row("  95 % interval", f"{low:.4f} to {high:.4f}", "not given")
    table.add_row(f"  clean ({test['rows_clean']} rows not in training)", f"{test['accuracy_clean']:.4f}", "not given")
    titles = {"macro_f1": "macro F1", "mcc": "MCC", "log_loss": "log-loss", "ece": "ECE, calibrated"}
    for key, title in (titles | {"ece_uncalibrated": "ECE before"}).items():
        table.add_row(title, f"{test[key]:.4f}", "not given")
    table.add_row("rows per second", f"{test['rows_per_second']:.1f}", "not given")
    Console().print(table)
    if result["data"]["source"] == "sample":
        print("The sample's rows are invented: this shows that the method runs, not how well it labels finance.")
    if explanation := explain_answers(test.get("answers_at_once")):
        print(explanation)
