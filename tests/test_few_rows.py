"""Few rows: enough steps for them, the best checkpoint, and what to use instead where that is not enough."""

import csv
import importlib.util
import json

import pytest
import torch
from conftest import ROOT, SMALL, script
from safetensors.torch import load_file

from fintune.cli import command
from fintune.recipe.recipe import SftArguments, parse_recipe


@pytest.fixture
def mine(task_folder, capsys):
    """Task `mine`, prepared from 300 headlines of four uneven classes, and kept.yaml, whose checkpoints are kept."""
    spec = importlib.util.spec_from_file_location("few_rows", ROOT / "benchmarks/few_rows.py")
    few_rows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(few_rows)
    with (task_folder / "news.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("title", "tone"), *few_rows.made_up(300)])
    command(["prepare", "news.csv", "--text", "title", "--label", "tone", "--task", "mine"])
    shape = "{hidden_size: 128, intermediate_size: 256, num_hidden_layers: 2, num_attention_heads: 4, "
    (task_folder / "kept.yaml").write_text(
        "extends: small.yaml\nsave_strategy: epoch\nlearning_rate: 4e-3\nper_device_train_batch_size: 24\n"
        f"tiny_config: {shape}num_key_value_heads: 2, head_dim: 32, tie_word_embeddings: true}}\n"
    )
    capsys.readouterr()
    return task_folder


def train(*words: str) -> dict:
    script("train_sft").main(["data/mine.yaml", "kept.yaml", *SMALL[2:], "--output_dir", "run", *words])
    return json.loads(open("run/metrics.json").read())


def test_a_prepared_file_of_300_rows_and_four_uneven_classes_reaches_tfidf(mine, capsys):
    result = train("--min_steps", "110")
    said, training, rows = capsys.readouterr().out, result["training"], result["data"]["rows"]["train"]
    assert rows == 240
    assert "steps: 240 rows are 10 steps an epoch: 12 epochs instead of 3, for min_steps 110" in said
    simple = result["test"]["simple"]
    assert result["test"]["accuracy"] >= simple["TF-IDF"]["accuracy"] > simple["majority class"]["accuracy"]
    assert "No better than" not in said

    # at most ten evaluations, the last at the end; what is kept is the first that no later one is better than
    evaluated = {entry["step"]: entry["eval_accuracy"] for entry in training["log"] if "eval_accuracy" in entry}
    assert list(evaluated) == [20, 40, 60, 80, 100, 120] and training["steps"] == 120
    best = max(evaluated, key=evaluated.get)
    assert best < 120 and training["best_step"] == best and training["best_eval_accuracy"] == evaluated[best]
    kept, last = (load_file(f"run/checkpoint-{step}/adapter_model.safetensors") for step in (best, 120))
    saved = load_file("run/adapter_model.safetensors")
    assert all(torch.equal(saved[name], kept[name]) for name in saved)
    assert not all(torch.equal(saved[name], last[name]) for name in saved)


def test_few_rows_without_enough_steps_end_in_the_command_that_does_better(mine, capsys):
    result = train("--num_train_epochs", "1", "--learning_rate", "1e-5")
    said = " ".join(capsys.readouterr().out.split())
    assert result["training"]["steps"] == 10
    assert "instead of" not in said and "min_steps" not in json.dumps(result["identity"])
    tfidf = "train_linear.py data/mine.yaml configs/baselines/tfidf.yaml"
    assert "first choice: `tiny` has never read a text; TF-IDF labels better" in said
    assert said.count(tfidf) == 2  # before it trains, and at the end
    assert "No better than always answering 'payout'" in said
    assert "No better than TF-IDF on the same rows" in said and "make baselines TASKS=mine" in said
    script("train_linear").main(["data/mine.yaml", str(ROOT / "configs/baselines/tfidf.yaml"), "--report_to", "none"])
    said = capsys.readouterr().out
    assert "first choice" not in said and "No better than" not in said
    assert json.loads((mine / "runs/mine/tfidf/metrics.json").read_text())["test"]["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 200),
        (["--num_train_epochs", "2"], 0),
        (["--max_steps=7"], 0),
        (["--min_steps", "9"], 9),
        (["--num_train_epochs", "2", "--min_steps", "9"], 9),
        (["epochs.yaml"], 0),
        (["epochs.yaml", "more.yaml"], 200),
    ],
)
def test_what_states_a_length_later_wins_over_min_steps(task_folder, words, expected):
    from trl import ModelConfig, SFTConfig

    (task_folder / "more.yaml").write_text("extends: small.yaml\nmin_steps: 200\n")
    (task_folder / "epochs.yaml").write_text("num_train_epochs: 5\n")
    recipe = parse_recipe(["data/toy.yaml", "more.yaml", *words], SftArguments, SFTConfig, ModelConfig)
    assert recipe.run_args.min_steps == expected == recipe.identity("0" * 64).get("min_steps", 0)
