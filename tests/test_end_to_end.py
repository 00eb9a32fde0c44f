"""The scripts as a user runs them, on a small model and a small task."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import wandb
import yaml
from conftest import ROOT, SMALL, script
from safetensors.torch import load_file

from fintune.errors import Stopped, UserError
from fintune.training import session
from fintune.training.checkpoints import CheckpointManifest

TOY = ["data/toy.yaml", "small.yaml", *SMALL]


def trained(folder) -> dict:
    return load_file(folder / "adapter_model.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def train():
    return script("train_sft").main


def test_a_run_leaves_everything_and_evaluate_gives_the_same_figures(task_folder, train, capsys):
    train([*TOY, "--num_train_epochs", "15", "--learning_rate", "1e-2"])
    run = task_folder / "runs/toy/small"
    assert "⟦" in capsys.readouterr().out
    left = {path.name for path in run.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "base",
    } <= left
    assert {"recipe.yaml", "template.jinja", "metrics.json", "predictions.jsonl"} <= left
    assert not [path for path in run.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]

    metrics = json.loads((run / "metrics.json").read_text())
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert metrics["data"]["rows"] == {"train": 84, "validation": 12, "test": 12}
    assert len(predictions) == metrics["test"]["rows"] == 12
    right = sum(row["prediction"] == row["label"] for row in predictions)
    assert metrics["test"]["accuracy"] == pytest.approx(right / 12)
    assert metrics["test"]["accuracy"] > 0.6  # a third by chance
    for row in predictions:
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert max(row["probabilities"], key=row["probabilities"].get) == row["prediction"]
    assert {"git", "versions", "processor"} <= metrics["machine"].keys()
    assert metrics["model"]["trained_dtype"] == "float32"
    evaluations = [entry for entry in metrics["training"]["log"] if "eval_accuracy" in entry]
    assert len(evaluations) == 15

    before = metrics["test"]
    script("evaluate").main([str(run)])
    after = json.loads((run / "metrics.json").read_text())
    for key in ("accuracy", "macro_f1", "confusion_matrix", "per_class"):
        assert after["test"][key] == before[key]
    assert after["test"]["log_loss"] == pytest.approx(before["log_loss"], abs=1e-6)
    assert after["training"]["steps"] == metrics["training"]["steps"]
    script("evaluate").main([str(run), "--split", "validation"])
    assert json.loads((run / "metrics-validation.json").read_text())["validation"]["rows"] == 12


def test_the_adapter_is_rank_stabilised_and_every_part_moves(task_folder, train):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    train([*TOY, "--lora_r", "4", "--lora_alpha", "6"])
    run = task_folder / "runs/toy/small"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run / "base"), run)
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 14  # 7 linear layers in each of 2 blocks
    for layer in layers:
        assert layer.scaling["default"] == pytest.approx(6 / 4**0.5)
        assert layer.lora_B["default"].weight.abs().max() > 0  # it starts at zero
        x = torch.randn(3, layer.in_features)
        update = layer.lora_B["default"](layer.lora_A["default"](x)) * 6 / 4**0.5
        layer.eval()
        torch.testing.assert_close(layer(x), layer.base_layer(x) + update)
    adapter, base = trained(run), load_file(run / "base/model.safetensors")
    embeddings = next(value for key, value in adapter.items() if "embed_tokens" in key)
    assert not torch.equal(embeddings, base["model.embed_tokens.weight"])
    head = model.get_base_model().get_output_embeddings().weight
    assert torch.equal(head, model.get_base_model().get_input_embeddings().weight)  # still tied


def test_a_resumed_run_equals_an_uninterrupted_one(task_folder, train, capsys, monkeypatch):
    """Noise, dropout and rsLoRA on, stopped in the middle of an epoch by a signal, bit for bit; labels are numbers."""
    numbers = "task: toy\nlabels: {0: Up, 1: Up or down, 2: Down}\nfiles: {all: toy.csv}\n"  # text once in a manifest
    (task_folder / "data/toy.yaml").write_text(numbers)
    flags = ["--num_train_epochs", "2", "--save_strategy", "epoch", "--learning_rate", "1e-3"]
    train([*TOY, *flags, "--output_dir", "whole"])

    class StopAt5(CheckpointManifest):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            super().on_step_end(args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Stopped) as stop:
        patch.setattr(session, "CheckpointManifest", StopAt5)
        train([*TOY, *flags, "--output_dir", "parts"])
    assert stop.value.signum == signal.SIGTERM
    assert (task_folder / "parts/checkpoint-5/manifest.json").is_file()
    assert not (task_folder / "parts/metrics.json").exists()
    train([*TOY, *flags, "--output_dir", "parts", "--resume_from_checkpoint", "true"])
    assert "resume: from parts/checkpoint-5" in capsys.readouterr().out
    assert same(trained(task_folder / "whole"), trained(task_folder / "parts"))
    figures = [json.loads((task_folder / run / "metrics.json").read_text()) for run in ("whole", "parts")]
    assert figures[0]["test"]["log_loss"] == figures[1]["test"]["log_loss"]
    # the twin: without the checkpoint's state the ends differ
    train([*TOY, *flags, "--output_dir", "other", "--seed", "1"])
    assert not same(trained(task_folder / "whole"), trained(task_folder / "other"))


def test_an_unfinished_run_is_neither_resumed_nor_removed_unasked(task_folder, train):
    flags = [*TOY, "--save_strategy", "epoch"]
    train(flags)
    run = task_folder / "runs/toy/small"
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match="an unfinished run is here"):
        train(flags)
    assert (run / "checkpoint-7/manifest.json").is_file()
    train([*flags, "--resume_from_checkpoint", "false"])
    assert (run / "metrics.json").is_file()


def test_damaged_checkpoints_are_skipped_and_a_changed_recipe_is_refused(task_folder, train, capsys):
    flags = ["--num_train_epochs", "2", "--save_strategy", "epoch", "--resume_from_checkpoint", "true"]
    train([*TOY, *flags])
    run = task_folder / "runs/toy/small"
    newest, older = run / "checkpoint-14", run / "checkpoint-7"
    weights = newest / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    train([*TOY, *flags])
    out = capsys.readouterr().out
    assert "checkpoint-14 is skipped: adapter_model.safetensors is not what was saved" in out
    assert f"from {older.relative_to(task_folder)}" in out
    (newest / "manifest.json").unlink()
    shutil.rmtree(older)
    train([*TOY, *flags])
    assert "training starts from the beginning" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"`learning_rate` was .* when it was saved and is 0.01 now"):
        train([*TOY, *flags, "--learning_rate", "0.01"])


def test_sigterm_leaves_a_checkpoint_and_exit_code_143(task_folder):
    command = [sys.executable, str(ROOT / "train_sft.py"), *TOY, "--num_train_epochs", "500", "--output_dir", "long"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any(line.startswith("step ") for line in process.stdout)  # reads on until training is under way
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.strip().splitlines()[-1].startswith("stopped by SIGTERM, saved long/checkpoint-")
    assert list((task_folder / "long").glob("checkpoint-*/manifest.json"))


def test_a_model_named_on_the_hub_loads_from_the_hub_cache(task_folder, toy):
    """A stand-in for Qwen/Qwen3-8B in a cache folder of that name: the ordinary Hub code finds it offline."""
    revision = yaml.safe_load((ROOT / "configs/qwen3-8b.yaml").read_text())["model_revision"]
    cache = task_folder / "hub"
    snapshot = cache / "models--Qwen--Qwen3-8B/snapshots" / revision
    shutil.copytree(task_folder / "base", snapshot)
    toy[2].tokenizer.save_pretrained(snapshot)
    flags = ["--use_cpu", "true", "--bf16", "false"]
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "train_sft.py"), "data/toy.yaml", f"{ROOT}/configs/qwen3-8b.yaml", *SMALL]
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((task_folder / "runs/toy/qwen3-8b/metrics.json").read_text())
    assert metrics["model"]["base"] == "Qwen/Qwen3-8B"
    assert metrics["model"]["fingerprint"] == f"Qwen/Qwen3-8B@{revision}"
    again = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), "runs/toy/qwen3-8b", *flags],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr


def test_secrets_reach_no_file_and_no_line(task_folder):
    planted = {
        "HF_TOKEN": "hf_plantedplantedplanted",
        "WANDB_API_KEY": "planted0" * 5,
        "AWS_SECRET_ACCESS_KEY": "planted!",
    }
    environment = {
        **os.environ,
        **planted,
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(task_folder),
        "WANDB_SILENT": "true",
    }
    for words in (
        [str(ROOT / "train_sft.py"), *TOY, "--report_to", "wandb"],
        ["-m", "fintune.cli", "export", "runs/toy/small", "plain"],
        [str(ROOT / "train_sft.py"), *TOY, "--hub_token", "planted-as-a-flag"],
    ):
        command = [sys.executable, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert "planted" not in done.stdout + done.stderr
        assert done.returncode == (2 if "--hub_token" in words else 0), done.stderr[-2000:]
    files = [path for path in task_folder.rglob("*") if path.is_file()]
    assert any("offline-run" in str(path) for path in files)
    assert [path for path in files if b"planted" in path.read_bytes()] == []


def test_a_second_run_into_the_folder_is_refused(task_folder):
    holding = (
        "import sys, time; from pathlib import Path; from fintune.training.checkpoints import lock_folder\n"
        "lock_folder(Path('runs/toy/small')); print('locked', flush=True); time.sleep(60)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", holding], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"locked\n"
    with pytest.raises(UserError, match="runs/toy/small: another run is training into it"):
        script("train_sft").main(TOY)
    first.kill()
    first.communicate()
    script("train_sft").main(TOY)  # a lock of a killed process holds nobody up


def test_a_model_that_was_not_trained_here_is_scored(task_folder, toy):
    toy[2].tokenizer.save_pretrained(task_folder / "base")
    script("evaluate").main(["base", "--task", "data/toy.yaml", "--report_to", "none"])
    metrics = json.loads((task_folder / "runs/toy/base-zero-shot/metrics.json").read_text())
    assert metrics["training"] is None
    assert metrics["test"]["rows"] == 12


def test_wandb_records_offline_with_texts_only_where_allowed(task_folder, train, monkeypatch):
    wandb.teardown()  # settings of an earlier test's run would stay
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(task_folder))
    for allowed in (False, True):
        text = "task: toy\nlabels: [Up, Up or down, Down]\nfiles: {all: toy.csv}\n"
        (task_folder / "data/toy.yaml").write_text(text + f"log_texts: {str(allowed).lower()}\n")
        train([*TOY, "--report_to", "wandb", "--output_dir", f"run-{allowed}"])
        [folder] = list((task_folder / "wandb").glob("offline-run-*"))
        for _ in range(60):  # W&B's service may still be writing when the run is closed
            content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
            if b"test/accuracy" in content:
                break
            time.sleep(0.5)
        [first, *_] = (task_folder / f"run-{allowed}/predictions.jsonl").read_text().splitlines()
        assert (json.loads(first)["text"].encode() in content) == allowed
        assert b"toy-small" in content
        assert b"test/accuracy" in content
        assert b"eval/accuracy" in content
        shutil.rmtree(task_folder / "wandb")


def launched(*argv: str, processes: int = 2) -> subprocess.Popen:
    """train_sft.py by `accelerate launch` with the repository's own configuration, on the CPU."""
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        f"{ROOT}/configs/accelerate/ddp.yaml",
    ]
    command = [*launch, "--num_processes", str(processes), str(ROOT / "train_sft.py"), *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def losses(folder) -> list[float]:
    log = json.loads((folder / "metrics.json").read_text())["training"]["log"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_two_processes_give_the_curve_of_one_with_twice_the_batch_and_stop_together(task_folder):
    quiet = ["--lora_dropout", "0", "--neftune_noise_alpha", "0", "--logging_steps", "1", "--max_steps", "14"]
    quiet = ["data/toy.yaml", "small.yaml", *SMALL, *quiet, "--use_cpu", "true", "--save_strategy", "steps"]
    one = [*quiet, "--per_device_train_batch_size", "12", "--output_dir", "one", "--save_steps", "100"]
    script("train_sft").main(one)
    two = [*quiet, "--per_device_train_batch_size", "6", "--ddp_backend", "gloo", "--save_steps", "100"]
    process = launched(*two, "--output_dir", "two")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said[-3000:]
    assert said.count("\ntrains ") == 1  # the first process speaks
    assert len(losses(task_folder / "one")) == 14
    assert losses(task_folder / "two") == pytest.approx(losses(task_folder / "one"), rel=1e-4)
