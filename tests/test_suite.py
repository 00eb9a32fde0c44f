"""The suite of baselines: what can run here, what is finished, what goes to which script."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, SMALL, script
from transformers import TrainingArguments
from trl import ModelConfig, SFTConfig

from fintune import machine
from fintune.data.load import load_data
from fintune.errors import UserError
from fintune.model.encoder import EncoderArguments
from fintune.model.linear import LinearArguments
from fintune.model.wheel import weights_of
from fintune.recipe.layers import read_layer, read_layers, read_task
from fintune.recipe.recipe import SftArguments, parse_recipe
from fintune.results import baselines, jobs
from fintune.results.suite import Baseline, cannot_run, finished
from fintune.training.checkpoints import finished_checkpoints


@pytest.fixture
def suite(task_folder, monkeypatch):
    """Recipes in a checkout of their own."""
    monkeypatch.setattr(baselines, "checkout", lambda: task_folder)
    monkeypatch.setattr(baselines, "SFT", ())
    monkeypatch.setattr(machine, "free_gpu_gib", lambda: 0.0)
    monkeypatch.setattr(machine, "hub_reachable", lambda: False)
    for name in ("train_linear", "train_cls", "train_sft"):
        (task_folder / f"{name}.py").symlink_to(ROOT / f"{name}.py")
    recipes = task_folder / "configs/baselines"
    recipes.mkdir(parents=True)
    (recipes / "bert-base.yaml").symlink_to(ROOT / "configs/baselines/bert-base.yaml")
    (recipes / "large.yaml").write_text("extends: bert-base.yaml\nmin_gpu_gib: 12\n")
    (recipes / "majority.yaml").write_text("script: train_linear.py\nlinear_model: majority\n")
    return recipes


def test_it_skips_with_reasons_survives_a_failing_run_and_knows_finished_ones(suite, task_folder, capfd):
    (suite / "a-typo.yaml").write_text("script: train_linear.py\nlinear_model: tfidf\nngram_mx: 2\n")
    folder = task_folder / "runs/toy/majority"
    folder.mkdir(parents=True)
    of_other_rows = {"data": {"sha256": "another"}, "test": {"accuracy": 1.0}}
    (folder / "metrics.json").write_text(json.dumps(of_other_rows))

    with pytest.raises(SystemExit) as stopped:
        baselines.run_baselines(["toy"], None)
    said = capfd.readouterr()
    assert stopped.value.code == 1
    assert "failed: toy/a-typo" in said.err and "unknown key `ngram_mx`" in said.err
    assert "skip toy/large: needs 12 GiB of GPU memory, this machine has none" in said.out
    assert "skip toy/bert-base: the Hub cannot be reached and google-bert/bert-base-uncased is not in" in said.out
    assert "baselines: 1 trained, 2 skipped, 1 failed" in said.out
    result = json.loads((folder / "metrics.json").read_text())
    assert result["data"]["sha256"] != "another" and result["test"]["accuracy"] < 1.0

    (suite / "a-typo.yaml").unlink()
    baselines.run_baselines(["toy"], None)
    said = capfd.readouterr().out
    assert "skip toy/majority: finished, accuracy 0." in said
    assert "baselines: 0 trained, 3 skipped, 0 failed" in said

    (suite / "majority.yaml").write_text("script: train_linear.py\nlinear_model: tfidf\n")  # another recipe
    baselines.run_baselines(["toy"], None)
    assert "baselines: 1 trained, 2 skipped, 0 failed" in capfd.readouterr().out


def test_it_takes_a_local_encoder(suite, task_folder):
    base = task_folder / "small-bert"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").touch()
    baseline = next(baseline for baseline in baselines.suite(base) if baseline.name == "small-bert")
    assert baseline.script == "train_cls.py" and cannot_run(baseline) is None
    (base / "model.safetensors").unlink()
    assert "no safetensors" in cannot_run(baseline)
    with pytest.raises(UserError, match=r"no config\.json"):
        baselines.suite(task_folder / "data")
    (task_folder / "away").mkdir()
    base.rename(task_folder / "away/bert-base")
    with pytest.raises(UserError, match="a recipe is called bert-base"):  # both would train into one folder
        baselines.suite(task_folder / "away/bert-base")


def test_a_stopped_run_is_resumed_and_a_finished_one_begins_anew(task_folder):
    baseline, folder = Baseline.of(task_folder / "small.yaml"), task_folder / "run"
    assert baseline.flags(folder) == ["--resume_from_checkpoint", "false"]
    (folder / "checkpoint-3").mkdir(parents=True)
    (folder / "checkpoint-3/manifest.json").write_text("{}")
    assert baseline.flags(folder) == ["--resume_from_checkpoint", "true"]
    (folder / "metrics.json").write_text(json.dumps({"checkpoints": finished_checkpoints(folder)}))
    assert baseline.flags(folder) == ["--resume_from_checkpoint", "false"]
    (folder / "checkpoint-3/manifest.json").write_text('{"step": 3}')  # of a training that began anew
    assert baseline.flags(folder) == ["--resume_from_checkpoint", "true"]


def test_a_finished_run_of_another_template_recipe_or_seed_is_not_finished(task_folder):
    script("train_sft").main(["data/toy.yaml", "small.yaml", *SMALL, "--seed", "3"])
    folder, baseline = task_folder / "runs/toy/small-seed3", Baseline.of(Path("small.yaml"))
    data = load_data(read_task(Path("data/toy.yaml")))
    (task_folder / "once.yaml").write_text("num_train_epochs: 1\ngradient_checkpointing: true\nseed: 3\n")
    layer = read_layers([Path("data/toy.yaml"), Path("small.yaml"), Path("once.yaml")])

    def found(**changes) -> bool:
        return finished(folder, baseline.identity(layer | changes, data)) is not None

    assert found() and found(output_dir="elsewhere", learning_rate=1e-3)
    for changes in ({"seed": 4}, {"lora_r": 4}, {"learning_rate": 1e-4}, {"train_share": 0.5}, {"max_steps": 2}):
        assert not found(**changes), changes
    assert not finished(task_folder, baseline.identity(layer, data))
    (task_folder / "templates/toy.jinja").write_text("Up or down? {{ labels | join('; ') }}\n{{ text }} /no_think")
    assert not found()


def test_a_scored_model_is_finished_until_its_recipe_changes(task_folder, toy):
    toy[2].tokenizer.save_pretrained(task_folder / "base")
    recipe, path = task_folder / "model.yaml", Path("data/toy.yaml")
    recipe.write_text(f"extends: small.yaml\nmodel_name_or_path: {task_folder}/base\n")
    baseline, folder = Baseline.of(recipe), Path("runs/toy/base-zero-shot")
    baseline.script = "evaluate.py"
    _, evaluate, *words = baselines.command(path, baseline, folder)
    assert (evaluate, baseline.name) == (str(ROOT / "evaluate.py"), folder.name)

    def found() -> bool:
        layer = read_layer(path) | baselines.stated(baseline)
        return finished(folder, baseline.identity(layer, load_data(read_task(path)))) is not None

    assert not found()
    script("evaluate").main([*words, "--report_to", "none"])
    assert found()
    recipe.write_text(recipe.read_text() + "dtype: bfloat16\n")
    assert not found()


def test_a_recipe_names_its_script(task_folder):
    for line in ("", "script: train.py\n"):
        (task_folder / "odd.yaml").write_text(f"{line}model_name_or_path: tiny\n")
        with pytest.raises(UserError, match=r"odd\.yaml: `script` is .*; name the one that trains it: train_linear"):
            Baseline.of(task_folder / "odd.yaml")


def test_without_a_checkout_the_remedy_is_said(tmp_path, monkeypatch):
    assert jobs.checkout() == ROOT
    monkeypatch.setattr(jobs, "__file__", str(tmp_path / "lib/site-packages/fintune/results/jobs.py"))
    with pytest.raises(UserError, match=r"clone the repository and run `pip install -e \.` there"):
        jobs.checkout()


def test_every_baseline_goes_to_the_script_that_parses_it(monkeypatch):
    """Every recipe parses with its script's classes, pins its model to a commit, and gets the identity foreseen."""
    monkeypatch.chdir(ROOT)
    classes = {
        "train_linear.py": (LinearArguments,),
        "train_cls.py": (EncoderArguments, TrainingArguments),
        "train_sft.py": (SftArguments, SFTConfig, ModelConfig),
    }
    found = baselines.suite(None)
    names = {baseline.name for baseline in found}
    assert {
        "majority",
        "tfidf",
        "minilm-l6-frozen",
        "minilm-l6",
        "bert-base",
        "roberta-base",
        "t5-base",
        "tiny",
        "qwen3-8b",
    } <= names
    zero_shot = [baseline for baseline in found if baseline.script == "evaluate.py"]
    assert {(baseline.name, baseline.model) for baseline in zero_shot} == {
        ("qwen3-8b-zero-shot", "Qwen/Qwen3-8B"),
        ("qwen3-0.6b-zero-shot", "Qwen/Qwen3-0.6B"),
        ("smollm2-135m-instruct-zero-shot", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    }
    for baseline in [baseline for baseline in found if baseline not in zero_shot]:
        flags = ["--bf16", "false"] if baseline.script == "train_sft.py" else []  # refused where no GPU has it
        argv = ["data/sentiment.yaml", str(baseline.recipe), *flags]
        recipe = parse_recipe(argv, *classes[baseline.script], script=baseline.script)
        layer = read_layers([Path("data/sentiment.yaml"), baseline.recipe]) | ({"bf16": False} if flags else {})
        if baseline.model:
            recipe.weights = weights_of(baseline.model, baseline.revision, recipe.run_args.wheel)
        assert recipe.identity("of the rows") == baseline.identity(layer, SimpleNamespace(sha256="of the rows"))
        assert recipe.name == baseline.name
        assert baseline.model in (None, "tiny") or len(baseline.revision) == 40
        paper_row = recipe.run_args.paper_row
        assert paper_row is None or paper_row in recipe.task.paper
