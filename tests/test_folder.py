"""A run's folder: its card, its base, its paths, and what is said when it takes the place of an older one."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, SMALL, script
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from test_export import run_snippet

from fintune.deploy.classifier import Classifier
from fintune.results.restore import read_recipe

MAJORITY = [str(ROOT / "configs/baselines/majority.yaml"), "--report_to", "none"]


def test_a_run_of_tiny_loads_by_its_adapter_alone_and_its_card_shows_how(run_dir, monkeypatch):
    root = run_dir.parents[2]
    monkeypatch.chdir(root)
    model = AutoPeftModelForCausalLM.from_pretrained("runs/toy/small")
    ours = Classifier.from_pretrained(run_dir, merge=False).scorer.wrapped.state_dict()
    assert all(torch.equal(weights, ours[name]) for name, weights in model.state_dict().items())

    card = (run_dir / "README.md").read_text()
    result = json.loads((run_dir / "metrics.json").read_text())
    assert "README.md" not in result["files"]  # whose owner may edit it
    assert ModelCard(card).data.eval_results[0].metric_value == result["test"]["accuracy"]
    assert ModelCard(card).data.library_name == "peft"
    assert str(root) not in card and "merged" not in card and "After export" not in card
    label = Classifier.from_pretrained(run_dir)(["Alder raised its dividend again"])[0][0]
    assert run_snippet(card, root, monkeypatch) == label


def test_a_run_on_a_local_folder_names_that(task_folder, toy):
    toy[2].tokenizer.save_pretrained("base")
    flags = ["--model_name_or_path", "base", "--max_steps", "1", "--eval_strategy", "no"]
    script("train_sft").main(["data/toy.yaml", "small.yaml", *SMALL, *flags])
    assert AutoPeftModelForCausalLM.from_pretrained("runs/toy/small").active_adapters == ["default"]
    assert "base with a rank-stabilised LoRA adapter," in Path("runs/toy/small/README.md").read_text()


def test_a_recipes_paths_move_with_the_checkout_and_others_stay(task_folder, tmp_path_factory, monkeypatch):
    script("train_linear").main(["data/toy.yaml", *MAJORITY])
    stated = yaml.safe_load(Path("runs/toy/majority/recipe.yaml").read_text())
    assert stated["files"]["all"]["path"] == "../../../data/toy.csv"
    moved = tmp_path_factory.mktemp("elsewhere") / "checkout"
    shutil.copytree(task_folder, moved)
    recipe = read_recipe(moved / "runs/toy/majority", "train_linear.py")
    assert recipe.task.files["all"].path == str(moved / "data/toy.csv")
    monkeypatch.chdir(moved / "runs")  # the data are not in this checkout
    script("train_linear").main([str(moved / "data/toy.yaml"), *MAJORITY, "--output_dir", "far"])
    assert yaml.safe_load(Path("far/recipe.yaml").read_text())["files"]["all"]["path"] == str(moved / "data/toy.csv")


def test_an_older_result_is_named_with_its_accuracy_before_it_is_replaced(task_folder, capsys):
    argv = ["data/toy.yaml", *MAJORITY]
    script("train_linear").main(argv)
    assert "older result" not in capsys.readouterr().out
    accuracy = json.loads(Path("runs/toy/majority/metrics.json").read_text())["test"]["accuracy"]
    script("train_linear").main(argv)
    line = (
        f"runs/toy/majority/metrics.json: holds an older result, test accuracy {accuracy:.4f}, which this run replaces"
    )
    assert capsys.readouterr().out.splitlines().count(line) == 1


def test_a_run_on_the_sample_claims_no_licence_of_the_real_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script("train_linear").main([str(ROOT / "data/sentiment.yaml"), *MAJORITY])
    run = tmp_path / "runs/sentiment/majority"
    assert json.loads((run / "metrics.json").read_text())["data"]["license"] == "Apache 2.0 (invented rows)"
    card = (run / "README.md").read_text()
    assert ModelCard(card).data.license == "apache-2.0"
    assert "BY-NC" not in card and "non-commercial" not in card


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_help_lists_every_target_in_a_line():
    targets = re.findall(r"^([a-z%-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == [target.replace("%", "<task>") for target in targets]
    assert "train-<task>" in done.stdout
    assert all(len(line) <= 100 and len(line.split()) > 3 for line in lines)
