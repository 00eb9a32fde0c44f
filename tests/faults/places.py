"""Places that cannot be read or written, no home, files added to a run or spoilt in it, streams that are closed."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import ROOT

from faults.shared import (
    TOY,
    Fault,
    finish,
    fintune,
    good_run,
    outcome,
    reference,
    script,
    script_command,
    start,
    succeed,
    wait_for,
)
from fintune.files import hashes

# an unknown user id without a passwd entry and without root's rights, who reads what the caller may read
STRANGER = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
TFIDF = ["data/toy.yaml", str(ROOT / "configs/baselines/tfidf.yaml")]


def places(fault: Fault) -> None:
    """Trainings without a home end as with one; the rest is refused in one line, with exit code 2, before the work."""
    _trainings_without_a_home(fault)
    Path("in.csv").write_text("text\nAlder cut its dividend\n")
    succeed(script("train_linear.py", *TFIDF, "--output_dir", "linear"))
    for how, (words, command) in (_closed() | _of_a_run() | _of_a_command()).items():
        _refused(fault, how, words, command)
    _damaged_labellings(fault)
    if os.geteuid():
        fault.lost.append("a disk without inodes and a read-only one were not tried: they need root")
        return
    with _disk("nr_inodes=2") as disk:
        _refused(fault, "no inodes", "no space left on the disk", _linear(disk / "run"))
    with _disk("size=1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        _refused(fault, "a read-only disk", "read-only file system", _linear(disk / "run"))
        _refused(fault, "labels for a read-only disk", "read-only file system", _predict("linear", disk / "out.csv"))


def _trainings_without_a_home(fault: Fault) -> None:
    """HOME unset, and a HOME that cannot be written, as in a container with an unknown user."""
    expected, home = reference(), _closed_folder("home")
    for number, value in enumerate((None, str(home))):
        folder = Path(f"homeless-{number}")
        process = start([*STRANGER, *script_command("train_sft.py", *TOY, "--output_dir", str(folder))], HOME=value)
        code, output = finish(process)
        written = Path("~").exists() or any(home.iterdir())
        held = code == 0 and outcome(folder) == expected and not written
        fault.record(os.path.isdir(home), held, f"HOME={value}: {code}: {output[-300:]}")


def _linear(folder: Path) -> list[str]:
    return script_command("train_linear.py", *TFIDF, "--output_dir", str(folder))


def _predict(run: Path | str, target: Path | str, source: str = "in.csv") -> list[str]:
    return fintune("predict", str(run), source, "-o", str(target))


def _closed_folder(name: str) -> Path:
    folder = Path(name).resolve()
    folder.mkdir()
    folder.chmod(0o555)
    return folder


def _closed() -> dict[str, tuple[str, list[str]]]:
    """How -> (words of the message, the command): what a user may not read or write."""
    closed = _closed_folder("closed")
    Path("hidden.csv").write_text("text\nx\n")
    Path("hidden.csv").chmod(0)
    base = Path(shutil.copytree(good_run() / "base", "hidden-base"))
    (base / "model.safetensors").chmod(0)
    hidden = {name: _copy(f"hidden-{name}") for name in ("adapter_model.safetensors", "metrics.json", "recipe.yaml")}
    for name, run in hidden.items():
        (run / name).chmod(0)
    others = Path("others")
    (others / "checkpoint-3").mkdir(parents=True)
    (others / "checkpoint-3").chmod(0o555)
    on_base = script_command("train_sft.py", *TOY, "--model_name_or_path", str(base), "--output_dir", "on-base")
    cases = {
        "a result for a closed folder": ("closed/run: permission denied", _linear(closed / "run")),
        "a result beside another user's checkpoints": ("checkpoint-3: permission denied", _linear(others)),
        "labels for a closed folder": ("closed: permission denied", _predict("linear", closed / "out.csv")),
        "an export for a closed folder": ("closed: permission denied", fintune("export", "linear", f"{closed}/plain")),
        "a base that may not be read": ("model.safetensors: permission denied", on_base),
        "an input that may not be read": ("hidden.csv", _predict("linear", "out.csv", "hidden.csv")),
    }
    for name, run in hidden.items():
        cases[f"{name} that may not be read"] = (f"{name}", _predict(run, "out.csv"))
    return {how: (words, [*STRANGER, *command]) for how, (words, command) in cases.items()}


def _of_a_run() -> dict[str, tuple[str, list[str]]]:
    """As `_closed`: files of a run that were added, emptied or hold odd values, with hashes to match."""
    ways: dict[str, tuple[str, Callable[[Path], object]]] = {
        "added_tokens.json": ("was not saved", lambda run: (run / "added_tokens.json").write_text('{"dividend": 1}')),
        "a vocabulary beside the base": ("was not saved", lambda run: (run / "base/vocab.json").write_text("{}")),
        "no predictions": ("not what was saved", lambda run: (run / "predictions.jsonl").write_text("")),
        "an odd peft_type": ("does not fit", _keys("adapter_config.json", {"peft_type": "NOPE"})),
        "odd attention": ("", _keys("base/config.json", {"_attn_implementation": 3})),
        "an odd size": ("cannot be loaded", _keys("base/config.json", {"num_attention_heads": "x"})),
        "temperature x": ("`calibration.temperature`", _keys("metrics.json", {"calibration": {"temperature": "x"}})),
        "one label": ("`data.labels`", _keys("metrics.json", {"data": {"labels": ["Up"]}})),
    }
    cases = {}
    for number, (how, (words, spoil)) in enumerate(ways.items()):
        run = _copy(f"spoilt-{number}")
        spoil(run)
        cases[how] = (words, _predict(run, "out.csv"))
    return cases


def _of_a_command() -> dict[str, tuple[str, list[str]]]:
    """As `_closed`: recipes that leave their tree, a table that cannot be written again, closed streams."""
    Path("leaving.yaml").write_text("extends: /etc/passwd\n")
    Path("outside.yaml").write_text("task: ../../x\nlabels: [Up, Down]\nfiles: {all: in.csv}\n")
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array([1]), pa.array([2])], ["text", "a", "a"])
    pq.write_table(table, "twice.parquet")
    answers = ["bash", "-c", '"$@" >&-', "bash", *fintune("predict", "linear", "-")]
    return {
        "extends: /etc/passwd": ("`extends`", script_command("train_linear.py", TFIDF[0], "leaving.yaml")),
        "task: ../../x": ("`task`", script_command("train_linear.py", "outside.yaml", TFIDF[1])),
        "two columns of one name": ("2 columns 'a'", _predict("linear", "out.parquet", "twice.parquet")),
        "answers to a closed output": ("standard output is closed", answers),
        "a base that is missing": (
            "--base gone: no such folder",
            [*_predict(good_run(), "out.csv"), "--base", "gone"],
        ),
    }


def _damaged_labellings(fault: Fault) -> None:
    """A labelling is killed in its second shard, and what it left is spoilt."""
    rows = "".join(f"Alder cut its dividend {number}\n" for number in range(60_000))
    Path("long.csv").write_text("text\n" + rows)
    for name in ("manifest.json", "scores.sqlite"):
        parts, command = Path(f"{name}.csv.parts"), _predict("linear", f"{name}.csv", "long.csv")
        process = start(command)
        begun = wait_for(lambda parts=parts: any(parts.glob("*0.rows*")), process)
        process.kill()
        finish(process)
        (parts / name).write_bytes(b'{"input": [' * 1000)
        for beside in parts.glob(f"{name}-*"):  # SQLite's journal would mend it
            beside.unlink()
        _refused(fault, f"a damaged {name}", name, command, begun)


def _refused(fault: Fault, how: str, words: str, command: list[str], fired: bool = True) -> None:
    """Whether a command says so in its last line, ends with exit code 2 and leaves no output."""
    code, output = finish(start(command))
    last = output.strip().split("\n")[-1]
    held = code == 2 and last.startswith("error: ") and words in last and "Traceback" not in output
    fault.record(fired, held and not Path("out.csv").exists(), f"{how}: {code}: {output[-300:]}")
    Path("out.csv").unlink(missing_ok=True)


def _copy(name: str) -> Path:
    return Path(shutil.copytree(good_run(), name, ignore=shutil.ignore_patterns("checkpoint-*", ".lock")))


def _keys(name: str, keys: dict) -> Callable[[Path], None]:
    """Other keys in a JSON file of a run, with the hashes of all files to match."""

    def spoil(run: Path) -> None:
        (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | keys))
        result = json.loads((run / "metrics.json").read_text())
        result["files"] = {name: found for name, found in hashes(run).items() if name in result["files"]}
        (run / "metrics.json").write_text(json.dumps(result))

    return spoil


@contextlib.contextmanager
def _disk(options: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=".")).resolve()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
