"""Each failure that readers of the paper hit is provoked, and said in one line while the run goes on."""

import subprocess
import sys

import pytest
import torch
import wandb
from conftest import ROOT, SMALL, script
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from trl import SFTConfig

from fintune.deploy.classifier import Classifier
from fintune.model.prompt import IGNORE
from fintune.training.callbacks import CurveWatch, memory_advice
from fintune.training.shared_prefix import SharedPrefixCollator, SharedPrefixTrainer

EPOCH = ["data/toy.yaml", "small.yaml", *SMALL, "--logging_steps", "1"]


def said(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("watch: ")]


def test_a_sound_run_says_nothing(task_folder, capsys):
    script("train_sft").main([*EPOCH, "--learning_rate", "1e-2"])
    assert said(capsys) == []


def test_a_learning_rate_too_high_and_one_too_low(task_folder, capsys):
    high = ["--learning_rate", "30", "--max_grad_norm", "1000", "--num_train_epochs", "3", "--warmup_steps", "0"]
    script("train_sft").main([*EPOCH, *high])
    lines = said(capsys)
    assert any(line.startswith("watch: loss") and "lower learning_rate (30)" in line for line in lines)
    assert len(lines) == len(set(lines)) < 5
    script("train_sft").main([*EPOCH, "--learning_rate", "1e-12", "--output_dir", "low"])
    [line] = said(capsys)
    assert "after an epoch; raise learning_rate (1e-12)" in line


def small_trainer(toy, tmp_path, rows: Dataset | None = None, model=None, **config):
    _, data, prompt, untrained = toy
    rows = prompt.training_rows(data.splits["train"]) if rows is None else rows
    trainer = SharedPrefixTrainer(
        model=model or get_peft_model(untrained, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)),
        args=SFTConfig(str(tmp_path / "out"), report_to="none", bf16=False, use_cpu=True, **config),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=SharedPrefixCollator.of("shared_prefix", rows),
        processing_class=prompt.tokenizer,
    )
    watcher = CurveWatch(trainer, prompt, data)
    trainer.add_callback(watcher)
    return trainer, watcher


CURVES = {
    "small losses of a sound run": ([1.1, 0.9, 0.6, 0.4, 0.219, 0.347, 0.25, 0.31], False),
    "one unlucky batch": ([1.1, 0.8, 0.5, 0.3, 1.3, 0.3, 0.28], False),
    "noise about the first loss": ([1.1, 1.3, 1.2, 1.4, 1.0, 1.2], False),
    "a loss of almost nothing": ([0.9, 0.2, 0.01, 0.002, 0.05, 0.01, 0.06], False),
    "up from the first step": ([1.1, 2.5, 4.0, 4.2], True),
    "down, then up": ([1.1, 0.7, 0.4, 0.9, 1.2, 1.3, 1.4], True),
    "down, then up by steps": ([1.1, 0.3, 0.2, 0.2, 0.4, 0.7, 0.9, 1.0, 1.1], True),
}


@pytest.mark.parametrize("losses,diverges", CURVES.values(), ids=CURVES)
def test_a_loss_that_diverges_is_told_from_noise(toy, tmp_path, losses, diverges):
    _, watcher = small_trainer(toy, tmp_path)
    trainer = watcher.trainer
    for update, loss in enumerate(losses, start=1):
        trainer.state.global_step = update
        watcher.on_log(trainer.args, trainer.state, trainer.control, logs={"loss": loss, "grad_norm": 1.0})
    assert ("loss diverges" in watcher.said) == diverges


def test_an_exploding_gradient(toy, tmp_path):
    _, watcher = small_trainer(toy, tmp_path)
    trainer = watcher.trainer
    for update, norm in enumerate([1.0, 1.2, 0.9, 40.0], start=1):
        trainer.state.global_step = update
        watcher.on_log(trainer.args, trainer.state, trainer.control, logs={"loss": 1.0, "grad_norm": norm})
    assert "gradient norm 40 at step 4, 1 before" in watcher.said["gradients explode"]
    watcher.on_log(trainer.args, trainer.state, trainer.control, logs={"loss": float("nan"), "grad_norm": 1.0})
    assert "loss nan" in watcher.said["loss diverged"]


