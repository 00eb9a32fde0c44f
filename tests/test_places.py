"""Where a run's files lie, who may read and write them, and what happens where somebody moved, added or spoilt one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SMALL, TEXTS, script, write_task

from fintune.deploy.classifier import Classifier
from fintune.deploy.export import export, inputs_to_check
from fintune.errors import UserError
from fintune.files import check_readable, check_writable, finish_move, hashes, write_json, write_text
from fintune.recipe.layers import read_layer
from fintune.recipe.recipe import parse_recipe
from fintune.recipe.task import make_task
from fintune.results.compare import compare
from fintune.results.restore import ARGUMENTS
from fintune.results.runs import read_runs
from fintune.results.verify import read_result, verified_result
from fintune.training.checkpoints import checkpoint_to_resume, finished_checkpoints, lock_folder

pytestmark = pytest.mark.usefixtures("one_thread")
HEADLINES = [text.format("Alder") for texts in TEXTS.values() for text in texts]


def changed(run: Path, **keys) -> None:
    """Changes keys of a run's metrics.json; a key with __ is inside another one."""
    result = json.loads((run / "metrics.json").read_text())
    for key, value in keys.items():
        *outer, inner = key.split("__")
        within = result[outer[0]] if outer else result
        within[inner] = value
    (run / "metrics.json").write_text(json.dumps(result))


def rehashed(run: Path) -> None:
    """As whoever may write to a run's folder can do."""
    result = json.loads((run / "metrics.json").read_text())
    changed(run, files={name: found for name, found in hashes(run).items() if name in result["files"]})


@pytest.fixture
def copy(run_dir, tmp_path):
    ours = shutil.ignore_patterns(".lock")
    return Path(shutil.copytree(run_dir, tmp_path / "copied", ignore=ours))


# Recipes


