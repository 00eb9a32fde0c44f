"""One training that is stopped, refused, resumed and evaluated: what W&B, TensorBoard and the terminal get."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from conftest import ROOT, SMALL, script, write_task
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from fintune.errors import Stopped, UserError
from fintune.recipe.recipe import parse_recipe
from fintune.results.restore import ARGUMENTS
from fintune.training import session, tracking
from fintune.training.checkpoints import CheckpointManifest

FLAGS = ["--num_train_epochs", "2", "--save_strategy", "epoch", "--learning_rate", "1e-3", "--logging_steps", "2"]
TOY = ["data/toy.yaml", "small.yaml", *SMALL[:2], "--disable_tqdm", "true", "--report_to", "all"]
NAME = "toy-small-num_train_epochs=2.0-learning_rate=0.001-logging_steps=2.0-save_strategy=epoch"


class StopAt5(CheckpointManifest):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        super().on_step_end(args, state, control, **kwargs)


def wandb_runs() -> list[Path]:
    return sorted(Path("wandb").glob("offline-run-*"))


def records(folder: Path) -> list[dict]:
    """What W&B kept of an offline run, as its own viewer reads it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The folder it ran in, the run's own, what was printed, and how many W&B runs there were after each step."""
    folder = write_task(tmp_path_factory.mktemp("logged"))
    counts, out = [], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(folder))
        wandb.teardown()  # settings of an earlier test's run would stay
        train = script("train_sft").main
        with patch.context() as stopping, pytest.raises(Stopped):
            stopping.setattr(session, "CheckpointManifest", StopAt5)
            train([*TOY, *FLAGS])
        wandb.finish()  # as the end of the process does
        counts.append(len(wandb_runs()))
        with pytest.raises(UserError, match="an unfinished run is here"):
            train([*TOY, *FLAGS])
        counts.append(len(wandb_runs()))
        train([*TOY, *FLAGS, "--resume_from_checkpoint", "true"])
        counts.append(len(wandb_runs()))
        script("evaluate").main(["runs/toy/small"])
        counts.append(len(wandb_runs()))
        wandb.teardown()  # waits for what its service still writes
        yield SimpleNamespace(folder=folder, run=folder / "runs/toy/small", out=out.getvalue(), counts=counts)


def test_a_resumed_run_goes_on_in_its_own_wandb_run_and_a_refusal_leaves_none(logged):
    assert logged.counts == [1, 1, 2, 3]
    kept = json.loads((logged.run / "wandb.json").read_text())
    first, second, evaluation = sorted(logged.folder.glob("wandb/offline-run-*"))
    assert first.name.endswith(kept["id"]) and second.name.endswith(kept["id"])
    assert not evaluation.name.endswith(kept["id"])
    assert kept["name"] == kept["group"] == NAME


def test_wandb_gets_names_tags_figures_and_charts(logged):
    _, *folders = sorted(logged.folder.glob("wandb/offline-run-*"))
    test = json.loads((logged.run / "metrics.json").read_text())["test"]
    for folder, job_type, name in zip(folders, ("train", "evaluate"), (NAME, f"{NAME}-test"), strict=True):
        found = records(folder)
        [run] = [record["run"] for record in found if record["type"] == "run"]
        assert (run["display_name"], run["run_group"], run["job_type"]) == (name, NAME, job_type)
        assert run["tags"] == ["file", "tiny", "toy"]
        summary = {}
        for record in found:
            summary |= record["summary"]["update"] if record["type"] == "summary" else {}
        assert summary["test/accuracy"] == test["accuracy"]
        assert summary["test/f1/Up or down"] == test["per_class"]["Up or down"]["f1"]
        tables = {key.split(".")[0] for key in summary}  # test/predictions.nrows
        assert {"test/reliability_table", "test/f1_by_class_table", "test/predictions"} <= tables


def test_another_tracker_gets_the_figures_of_the_test(logged):
    [folder] = {path.parent for path in logged.run.rglob("events.out.tfevents.*") if "test/accuracy" in scalars(path)}
    test = json.loads((logged.run / "metrics.json").read_text())["test"]
    [found] = [scalars(path) for path in folder.iterdir() if "test/accuracy" in scalars(path)]
    assert found["test/accuracy"] == pytest.approx(test["accuracy"])
    assert found["test/f1/Down"] == pytest.approx(test["per_class"]["Down"]["f1"])
    assert "test/mean_token_accuracy" not in found


def scalars(path: Path) -> dict[str, float]:
    """The last value of each tag in a file of TensorBoard's events."""
    events = EventAccumulator(str(path))
    events.Reload()
    return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


