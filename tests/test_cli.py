"""The command answers help and mistakes at once and in one line, and ends with the exit code that it promises."""

import json
import os
import resource
import signal
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import typer
from conftest import ROOT

from fintune import cli
from fintune.errors import EXTRAS, Stopped, UserError, missing_module

COMMANDS = ["predict", "serve", "export", "prepare", "audit", "compare", "baselines", "ablations", "cascade"]
HEAVY = ["torch", "transformers", "trl", "peft"]


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """runs/done, as a finished run's folder looks before its weights are read."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/done"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("task: toy\n")
    calibration = {"temperature": 1.0, "curve": [[0.9, 0.5, 0.95], [0.4, 1.0, 0.8]]}
    result = {"schema": 2, "script": "train_sft.py", "data": {"labels": ["Up", "Down"]}, "calibration": calibration}
    (folder / "metrics.json").write_text(json.dumps(result))
    (tmp_path / "news.csv").write_text("title,tone\nAlder rose,Up\n")
    (tmp_path / "labelled.csv").write_text("label,title\nUp,Alder rose\n")
    return tmp_path


def main(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    """(exit code, standard error) of the command."""
    monkeypatch.setattr(sys, "argv", ["fintune", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr().err


def test_help_lists_every_command_and_every_option_with_its_default(capsys):
    root = typer.main.get_command(cli.app)
    assert list(root.commands) == COMMANDS
    assert cli.command([]) == 0
    overview = capsys.readouterr().out
    for name, verb in root.commands.items():
        assert f"\n  {name}" in overview
        assert "..." not in verb.get_short_help_str(60), "the list of commands would break its sentence off"
        assert cli.command([name, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "Example" in shown
        assert f"fintune {name} " in shown
        context = typer.Context(verb, info_name=name)
        for parameter in verb.params:
            if "--help" in parameter.opts:
                continue
            names, text = parameter.get_help_record(context)
            assert parameter.help, f"{name} {parameter.name} has no help"
            assert "[default: " in text or "[required]" in text, f"{name} {parameter.name} hides its default"
            assert " ".join(f"{names} {text}".split()) in shown


@pytest.mark.parametrize(
    "words, message",
    [
        (["predic"], "No such command 'predic'. Did you mean 'predict'?"),
        (["predict", "runs/done"], "Missing argument 'INPUT'"),
        (["predict", "a", "b", "--outptu", "c"], "No such option: --outptu (Possible options: --output)"),
        (["predict", "a", "b", "-o", "c", "--engine", "spark"], "'spark' is not one of 'local', 'ray'"),
        (
            ["predict", "a", "b", "-o", "c", "--abstain-below", "1.5"],
            "'--abstain-below': Input should be less than or equal to 1",
        ),
        (["predict", "a", "b", "-o", "c", "--target-accuracy", "high"], "'--target-accuracy'"),
        (["serve", "a", "--port", "70000"], "'--port': Input should be less than or equal to 65535"),
        (["export", "a", "b", "c"], "unexpected extra argument"),
        (["prepare", "a.csv", "--text", "t", "--label", "l"], "Missing option '--task'"),
        (["ablations", "--seeds", "0"], "'--seeds': Input should be greater than or equal to 1"),
    ],
)
def test_a_mistyped_command_line_is_answered_in_one_line(words, message, monkeypatch, capsys):
    code, said = main(monkeypatch, capsys, *words)
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said
    known = words[0] if words[0] in COMMANDS else ""
    assert f"`{' '.join(['fintune', known]).strip()} --help`" in said


def test_exit_codes_are_those_that_help_and_shells_promise(monkeypatch, capsys):
    def ends(outcome) -> int:
        def predict(*args):
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr("fintune.deploy.predict.predict", predict)
        return main(monkeypatch, capsys, "predict", "run", "in.csv", "-o", "out.csv")[0]

    assert ends(0) == 0
    assert ends(3) == 3
    assert ends(UserError("wrong")) == 2
    assert ends(Stopped(signal.SIGTERM, "out.csv.parts", "the same command")) == 128 + signal.SIGTERM
    assert ends(KeyboardInterrupt()) == 128 + signal.SIGINT
    assert ends(SystemExit(1)) == 1  # of a suite in which runs failed
    assert ends(typer.Exit(5)) == 5


def test_mistakes_are_found_before_a_model_library_is_imported(run_folder):
    predict, out = ["predict", "runs/done"], ["-o", "out.csv"]
    mistakes = [
        (["predict", "runs/none", "news.csv", *out], "runs/none: not a finished run"),
        ([*predict, "none.csv", *out], "none.csv: no such file"),
        ([*predict, "news.xls", "-o", "out.xls"], "news.xls: ends in none of .csv"),
        ([*predict, "news.csv", "-o", "out.jsonl"], "what is made of news.csv ends in .csv"),
        ([*predict, "news.csv", *out], "column 'text' is missing from the header"),
        ([*predict, "news.csv", "--text-column", "title", "-o", "labelled.csv"], "labelled.csv: already exists"),
        ([*predict, "labelled.csv", "--text-column", "title", *out], "has a column 'label' already"),
        ([*predict, "news.csv"], "a file needs -o OUTPUT"),
        ([*predict, "-", *out], "not allowed"),
        ([*predict, "-", "--engine", "ray"], "--engine ray labels a folder"),
        ([*predict, "-", "--target-accuracy", "0.99"], "at best 0.9500"),
        ([*predict, "-", "--target-accuracy", "0.9", "--abstain-below", "0.5"], "give one of them"),
        ([*predict, "-", "--abstain-below", "nan"], "Input should be less than or equal to 1"),
        (["serve", "runs/none"], "runs/none: not a finished run"),
        (["serve", "runs/done", "--target-accuracy", "0.99"], "at best 0.9500"),
        (["export", "runs/none", "plain"], "runs/none: not a finished run"),
        (["export", "runs/done", "runs"], "runs: already exists"),
        (["prepare", "none.csv", "--text", "title", "--label", "tone", "--task", "mine"], "none.csv: no such file"),
        (["prepare", "news.csv", "--text", "text", "--label", "tone", "--task", "mine"], "column 'text' is missing"),
        (["audit", "data/none.yaml"], "data/none.yaml: no such recipe file"),
    ]
    code = f"""