@pytest.mark.parametrize("place", ["/etc/passwd", "../secret.yaml", "{}/secret.yaml", "link.yaml", "notes.txt", ".."])
def test_a_recipe_extends_only_yaml_of_its_own_tree(place, tmp_path):
    (tmp_path / "mine/below").mkdir(parents=True)
    (tmp_path / "secret.yaml").write_text("password hunter2")
    (tmp_path / "mine/notes.txt").write_text("seed: 1")
    (tmp_path / "mine/link.yaml").symlink_to(tmp_path / "secret.yaml")
    recipe = tmp_path / "mine/recipe.yaml"
    recipe.write_text(f"extends: {place.format(tmp_path)}\n")
    with pytest.raises(UserError, match=r"`extends` is .*; it takes a .yaml beside the recipe") as refused:
        read_layer(recipe)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "place", ["base.yaml", "below/base.yaml", "../configs/base.yaml", f"{ROOT}/configs/tiny.yaml"]
)
def test_a_recipe_extends_what_lies_beside_it_below_it_or_in_configs(place, tmp_path):
    for folder in ("mine/below", "configs"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("mine/base.yaml", "mine/below/base.yaml", "configs/base.yaml"):
        (tmp_path / name).write_text("seed: 1\nlora_r: 8\n")
    recipe = tmp_path / "mine/recipe.yaml"
    recipe.write_text(f"extends: {place}\nseed: 7\n")
    layer = read_layer(recipe)
    assert layer["seed"] == 7 and "lora_r" in layer


@pytest.mark.parametrize("name", ["../../x", "/x", "..", "a/b", "a\\b", "a\nb", ".hidden", "-x", "x" * 101, " "])
def test_a_tasks_name_cannot_leave_the_folder_of_runs(name):
    with pytest.raises(UserError, match=r"`task` is .*; it takes up to 100 letters") as refused:
        make_task({"task": name, "labels": ["a", "b"], "files": {"all": "x.csv"}, "template": "x"}, "x.yaml")
    assert "\n" not in str(refused.value)


def test_a_base_is_found_from_any_working_directory(task_folder, tmp_path, monkeypatch):
    (task_folder / "models/base").mkdir(parents=True)
    (task_folder / "models/near.yaml").write_text("model_name_or_path: base\n")
    (task_folder / "models/up.yaml").write_text("model_name_or_path: ../models/base\n")
    (task_folder / "models/gone.yaml").write_text("model_name_or_path: ../gone\n")
    base = str(task_folder / "models/base")

    def model(*words: str) -> tuple[str, str]:
        recipe = parse_recipe(["data/toy.yaml", "small.yaml", *words, *SMALL], *ARGUMENTS["train_sft.py"])
        assert recipe.model_args.model_name_or_path == recipe.overrides["model_name_or_path"]
        return recipe.model_args.model_name_or_path

    assert model("--model_name_or_path", "models/base") == base
    assert model("models/near.yaml") == model("models/up.yaml") == base
    assert model("models/gone.yaml") == str(task_folder / "gone")
    assert model("--model_name_or_path", "Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    (task_folder / "tiny").mkdir()
    assert model() == "tiny"
    monkeypatch.chdir(task_folder / "models")
    elsewhere = [f"{task_folder}/data/toy.yaml", f"{task_folder}/small.yaml", "--model_name_or_path", "base", *SMALL]
    assert parse_recipe(elsewhere, *ARGUMENTS["train_sft.py"]).model_args.model_name_or_path == base


# The base of a run


@pytest.fixture(scope="module")
def based(tmp_path_factory, run_dir):
    """A run on a local folder `base`, which was named relative to the working directory."""
    folder = write_task(tmp_path_factory.mktemp("based"))
    shutil.copytree(run_dir / "base", folder / "base")
    before = os.getcwd()
    os.chdir(folder)
    try:
        flags = ["--model_name_or_path", "base", "--max_steps", "1", "--eval_strategy", "no"]
        script("train_sft").main(["data/toy.yaml", "small.yaml", *SMALL, *flags])
    finally:
        os.chdir(before)
    return folder


def test_a_run_finds_a_base_that_was_moved_by_base_and_its_fingerprint(based, tmp_path, monkeypatch):
    moved = Path(shutil.copytree(based, tmp_path / "moved"))
    run = moved / "runs/toy/small"
    assert yaml.safe_load((run / "recipe.yaml").read_text())["model_name_or_path"] == "../../../base"
    expected = Classifier.from_pretrained(run)(HEADLINES)[1]  # moved together with its base
    shutil.move(moved / "base", tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"its base {moved}/base is missing; say where it is now with --base FOLDER"):
        Classifier.from_pretrained(run)
    monkeypatch.chdir(tmp_path)
    assert (Classifier.from_pretrained(run, base="elsewhere")(HEADLINES)[1] == expected).all()
    export(run, tmp_path / "plain", None, base=Path("elsewhere"))
    script("evaluate").main([str(run), "--base", "elsewhere"])
    with pytest.raises(UserError, match="--base nowhere: no such folder"):
        Classifier.from_pretrained(run, base="nowhere")
    weights = Path("elsewhere/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"its adapter belongs to base [0-9a-f]+, not [0-9a-f]+"):
        Classifier.from_pretrained(run, base="elsewhere")


def test_base_is_refused_where_it_says_nothing(copy, tmp_path):
    (tmp_path / "base").mkdir()
    changed(copy, model__fingerprint="Qwen/Qwen3-0.6B@main")
    with pytest.raises(
        UserError, match=r"trained on Qwen/Qwen3-0.6B@main of the Hub, which a folder cannot be checked"
    ):
        Classifier.from_pretrained(copy, base=tmp_path / "base")
    with pytest.raises(UserError, match="--base base: is of a run; with --task name the model itself"):
        script("evaluate").main(["some/model", "--task", "data/toy.yaml", "--base", "base"])


def test_base_is_refused_for_a_model_that_has_none(task_folder):
    argv = ["data/toy.yaml", str(ROOT / "configs/baselines/majority.yaml"), "--report_to", "none"]
    script("train_linear").main(argv)
    with pytest.raises(UserError, match="--base data: runs/toy/majority holds its whole model; leave it out"):
        Classifier.from_pretrained("runs/toy/majority", base="data")


# A run's files


@pytest.mark.parametrize(
    "name",
    [
        "added_tokens.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "adapter_model.bin",
        "metrics.py",
        "more/x.py",
        "base/vocab.json",
        "base/x.csv",
        "additional_chat_templates/default.jinja",
    ],
)
def test_a_file_that_was_added_to_a_run_is_refused_by_name(name, copy):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name}: was not saved with the run"):
        verified_result(copy)


def test_a_folder_that_was_linked_into_a_run_is_refused(copy, tmp_path):
    (tmp_path / "templates").mkdir(exist_ok=True)
    (copy / "additional_chat_templates").symlink_to(tmp_path / "templates")
    with pytest.raises(UserError, match="additional_chat_templates: was not saved with the run"):
        verified_result(copy)


def test_files_beside_a_run_that_no_library_reads_are_left_alone(copy):
    for name in ("labelled.csv", "out.csv.gz", "notes.md", ".DS_Store", "checkpoint-3/optimizer.pt", "wandb.json"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("{}")
    for name in ("labelled.csv.parts/manifest.json", "metrics-validation-flags.json", "runs/May/events.out.tfevents"):
        (copy / name).parent.mkdir(exist_ok=True, parents=True)
        (copy / name).write_text("{}")
    verified_result(copy)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff"])
def test_predictions_are_hashed_and_an_export_of_an_older_run_asks_for_rows(content, copy, tmp_path):
    (copy / "predictions.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"predictions.jsonl: not what was saved"):
        verified_result(copy)
    with pytest.raises(UserError, match=r"predictions.jsonl: holds no rows with texts; score the run again"):
        inputs_to_check(copy)


def test_an_evaluation_keeps_the_hash_of_its_predictions(run_dir, tmp_path):
    copy = Path(shutil.copytree(run_dir.parents[2], tmp_path / "moved")) / "runs/toy/small"
    before = verified_result(copy)
    script("evaluate").main([str(copy)])
    script("evaluate").main([str(copy), "--split", "validation"])
    after = verified_result(copy)
    assert after["files"].keys() == before["files"].keys() and "predictions.jsonl" in after["files"]
    assert after["checkpoints"] == before["checkpoints"] and not (copy / "staging").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [(f"calibration__{key}", value) for key in ("temperature",) for value in ("x", 0, -1.0, None, True, float("nan"))]
    + [("calibration__curve", value) for value in (None, [1], [["a", 0, 0]])]
    + [("calibration", 3), ("data", []), ("data__labels", ["Up"]), ("data__labels", {"a": 1}), ("script", "x.py")]
    + [("data__columns", "ticker"), ("files", []), ("files", {"a": 1}), ("test", {}), ("task", None), ("model", {})],
)
def test_an_odd_value_in_metrics_is_named_before_anything_is_loaded(key, value, copy):
    changed(copy, **{key: value})
    named = "calibration.temperature" if key == "calibration" else key.replace("__", ".")
    named = "data.labels" if key == "data" else named
    with pytest.raises(UserError, match=f"metrics.json: `{named}` is missing or not what a training writes"):
        verified_result(copy)


@pytest.mark.parametrize(
    ("name", "keys"),
    [("adapter_config.json", {"peft_type": kind}) for kind in ("NOPE", 3, None, "IA3")]
    + [("base/config.json", {"_attn_implementation": kind}) for kind in ("nonsense", 3, {"": "x"})]
    + [("base/config.json", {"model_type": "nope"}), ("base/config.json", {"num_attention_heads": "x"})],
)
def test_odd_keys_of_a_model_are_one_line(name, keys, copy):
    stated = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(stated | keys))
    rehashed(copy)
    try:
        found = Classifier.from_pretrained(copy)(HEADLINES)[0]
    except UserError as error:
        assert "\n" not in str(error)
    else:  # a key that is not looked at
        assert "_attn_implementation" in keys and len(found) == len(HEADLINES)


DAMAGE = {"empty": b"", "null": b"null", "a list": b"[]", "a long number": b"9" * 5000, "nested": b"[" * 100_000}
DAMAGE |= {"nested objects": b'{"a":' * 100_000, "not UTF-8": b"\xff\xfe", "NUL": b"\0" * 10, "a folder": None}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_of_a_run_is_refused_whatever_it_holds(content, copy):
    """Also where the hashes were made to match."""
    names = "recipe.yaml", "metrics.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json"
    for name in (*names, "chat_template.jinja", "template.jinja", "base/config.json"):
        kept = (copy / name).read_bytes(), (copy / "metrics.json").read_bytes()
        (copy / name).unlink()
        (copy / name).mkdir() if content is None else (copy / name).write_bytes(content)
        if name != "metrics.json":
            rehashed(copy)
        with pytest.raises((UserError, IsADirectoryError)):
            Classifier.from_pretrained(copy)
        (copy / name).rmdir() if content is None else None
        (copy / name).write_bytes(kept[0])
        (copy / "metrics.json").write_bytes(kept[1])
    Classifier.from_pretrained(copy)


def test_every_file_has_the_mode_that_the_umask_gives(run_dir, based, tmp_path):
    (tmp_path / "new").touch()
    mode = (tmp_path / "new").stat().st_mode
    export(run_dir, tmp_path / "plain", None)
    for folder in (run_dir, based / "runs", tmp_path / "plain"):
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
        assert any(path.suffix == ".safetensors" for path in files)
        assert {path: path.stat().st_mode for path in files} == dict.fromkeys(files, mode)


# Moving a result in


class Killed(BaseException):
    pass


def written(folder: Path, files: dict[str, str]) -> None:
    """A result with these files, as it is saved: metrics.json last."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    calibration = {"temperature": 1.0, "curve": []}
    result = {"schema": 2, "task": "t", "name": "n", "script": "train_sft.py", "data": {"labels": ["a", "b"]}}
    result |= {"calibration": calibration, "model": {"base": "tiny", "fingerprint": "x"}, "files": hashes(folder)}
    write_json(folder / "metrics.json", result | {"test": {"accuracy": 1, "rows": 1}})


def contents(folder: Path) -> dict[str, str]:
    result = verified_result(folder)
    return {name: (folder / name).read_text() for name in result["files"]}


OLD = {"recipe.yaml": "old", "vocab.json": "old", "base/model": "old", "base/vocab.json": "old", "both": "old"}
NEW = {"recipe.yaml": "new", "both": "new", "base/model": "new", "merges.txt": "new", "predictions.jsonl": "new"}


@pytest.mark.parametrize("older", [True, False], ids=["over an older result", "the first result"])
def test_a_move_that_is_killed_anywhere_leaves_a_whole_result(older, tmp_path, monkeypatch):
    done, left = 0, None
    events = {name: getattr(os, name) for name in ("replace", "unlink", "rmdir", "remove")}

    def counted(name: str):
        def event(*args, **kwargs):
            nonlocal left
            if left == 0 and not str(args[0]).endswith(".lock"):
                raise Killed
            left -= 1
            return events[name](*args, **kwargs)

        return event

    for number in range(100):
        folder, left = tmp_path / str(number), 1000
        if older:
            written(folder, OLD)
        written(folder / "staging", NEW)
        left = number
        with monkeypatch.context() as patch:
            for name in events:
                patch.setattr(os, name, counted(name))
            try:
                finish_move(folder)
            except Killed:
                done += 1
        assert contents(folder) == NEW, f"killed at event {number}"
        assert not any((folder / "staging").glob("*")) and not (folder / "vocab.json").exists()
        if done < number + 1:
            break
    assert done > 5


def test_a_result_that_was_not_whole_when_it_was_killed_leaves_the_older_one(tmp_path):
    written(tmp_path, OLD)
    written(tmp_path / "staging", NEW)
    (tmp_path / "staging/metrics.json").rename(tmp_path / "staging/metrics.json.part")
    assert contents(tmp_path) == OLD


def test_a_comparison_finishes_a_move_too(tmp_path, run_dir):
    run = Path(shutil.copytree(run_dir, tmp_path / "runs/run"))
    (run / "staging").mkdir()
    for name in ("predictions.jsonl", "metrics.json"):
        (run / name).rename(run / "staging" / name)
    found, left_out = read_runs(tmp_path / "runs")
    assert len(found) == 1 and not left_out


def test_a_move_takes_no_file_outside_the_run(tmp_path):
    (tmp_path / "kept").write_text("mine")
    written(tmp_path / "run", OLD)
    changed(tmp_path / "run", files={"../kept": "x", "vocab.json": "x"})
    written(tmp_path / "run/staging", NEW)
    finish_move(tmp_path / "run")
    assert (tmp_path / "kept").read_text() == "mine" and not (tmp_path / "run/vocab.json").exists()


@pytest.mark.parametrize("hours", [-2, 0, 2])
def test_whether_a_checkpoint_is_of_a_finished_run_is_no_matter_of_the_clock(hours, tmp_path, capsys):
    manifest = tmp_path / "checkpoint-3/manifest.json"
    write_json(manifest, {"step": 3, "identity": {}, "sha256": {}})
    write_json(tmp_path / "metrics.json", {"checkpoints": {}})
    at = manifest.stat().st_mtime + 3600 * hours
    os.utime(tmp_path / "metrics.json", (at, at))
    with pytest.raises(UserError, match="checkpoint-3: an unfinished run is here"):
        checkpoint_to_resume(tmp_path, None, {})
    assert manifest.exists()
    write_json(tmp_path / "metrics.json", {"checkpoints": finished_checkpoints(tmp_path)})
    os.utime(manifest, (at + 9999, at + 9999))
    assert checkpoint_to_resume(tmp_path, None, {}) is None
    assert not manifest.exists()


# Who may read and write


@pytest.fixture
def stranger(tmp_path):
    """A tmp_path that every user may enter."""
    for folder in (tmp_path, *tmp_path.parents):
        if os.geteuid() == 0 and folder.stat().st_mode & 0o055 != 0o055:  # pytest's own
            folder.chmod(folder.stat().st_mode | 0o055)
    return tmp_path


def as_stranger(do) -> str:
    """The one line that a user without rights gets."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(12345)
    try:
        with pytest.raises(UserError) as refused:
            do()
    finally:
        if root:
            os.seteuid(0)
    return str(refused.value)


def test_what_cannot_be_written_is_said_before_anything_is_done(stranger):
    closed = stranger / "closed"
    (closed / "checkpoint-3").mkdir(parents=True)
    closed.chmod(0o555)
    for do in (check_writable, lock_folder):
        assert as_stranger(lambda do=do: do(closed)).startswith(f"{closed}: permission denied; give this user access")
        assert as_stranger(lambda do=do: do(closed / "new/run")).startswith(f"{closed}/new/run: permission denied")
    with pytest.raises(UserError, match=r"/proc/fintune: .*; check the path and its disk"):
        check_writable(Path("/proc/fintune"))
    assert not list(closed.glob("tmp*"))


def test_what_cannot_be_read_is_said_before_anything_is_loaded(stranger, run_dir):
    run = Path(shutil.copytree(run_dir, stranger / "run"))
    (run / "adapter_model.safetensors").chmod(0)
    said = as_stranger(lambda: verified_result(run))
    assert said.startswith(f"cannot read {run}/adapter_model.safetensors: permission denied; give this user access")
    (run / "metrics.json").chmod(0)
    assert as_stranger(lambda: read_result(run)).startswith(f"{run}/metrics.json: permission denied")
    (run / "base").chmod(0)
    assert as_stranger(lambda: check_readable(run / "base")).startswith(f"cannot read {run}/base: permission denied")


def test_nothing_but_a_file_is_written_over(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "socket"))
        before = {path: path.stat().st_mode for path in tmp_path.iterdir()}
        for path in (*before, Path("")):
            for write in (lambda path: write_text(path, "x"), lambda path: compare(tmp_path, results=path)):
                with pytest.raises(UserError, match="is no file that can be written over; name another"):
                    write(path)
            with pytest.raises(UserError, match="no such file; name the file that holds <!-- compare:begin"):
                compare(tmp_path, readme=path)
        assert {path: path.stat().st_mode for path in tmp_path.iterdir()} == before
    write_text(tmp_path / "file", "old")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_metrics_need_no_folder_of_the_evaluate_package(tmp_path, monkeypatch):
    from fintune.scoring import metrics

    monkeypatch.setattr(metrics.evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    found = metrics.LabelMetrics().compute(
        predictions=[[0.9, 0.1], [0.2, 0.8]], references=[0, 0], label_names=["a", "b"]
    )
    assert found["accuracy"] == 0.5 and not (tmp_path / "metrics").exists()


# Standard streams


def ran(code: str, how: str = "", **environment: str) -> tuple[int, str]:
    """Exit code and both outputs of a main, run by a shell with redirections."""
    program = f"from fintune.errors import UserError, run\ndef main(argv):\n    {code}\nrun(main)"
    words = ["bash", "-c", f'"$0" -c "$1" {how}', sys.executable, program]
    environment = {**os.environ, **environment}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("how", "code", "shown"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, "é – ‰"),
        (">&- 2>&-", 0, ""),
        ("<&-", 0, "é – ‰"),
        (">/dev/full", 2, "error: no space left on the disk"),
        ("| true; exit ${PIPESTATUS[0]}", 141, "went away"),
        ("2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
def test_closed_streams_and_readers_that_go_away_end_without_a_traceback(how, code, shown):
    found, output = ran("import time; time.sleep(0.5); print('é – ‰ ' * 1000)", how)
    assert found == code and shown in output and "Traceback" not in output and "Exception ignored" not in output


def test_an_error_with_nobody_to_read_it_keeps_its_exit_code():
    assert ran("raise UserError('x')", "2>&-") == (2, "")
    code, output = ran("raise UserError('x')", "2>&1 | true; exit ${PIPESTATUS[0]}")
    assert code == 2 and "Traceback" not in output


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict"])
def test_characters_that_the_terminal_lacks_are_shown_as_their_numbers(encoding):
    code, output = ran("print('é – ‰')", PYTHONIOENCODING=encoding)
    assert code == 0 and r"\u2013" in output


def test_a_pipe_that_does_not_block_gets_all_of_an_output(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    program = "from fintune.errors import run\nrun(lambda argv: print('x' * 10**6))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            assert len(file.read()) == 10**6 + 1
        assert process.wait() == 0 and not process.stderr.read()


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        ("open('/nowhere/x', 'w')", "error: /nowhere/x: no such file or directory; check the path"),
        ("open('/')", "error: /: is a directory; check the path"),
        ("raise PermissionError(13, 'Permission denied', 'a\\nb')", "error: a b: permission denied; give this user"),
        ("raise OSError(30, 'Read-only file system', 'x')", "error: x: read-only file system; give this user"),
        ("raise OSError(28, 'No space left on device', 'x')", "error: no space left on the disk of x: free some, or"),
        ("raise OSError(122, 'Disk quota exceeded')", "error: no space left on the disk of the output folder"),
        (
            "raise RuntimeError(\"Symlink loop from 'a/b'\")",
            "error: a/b: too many levels of symbolic links; check",
        ),
        (
            "import os, tempfile; os.chdir(d := tempfile.mkdtemp()); os.rmdir(d); os.getcwd()",
            "error: the working directory:",
        ),
        ("raise Exception('I/O error: File too large (os error 27)')", "error: file too large; check the path"),
        ("open('a\\0b')", "error: a path holds the character nul; check the path"),
        ("import sqlite3; sqlite3.connect('/nowhere/x')", "error: the scores kept in OUTPUT.parts: unable to open"),
    ],
)
def test_what_a_disk_refuses_is_one_line(raised, line):
    code, output = ran(raised)
    assert code == 2 and output.startswith(line) and output.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback():
    code, output = ran("{}['x']")
    assert code == 1 and "KeyError" in output and "Traceback" in output


def test_answers_to_a_closed_standard_output_are_refused_before_a_model_is_loaded(run_dir):
    words = f"{sys.executable} -m fintune.cli predict {run_dir} - >&-"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, input="x\n")
    assert done.returncode == 2 and done.stderr.startswith("error: standard output is closed")


def test_two_parquet_columns_of_one_name_are_refused_before_anything_is_scored(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fintune.deploy.label_file import open_table

    table = pa.Table.from_arrays([pa.array(["x"]), pa.array([1]), pa.array([2])], ["text", "a", "a"])
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(UserError, match=r"in.parquet: has 2 columns 'a'; rename all but one"):
        open_table(tmp_path / "in.parquet", tmp_path / "out.parquet", "text", ["Up", "Down"])