def test_an_adapter_that_is_cut_off_from_the_loss(toy, tmp_path, capsys):
    trainer, watcher = small_trainer(toy, tmp_path, max_steps=7, learning_rate=1e-3)
    trainer._fused = None  # which reads the weights alone, past any hook
    layer = next(module for module in trainer.model.modules() if isinstance(module, LoraLayer))
    layer.lora_B["default"].register_forward_hook(lambda module, inputs, output: output.detach())
    trainer.train()
    assert "2 of " in watcher.said["parameters without gradient"]
    assert "lora_A" in watcher.said["parameters without gradient"]


def test_a_reasoning_chain_becomes_an_alert(toy, tmp_path, monkeypatch):
    """Trained on answers that begin to think, as rows without the closed think block do."""
    _, data, prompt, _ = toy
    think = [prompt.tokenizer.convert_tokens_to_ids("<think>"), *prompt.label_ids[0]]
    rows = Dataset.from_list(
        [
            {"input_ids": ids + think, "labels": [IGNORE] * len(ids) + think}
            for ids in prompt.encode(data.splits["train"]["text"])
        ]
    )
    alerts = []

    trainer, watcher = small_trainer(
        toy, tmp_path, rows, toy[3], num_train_epochs=3, learning_rate=1e-2, eval_strategy="epoch"
    )
    run = wandb.init(mode="disabled")
    monkeypatch.setattr(type(run), "alert", lambda run, title, text: alerts.append((title, text)))
    trainer.train()
    run.finish()
    assert "the model answers '<think>" in watcher.said["a reasoning chain"]
    assert alerts == [("a reasoning chain", watcher.said["a reasoning chain"])]  # once, not at every evaluation


def test_noise_that_costs_accuracy(toy, run_dir, tmp_path):
    classifier = Classifier.from_pretrained(run_dir)
    task, data, _, _ = toy
    data.splits["validation"] = data.splits["train"]
    toy = (task, data, classifier.scorer.encoder, classifier.scorer.model)
    for alpha, heard in ((0.3, False), (300, True)):
        trainer, watcher = small_trainer(toy, tmp_path, model=classifier.scorer.model, neftune_noise_alpha=alpha)
        state = torch.get_rng_state()
        watcher.on_evaluate(trainer.args, trainer.state, trainer.control, classifier.scorer.model)
        assert torch.equal(torch.get_rng_state(), state)  # training goes on as if nobody had looked
        assert ("too much noise" in watcher.said) == heard
    assert "lower neftune_noise_alpha (300)" in watcher.said["too much noise"]


OUT_OF_MEMORY = """
import importlib.util, resource, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("train", sys.argv[1])
train = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train)
from fintune.training import session
inner = session.memory_advice
def at_the_limit(*args):
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 2**26, held + 2**26))
    return inner(*args)
session.memory_advice = at_the_limit
train.run(lambda argv: train.main(sys.argv[2:]))
"""


def test_out_of_memory_says_what_would_fit(task_folder):
    small = (task_folder / "small.yaml").read_text().replace("intermediate_size: 64", "intermediate_size: 16384")
    (task_folder / "small.yaml").write_text(small)
    argv = ["data/toy.yaml", "small.yaml", *SMALL, "--per_device_train_batch_size", "84", "--use_cpu", "true"]
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(ROOT / "train_sft.py"), *argv], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: out of memory with 84 rows in a micro-batch; try --per_device_train_batch_size 42")
    assert "--gradient_accumulation_steps 2" in last
    assert "--gradient_checkpointing true" in last
    assert "--load_in_4bit true" in last


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shape"), memory_advice(SFTConfig(bf16=False)):
        raise RuntimeError("shape mismatch")
