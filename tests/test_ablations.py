"""The grids of the paper's questions: every run once, none twice, and a report that says what came out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from trl import ModelConfig, SFTConfig
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from fintune.errors import UserError
from fintune.recipe.recipe import SftArguments, parse_recipe
from fintune.results import ablation_report, ablations
from fintune.results.ablation_variants import Variant
from fintune.results.compare import compare
from fintune.results.jobs import Job, run_all

ONE_RUN = {"encoder": None, "at_once": None, "overlay": None, "seed": 42}


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/ablations/*.yaml")), ids=lambda path: path.stem)
def test_an_overlay_states_one_to_three_keys_that_parse(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert 1 <= len(lines) <= 4
    if not path.stem.endswith("-encoder"):
        argv = [str(ROOT / "data/sentiment.yaml"), str(ROOT / "configs/tiny.yaml"), str(path)]
        parse_recipe([*argv, "--use_cpu", "true", "--bf16", "false"], SftArguments, SFTConfig, ModelConfig)


def test_every_question_is_a_grid_of_recipes_that_exist_and_a_sweep_that_wandb_takes():
    found = ablations.sweeps([])
    assert set(found) == {"neftune", "rank", "epochs", "share", "kv-heads", "batching", "modules"}
    points = ablations.grid(found, {"auto": "tiny"}, None, 5)
    assert len({point.folder for point in points}) == len(points) > 50
    for point in points:
        assert all(layer.is_file() for layer in point.layers)
    assert len(ablations.grid(found, {"auto": "tiny"}, None, 1)) < len(points)
    for sweep in found.values():
        # W&B's schema knows no other keys at the top, and refuses what it does not know
        assert set(sweep) == {"name", "description", "program", "command", "method", "parameters"}
        assert sweep["method"] == "grid" and sweep["program"] == "fintune"
        assert sweep["name"].endswith("?") and len(sweep["description"]) > 50
        assert set(sweep["parameters"]) == {"task", "model", "overlay", "seed"}  # the flags that a wandb agent gives
    unfit = [point.name for point in points if point.cannot_exist()]
    assert unfit == ["tiny-kv-heads-2-seed42", "tiny-kv-heads-4-seed42", "tiny-kv-heads-32-seed42"]
    encoder = ablations.Point("sentiment", "bert-base", "epochs-10", 42)
    assert encoder.layers[1].stem == "epochs-10-encoder"
    with pytest.raises(UserError, match="there are batching, epochs"):
        ablations.sweeps(["weather"])


def agent_command(sweep: dict, run: dict) -> list[str]:
    """What a wandb agent runs, as wandb/wandb_agent.py puts it together."""
    values = create_sweep_command_args({"args": {key: {"value": value} for key, value in run.items()}})
    values |= {"program": [sweep["program"]], "env": ["/usr/bin/env"]}
    words = []
    for word in create_sweep_command(sweep["command"]):
        words += values[word[2:-1]] if word.startswith("${") and word.endswith("}") else [word]
    return words


def test_a_wandb_agent_runs_one_point_by_the_command_of_this_package():
    run = {"task": "sentiment", "model": "auto", "overlay": "rank-16", "seed": 43}
    expected = ["/usr/bin/env", "fintune", "ablations"]
    expected += ["--task=sentiment", "--model=auto", "--overlay=rank-16", "--seed=43"]
    for sweep in ablations.sweeps([]).values():
        assert agent_command(sweep, run) == expected


@pytest.fixture
def questions(task_folder, monkeypatch):
    """Two questions in a checkout of their own."""
    monkeypatch.setattr(ablations, "checkout", lambda: task_folder)
    for name in ("ablations", "sweeps", "baselines"):
        (task_folder / "configs" / name).mkdir(parents=True)
    (task_folder / "configs/small.yaml").write_text((task_folder / "small.yaml").read_text())
    (task_folder / "configs/baselines/majority.yaml").write_text("script: train_linear.py\nlinear_model: majority\n")
    for name in ("neftune-0", "share-50"):
        (task_folder / f"configs/ablations/{name}.yaml").symlink_to(ROOT / f"configs/ablations/{name}.yaml")
    for script_name in ("train_linear", "train_cls", "train_sft"):
        (task_folder / f"{script_name}.py").symlink_to(ROOT / f"{script_name}.py")
    for name, models, overlay in (("neftune", ["auto"], "neftune-0"), ("share", ["majority", "auto"], "share-50")):
        values = {"model": models, "overlay": ["none", overlay], "seed": [42, 43]}
        parameters = {key: {"values": value} for key, value in values.items()} | {"task": {"value": "toy"}}
        sweep = {"name": f"{name}?", "description": "nothing more", "parameters": parameters}
        (task_folder / f"configs/sweeps/{name}.yaml").write_text(yaml.safe_dump(sweep))


def test_a_grid_is_trained_once_and_answered(questions, task_folder, capsys):
    ablations.run_ablations([], "small", None, 1, **ONE_RUN | {"at_once": 2})
    said = capsys.readouterr().out
    assert "ablations: 5 trained, 0 skipped, 0 failed" in said  # small, with neftune-0, share-50; majority, share-50
    ablations.run_ablations([], "small", None, 1, **ONE_RUN)
    assert "ablations: 0 trained, 5 skipped, 0 failed" in capsys.readouterr().out
    ablations.run_ablations([], "small", "toy", 1, **ONE_RUN | {"overlay": "share-50"})
    assert "0 trained, 1 skipped" in capsys.readouterr().out

    ablations.write_report([], None)
    text = (task_folder / "docs/ablations.md").read_text()
    assert "5 runs" in text and "on toy" in text
    for name in ("neftune", "share"):
        assert f"## {name}?" in text and f"![{name}?](ablations/{name}.png)" in text
        assert (task_folder / f"docs/ablations/{name}.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((task_folder / "runs/toy/ablations/small-neftune-0-seed42/metrics.json").read_text())
    assert f"| neftune-0 | 1 | {result['test']['accuracy']:.4f} (" in text
    before = text
    ablations.write_report([], None)
    assert (task_folder / "docs/ablations.md").read_text() == before  # the same runs give the same bytes
    compare(Path("runs"), None, wandb=False)
    assert "ablations: test split, 12 rows" in (task_folder / "runs/report.md").read_text()


def test_a_run_that_fails_is_named_and_ends_in_exit_code_1(questions, task_folder, capsys):
    (task_folder / "configs/ablations/share-50.yaml").unlink()
    (task_folder / "configs/ablations/share-50.yaml").write_text("train_shar: 0.5\n")
    with pytest.raises(SystemExit) as stopped:
        ablations.run_ablations([], "majority", "toy", 1, **ONE_RUN | {"overlay": "share-50"})
    said = capsys.readouterr()
    assert stopped.value.code == 1 and "failed: toy/majority-share-50" in said.err
    assert "ablations: 0 trained, 0 skipped, 1 failed" in said.out
    for wrong in ({"seeds": 0}, {"at_once": 0}):
        with pytest.raises(UserError, match="from 1 on"):
            ablations.run_ablations([], "small", None, **{"seeds": 1, **ONE_RUN, **wrong})


def test_the_outcome_is_said_with_its_noise():
    def variant(label: str, real: bool):
        class Pair:
            difference = 0.05

        Pair.real = real
        return Variant(label, "tiny", None, Pair())

    recipe = Variant("recipe", "tiny", None)
    assert "Nothing is compared" in ablation_report.verdict([recipe])
    assert ablation_report.verdict([recipe, variant("a", False)]).startswith("a does not differ from the recipe")
    none = ablation_report.verdict([recipe, variant("a", False), variant("b", False)])
    assert none == "None of 2 variants differs from the recipe by more than noise."
    said = ablation_report.verdict([recipe, variant("a", False), variant("b", True)])
    assert said == "1 of 2 variants differs from the recipe by more than noise: b (+5.0 points)."


def test_runs_side_by_side_end_together_on_a_signal(tmp_path):
    code = (
        "import sys; from pathlib import Path; from fintune.results.jobs import Job, run_all\n"
        "child = [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)']\n"
        "run_all([Job(str(n), child, Path(f'{n}.log')) for n in range(4)], at_once=2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while sum(path.stat().st_size > 0 for path in tmp_path.glob("*.log")) < 2:
        assert process.poll() is None
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "the same command skips what is finished" in said
    assert len(list(tmp_path.glob("*.log"))) == 2  # the third was not begun
    failed = run_all([Job("bad", [sys.executable, "-c", "raise SystemExit(2)"], tmp_path / "bad.log")])
    assert failed == ["bad"]