import json, sys
from fintune.cli import command
from fintune.errors import UserError
for words in json.loads(sys.argv[1]):
    try:
        command(words)
    except UserError as error:
        print(json.dumps([str(error), [name for name in {HEAVY} if name in sys.modules]]))
"""
    words = json.dumps([words for words, _ in mistakes])
    done = subprocess.run([sys.executable, "-c", code, words], cwd=run_folder, capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(mistakes), done.stderr
    for (words, message), (said, loaded) in zip(mistakes, answers, strict=True):
        assert message in said, words
        assert loaded == [], words
    assert not (run_folder / "data").exists()


def cpu_seconds(*words: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, cwd=ROOT / "tests")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "seconds, words",
    [
        (1, ["-m", "fintune.cli", "--help"]),
        (2, ["-m", "fintune.cli", "predict", "--help"]),
        (2, ["-c", "from fintune import Classifier"]),
    ],
)
def test_it_starts_fast(seconds, words):
    assert min(cpu_seconds(*words) for _ in range(2)) < seconds


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("trl", ["train_sft.py"]),
        ("transformers", ["train_cls.py"]),
        ("numpy", ["train_linear.py"]),
        ("numpy", ["evaluate.py"]),
        ("typer", ["-m", "fintune.cli"]),
        ("numpy", ["-m", "fintune.cli", "audit", "data/topic.yaml"]),
    ],
)
def test_a_signal_while_libraries_load_ends_without_a_traceback(library, words, name, tmp_path):
    stopped = "import os, signal, time\nos.kill(os.getpid(), signal.{})\ntime.sleep(60)\n"
    (tmp_path / f"{library}.py").write_text(stopped.format(name))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")])}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50
    )
    signum = signal.Signals[name]
    assert done.returncode in (-signum, 128 + signum)  # a shell shows 128 + signum for both
    assert done.stdout == "" and done.stderr in ("", "interrupted; what was saved before is kept\n")


def test_a_missing_extra_is_named_with_the_remedy(run_folder):
    code = """
import sys
sys.modules[sys.argv.pop(1)] = None
from fintune.cli import main
main()
"""
    for module, extra, words in (
        ("uvicorn", "serve", ["serve", "runs/done"]),
        ("starlette", "serve", ["serve", "runs/done"]),
        ("prometheus_client", "serve", ["serve", "runs/done"]),
        ("ray", "ray", ["predict", "runs/done", "in", "--engine", "ray", "-o", "out"]),
        ("matplotlib", "ablations", ["ablations", "--report"]),
    ):
        command = [sys.executable, "-c", code, module, *words]
        done = subprocess.run(command, cwd=run_folder, capture_output=True, text=True)
        remedy = f"error: {module} is not installed; `pip install 'fintune[{extra}]'` brings it\n"
        assert (done.returncode, done.stderr) == (2, remedy)


def test_every_extra_is_known_by_the_modules_that_it_brings():
    for module, extra in EXTRAS.items():
        remedy = f"{module} is not installed; `pip install 'fintune[{extra}]'` brings it"
        assert missing_module(ModuleNotFoundError(name=f"{module}.part")) == remedy
        assert missing_module(ImportError(f"This needs `{module}`: pip install {module}")) == remedy
    assert "scipy is not installed; install it" in missing_module(ModuleNotFoundError(name="scipy.stats"))
    for bug in (
        ModuleNotFoundError(name="fintune.nothing"),
        ImportError("cannot import name 'x' from 'ray' (...)", name="ray"),
    ):
        assert missing_module(bug) is None
    assert missing_module(ImportError("an array of other things")) == "an array of other things"  # not of ray


def test_the_command_is_installed():
    [point] = entry_points(group="console_scripts", name="fintune")
    assert point.load() is cli.main
