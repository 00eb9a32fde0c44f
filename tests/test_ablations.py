"""The grids of the paper's questions: every run once, none twice, and a report that says what came out."""

import json
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, script
from fintune.ladder import Work, run_all
from trl import ModelConfig, SFTConfig

from fintune import ablation_report
from fintune.errors import UserError
from fintune.recipe import RunArguments, parse_recipe

SWEEPS = sorted(ROOT.glob("configs/sweeps/*.yaml"))


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/ablations/*.yaml")), ids=lambda path: path.stem)
def test_an_overlay_states_one_to_three_keys_that_parse(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert 1 <= len(lines) <= 4
    if not path.stem.endswith("-encoder"):
        argv = [str(ROOT / "data/sentiment.yaml"), str(ROOT / "configs/tiny.yaml"), str(path)]
        parse_recipe([*argv, "--use_cpu", "true", "--bf16", "false"], RunArguments, SFTConfig, ModelConfig)


def test_every_question_is_a_grid_of_recipes_that_exist_and_a_sweep_that_wandb_takes():
    module = script("ablations")
    found = module.sweeps([])
    assert set(found) == {"neftune", "rank", "epochs", "share", "kv-heads", "batching", "modules"}
    points = module.grid(found, {"auto": "tiny"}, None, 5)
    assert len({point.folder for point in points}) == len(points) > 50
    for point in points:
        assert all(layer.is_file() for layer in point.layers)
    assert len(module.grid(found, {"auto": "tiny"}, None, 1)) < len(points)
    for sweep in found.values():
        assert sweep["method"] == "grid" and sweep["program"] == "ablations.py"
        assert sweep["name"].endswith("?") and len(sweep["description"]) > 50
        assert set(sweep["parameters"]) == {"task", "model", "overlay", "seed"}  # the flags that a wandb agent gives
    unfit = [point.name for point in points if point.unfit()]
    assert unfit == ["tiny-kv-heads-2-seed42", "tiny-kv-heads-4-seed42", "tiny-kv-heads-32-seed42"]
    encoder = module.Point("sentiment", "bert-base", "epochs-10", 42)
    assert encoder.layers[1].stem == "epochs-10-encoder"
    with pytest.raises(UserError, match="there are batching, epochs"):
        module.sweeps(["weather"])


@pytest.fixture
def ablations(task_folder, monkeypatch):
    """ablations.py in a folder with two questions of its own."""
    module = script("ablations")
    monkeypatch.setattr(module, "ROOT", task_folder)
    for name in ("ablations", "sweeps", "baselines"):
        (task_folder / "configs" / name).mkdir(parents=True)
    (task_folder / "configs/small.yaml").write_text((task_folder / "small.yaml").read_text())
    (task_folder / "configs/baselines/majority.yaml").write_text("linear_model: majority\n")
    for name in ("neftune-0", "share-50"):
        (task_folder / f"configs/ablations/{name}.yaml").symlink_to(ROOT / f"configs/ablations/{name}.yaml")
    for script_name in ("train_linear", "train_cls", "train_sft"):
        (task_folder / f"{script_name}.py").symlink_to(ROOT / f"{script_name}.py")
    for name, models, overlay in (("neftune", ["auto"], "neftune-0"), ("share", ["majority", "auto"], "share-50")):
        values = {"model": models, "overlay": ["none", overlay], "seed": [42, 43]}
        parameters = {key: {"values": value} for key, value in values.items()} | {"task": {"value": "toy"}}
        sweep = {"name": f"{name}?", "description": "nothing more", "parameters": parameters}
        (task_folder / f"configs/sweeps/{name}.yaml").write_text(yaml.safe_dump(sweep))
    return module


def test_a_grid_is_trained_once_and_answered(ablations, task_folder, capsys):
    ablations.main(["--model", "small", "--seeds", "1", "--at-once", "2"])
    said = capsys.readouterr().out
    assert "ablations: 5 trained, 0 skipped, 0 failed" in said  # small, with neftune-0, share-50; majority, share-50
    ablations.main(["--model", "small", "--seeds", "1"])
    assert "ablations: 0 trained, 5 skipped, 0 failed" in capsys.readouterr().out
    ablations.main(["--model", "small", "--overlay", "share-50", "--task", "toy", "--seed", "42"])
    assert "0 trained, 1 skipped" in capsys.readouterr().out

    ablations.main(["--report"])
    text = (task_folder / "docs/ablations.md").read_text()
    assert "5 runs" in text and "on toy" in text
    for name in ("neftune", "share"):
        assert f"## {name}?" in text and f"![{name}?](ablations/{name}.png)" in text
        assert (task_folder / f"docs/ablations/{name}.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((task_folder / "runs/toy/ablations/small-neftune-0-seed42/metrics.json").read_text())
    assert f"| neftune-0 | 1 | {result['test']['accuracy']:.4f} (" in text
    before = text
    ablations.main(["--report"])
    assert (task_folder / "docs/ablations.md").read_text() == before  # the same runs give the same bytes
    script("compare").main([])
    assert "ablations: test split, 12 rows" in (task_folder / "runs/report.md").read_text()


def test_what_came_out_is_said_with_its_noise(monkeypatch):
    def variant(label: str, real: bool):
        class Pair:
            difference = 0.05

        Pair.real = real
        return ablation_report.Variant(label, "tiny", None, Pair())

    recipe = ablation_report.Variant("recipe", "tiny", None)
    assert "Nothing is compared" in ablation_report.verdict([recipe])
    assert ablation_report.verdict([recipe, variant("a", False)]).startswith("a does not differ from the recipe")
    none = ablation_report.verdict([recipe, variant("a", False), variant("b", False)])
    assert none == "None of 2 variants differs from the recipe by more than noise."
    said = ablation_report.verdict([recipe, variant("a", False), variant("b", True)])
    assert said == "1 of 2 variants differ from the recipe by more than noise: b (+5.0 points)."


def test_runs_side_by_side_end_together_on_a_signal(tmp_path):
    code = (
        "import sys; from pathlib import Path; from fintune.ladder import Work, run_all\n"
        "child = [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)']\n"
        "run_all([Work(str(n), child, Path(f'{n}.log')) for n in range(4)], at_once=2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while sum(path.stat().st_size > 0 for path in tmp_path.glob("*.log")) < 2:
        assert process.poll() is None
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "the same command skips what is finished" in said
    assert len(list(tmp_path.glob("*.log"))) == 2  # the third was not begun
    failed = run_all([Work("bad", [sys.executable, "-c", "raise SystemExit(2)"], tmp_path / "bad.log")])
    assert failed == ["bad"]