def test_a_tracker_ends_its_run_after_the_tests_figures_or_with_an_exception():
    happened = []

    class Tracker(TrainerCallback):
        def on_train_end(self, *args, **kwargs):
            happened.append("end")

        def on_log(self, args, state, control, logs, **kwargs):
            happened.append(sorted(logs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tracking.INTEGRATION_TO_CALLBACK, "mlflow", Tracker)
        trainer = stub_trainer(Tracker())
        with tracking.trackers_kept_open(trainer):
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        assert happened == []
        metrics = {"accuracy": 0.5, "accuracy_interval": [0, 1], "per_class": {"Up": {"f1": 0.25}}}
        recipe = SimpleNamespace(training_args=trainer.args)
        tracking.log_result(recipe, {"split": "test", "test": metrics}, [], trainer)
        assert happened == [["epoch", "test_accuracy", "test_f1/Up"], "end"]
        with pytest.raises(KeyboardInterrupt), tracking.trackers_kept_open(trainer):
            raise KeyboardInterrupt
        assert happened[2:] == ["end"]


def stub_trainer(tracker: TrainerCallback):
    import torch
    from transformers import Trainer, TrainingArguments

    trainer = Trainer(
        torch.nn.Linear(1, 1), TrainingArguments("out", report_to="none", use_cpu=True, disable_tqdm=True)
    )
    trainer.add_callback(tracker)
    trainer.state.epoch = 1.0
    return trainer


def test_a_resumed_runs_time_counts_all_its_parts(logged):
    training = json.loads((logged.run / "metrics.json").read_text())["training"]
    before = json.loads((logged.run / "checkpoint-14/manifest.json").read_text())["seconds"]
    [own] = [entry for entry in training["log"] if "train_runtime" in entry]
    assert training["resumed_from"] == "runs/toy/small/checkpoint-5"
    assert training["train_runtime"] > before > own["train_runtime"] > 0  # the last checkpoint holds both parts' time
    rows = own["train_samples_per_second"] * own["train_runtime"]
    assert training["train_samples_per_second"] * training["train_runtime"] == pytest.approx(rows)


def test_the_terminal_gets_a_line_an_evaluation_and_no_dicts(logged):
    lines = [line for line in logged.out.splitlines() if line.startswith("step ")]
    number = r"\d\.\d+(e-\d+)?"
    pattern = rf"step (7|14)/14, epoch [12]: loss {number}, validation accuracy 0\.\d{{4}}, learning rate {number}, "
    assert [re.match(pattern, line)[1] for line in lines] == ["7", "14"]
    assert all(re.search(r", \d:\d\d:\d\d left$", line) and len(line) <= 100 for line in lines)
    assert "{'" not in logged.out and "mean_token_accuracy" not in logged.out
    assert sum(line.startswith("audit: ") for line in logged.out.splitlines()) == 3 * 3  # runs that began


@pytest.mark.parametrize(
    "name, flags", [("toy-small", []), ("toy-small-seed1-lora_r=4", ["--lora_r", "4", "--seed", "1"])]
)
def test_a_name_tells_flags_apart(name, flags, task_folder):
    recipe = parse_recipe(["data/toy.yaml", "small.yaml", "--report_to", "none", *flags], *ARGUMENTS["train_sft.py"])
    tracking.open_run(recipe, "tiny", "file")
    assert recipe.training_args.run_name == name


def test_long_names_stay_apart():
    names = {tracking._run_name("x", {"lora_target_modules": ["q_proj"] * 40, "lora_r": r}) for r in (4, 8)}
    assert len(names) == 2 and all(len(name) == tracking.LONGEST_NAME for name in names)


OFF = {
    "WANDB_DISABLED=true": {"WANDB_DISABLED": "true", "WANDB_MODE": "offline"},
    "WANDB_MODE=disabled": {"WANDB_MODE": "disabled"},
    "wandb disabled": {},
}


@pytest.mark.parametrize("name", ["train_sft", "train_linear"])
@pytest.mark.parametrize("switch", OFF)
def test_a_run_is_not_logged_where_wandb_is_switched_off(switch, name, task_folder, monkeypatch, capsys):
    for key in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(key, raising=False)
    for key, value in OFF[switch].items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WANDB_DIR", str(task_folder))
    if not OFF[switch]:
        (task_folder / "wandb").mkdir()
        (task_folder / "wandb/settings").write_text("[default]\nmode = disabled\n")
    wandb.teardown()  # settings of an earlier test's run would stay
    layers = ["small.yaml", *SMALL[:2], "--min_steps", "0", "--disable_tqdm", "true"]
    if name == "train_linear":
        layers = [str(ROOT / "configs/baselines/majority.yaml")]
    script(name).main(["data/toy.yaml", *layers, "--output_dir", "run", "--report_to", "wandb"])
    script("evaluate").main(["run", "--report_to", "wandb"])
    assert wandb.run is None and not wandb_runs() and not Path("run/wandb.json").exists()
    assert "wandb" not in capsys.readouterr().out.replace("report_to wandb", "")
    wandb.teardown()
