"""A labelling that is killed, disturbed or given a taken place: right rows or one line, and no other file touched."""

import csv
import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
from conftest import COMPANIES, ROOT, TEXTS, script, write_task

from fintune.cli import command
from fintune.data.csv_file import defused
from fintune.deploy import label_file
from fintune.deploy.answers import added_columns
from fintune.deploy.classifier import Classifier
from fintune.errors import Stopped, UserError

HEADLINES = [text.format(company) for texts in TEXTS.values() for text in texts for company in COMPANIES]
LINES = [f"{number},{text}{',more' * (number % 5 == 0)}" for number, text in enumerate(HEADLINES[:50])]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = write_task(tmp_path_factory.mktemp("labelling"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = str(ROOT / "configs/baselines/tfidf.yaml")
        script("train_linear").main(["data/toy.yaml", recipe, "--report_to", "none"])
    return folder / "runs/toy/tfidf"


@pytest.fixture
def label(run, tmp_path, monkeypatch):
    """Labels in.csv of 50 lines, 10 of them no rows, in shards of 20."""
    classifier = Classifier.from_pretrained(run)
    monkeypatch.setattr(label_file, "SHARD", 20)
    (tmp_path / "in.csv").write_text("id,text\n" + "\n".join(LINES) + "\n")

    def label(target="out.csv", source="in.csv", **options):
        return label_file.label_file(classifier, run, tmp_path / source, tmp_path / target, "text", 0.0, **options)

    return label


def power_cut(*args):
    raise RuntimeError("power cut")


@pytest.fixture
def begun(label, tmp_path, monkeypatch) -> Path:
    """The shards of out.csv, which was labelled until just before they are joined."""
    with monkeypatch.context() as patch:
        patch.setattr(label_file, "_join", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            label()
    return tmp_path / "out.csv.parts"


def made(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_at_any_file_event_it_ends_byte_for_byte_the_same(run, tmp_path):
    """Every sixth event here, all of them in `make faults`."""
    (tmp_path / "in.csv").write_text("id,text\n" + "\n".join(LINES[:22]) + "\n")
    words = [sys.executable, str(ROOT / "tests/faults/file_events.py"), str(run), str(tmp_path), "6"]
    quiet = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=quiet, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 20, done.stderr
    assert [each["what"] for each in found if not (each["fired"] and each["held"])] == []
    assert {"open", "write", "os.rename", "os.remove"} <= Counter(each["event"] for each in found).keys()


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DISTURBED = {
    "cut in half": lambda parts: halve(parts / "00000001.rows"),
    "emptied": lambda parts: (parts / "00000002.rows").write_bytes(b""),
    "gone": lambda parts: (parts / "00000000.rows").unlink(),
    "another's rows": lambda parts: (parts / "00000001.rows").write_bytes((parts / "00000000.rows").read_bytes()),
    "a record cut in half": lambda parts: halve(parts / "00000001.json"),
    "a record that is no object": lambda parts: (parts / "00000001.json").write_text("[]"),
    "rejected lines cut": lambda parts: halve(parts / "00000001.rejected"),
    "one planted": lambda parts: (parts / "00000003.rows").write_text("7,planted,Up,1,1,0,0,False,\n"),
    "half a file": lambda parts: (parts / "00000003.rows.part").write_text("7,plan"),
    "a planted output": lambda parts: (parts / "output").write_text("planted\n"),
}


@pytest.mark.parametrize("disturb", DISTURBED.values(), ids=DISTURBED)
def test_a_shard_is_believed_by_its_hash(disturb, label, begun, tmp_path):
    assert label("whole.csv") == (40, 10)
    disturb(begun)
    assert label() == (40, 10)
    for end in ("", ".rejected.jsonl"):
        assert (tmp_path / f"out.csv{end}").read_bytes() == (tmp_path / f"whole.csv{end}").read_bytes()
    assert len(list(csv.reader((tmp_path / "out.csv").open()))) == 41
    assert not begun.exists()


def test_shards_of_another_labelling_are_not_taken(label, begun, tmp_path, monkeypatch):
    other = tmp_path / "in2.csv"
    other.write_text((tmp_path / "in.csv").read_text().replace("dividend", "divident"))
    with monkeypatch.context() as patch:
        patch.setattr(label_file, "_join", power_cut)
        with pytest.raises(RuntimeError):
            label("other.csv", "in2.csv")
    for name in ("00000000.rows", "00000000.rejected", "00000000.json"):
        (tmp_path / "other.csv.parts" / name).replace(begun / name)
    label()
    assert "divident" not in (tmp_path / "out.csv").read_text()


def test_a_shard_that_changes_at_the_last_moment_is_no_output(label, tmp_path, monkeypatch):
    join = label_file._join

    def disturbed(table, parts, *others):
        halve(parts.shard(1, "rows"))
        join(table, parts, *others)

    with monkeypatch.context() as patch:
        patch.setattr(label_file, "_join", disturbed)
        with pytest.raises(UserError, match=r"00000001\.rows: was changed; the same command labels its rows again"):
            label()
    assert not (tmp_path / "out.csv").exists()
    assert label() == (40, 10)


def test_more_rows_than_were_read_are_no_output(label, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fintune.data.csv_file.write_csv", lambda file, rows, *_: file.write("a,b\n" * 2 * len([*rows]))
    )
    with pytest.raises(UserError, match="holds 80 rows where 40 were read"):
        label()
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("moment", ["open_table", "judge"])
def test_an_input_that_changes_while_it_is_read_gives_no_output(moment, label, tmp_path, monkeypatch):
    source, before = tmp_path / "in.csv", getattr(label_file, moment)

    def rewritten(*args):
        found = before(*args)
        source.write_text(source.read_text().replace("dividend", "divident"))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(label_file, moment, rewritten)
        with pytest.raises(UserError, match=r"in\.csv: was changed while it was read, so nothing is written"):
            label()
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    assert label() == (40, 10)
    assert "dividend" not in (tmp_path / "out.csv").read_text()


def test_of_two_commands_one_wins(label, tmp_path, monkeypatch):
    """The second one looked for the output before the first one ended."""
    opened = label_file.open_table

    def overtaken(*args):
        found = opened(*args)
        patch.undo()
        assert label() == (40, 10)
        (tmp_path / "out.csv").write_text("the first one's")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(label_file, "open_table", overtaken)
        patch.setattr(label_file, "SHARD", 20)
        with pytest.raises(UserError, match=r"out\.csv: already exists"):
            label()
    assert (tmp_path / "out.csv").read_text() == "the first one's"
    assert not (tmp_path / "out.csv.parts").exists()


FOREIGN = {
    "notes": {"out.csv.parts/notes.txt": "mine"},
    "shards alone": {"out.csv.parts/00000000.rows": "7,planted,Up,1,1,0,0,False,\n"},
    "another manifest": {"out.csv.parts/manifest.json": '{"name": "an extension"}'},
    "no manifest": {"out.csv.parts/manifest.json": "[half"},
    "brackets": {"out.csv.parts/manifest.json": "[" * 100_000},
    "another lock": {"out.csv.parts/lock": "pid 7"},
    "a file": {"out.csv.parts": "mine"},
    "rejected lines": {"out.csv.rejected.jsonl": "mine"},
    "the output": {"out.csv": "mine"},
}


@pytest.mark.parametrize("ending", ["", ".rejected.jsonl"])
def test_a_link_to_what_is_missing_now_is_not_written_over(ending, label, begun, tmp_path):
    """Such as one to a disk that is not mounted; for an output that was begun, and for a new one."""
    for target in ("out.csv", "new.csv"):
        link = tmp_path / (target + ending)
        link.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=f"{link.name}: already exists"):
            label(target)
        assert link.is_symlink() and not (tmp_path / "elsewhere").exists()
        link.unlink()
        assert label(target) == (40, 10)


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_is_refused_and_stays(files, run, label, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    before = made(tmp_path)
    words = ["predict", str(run), str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.csv")]
    for attempt in (label, lambda: command(words)):
        with pytest.raises(UserError, match=r"already exists; remove it|so nothing in it is touched; move") as error:
            attempt()
        assert str(tmp_path / next(iter(files)).split("/")[0]) in str(error.value)
    assert made(tmp_path) == before


def test_files_beside_and_in_the_folder_stay(label, begun, tmp_path):
    names = ["out.csv.part", "out.csv.rejected.jsonl.part", "out.csv.parts/notes.txt", "out.csv.parts/rows"]
    for name in names:
        (tmp_path / name).write_text("mine")
    assert label() == (40, 10)
    assert {name: (tmp_path / name).read_text() for name in names} == dict.fromkeys(names, "mine")
    assert sorted(path.name for path in begun.iterdir()) == ["notes.txt", "rows"]


def test_an_output_that_appears_meanwhile_is_kept(label, begun, tmp_path, monkeypatch):
    join = label_file._join

    def appears(*args):
        join(*args)
        (tmp_path / "out.csv").write_text("mine")

    with monkeypatch.context() as patch:
        patch.setattr(label_file, "_join", appears)
        with pytest.raises(UserError, match=r"out\.csv: already exists; move it away, then the same command goes on"):
            label()
    assert (tmp_path / "out.csv").read_text() == "mine"
    (tmp_path / "out.csv").unlink()
    assert label() == (40, 10)


def test_where_nothing_can_be_written_is_known_before_the_model_loads(tmp_path, run, label, monkeypatch):
    words = ["predict", str(run), str(tmp_path / "in.csv"), "-o"]
    with pytest.raises(UserError, match=r"in\.csv: not a directory; check the path and its disk"):
        command([*words, str(tmp_path / "in.csv/out.csv")])

    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write anywhere
    with pytest.raises(UserError, match=r"new: permission denied; give this user access to it, or name another place"):
        command([*words, str(tmp_path / "new/out.csv")])
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_damaged_scores_are_named(label, begun):
    (begun / "scores.sqlite").write_bytes(b"no database " * 100)
    with pytest.raises(UserError, match=r"scores\.sqlite: is damaged .*; remove it, then the same command goes on"):
        label()
    (begun / "scores.sqlite").unlink()
    assert label() == (40, 10)


@pytest.mark.parametrize(
    "damage", ["probabilities = zeroblob(24)", "probabilities = zeroblob(7)", "stage = 3", "truncated = 2"]
)
def test_damaged_values_among_the_scores_are_scored_again(damage, label, begun, tmp_path):
    assert label("whole.csv") == (40, 10)
    for shard in begun.glob("0*"):
        shard.unlink()
    with closing(sqlite3.connect(begun / "scores.sqlite")) as database, database:
        assert database.execute(f"UPDATE scores SET {damage}").rowcount > 20
    assert label() == (40, 10)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_scores_that_are_no_numbers_are_no_label(run, tmp_path):
    classifier = Classifier.from_pretrained(run)
    classifier.scorer.classifier.estimators_[1].coef_[:] = float("nan")
    (tmp_path / "in.csv").write_text("id,text\n" + "\n".join(LINES[1:4]) + "\n")
    with pytest.raises(UserError, match=r"text 0, '.*': the model's scores are no numbers"):
        label_file.label_file(classifier, run, tmp_path / "in.csv", tmp_path / "out.csv", "text", 0.0)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("joined", [{}, None, 7, [], {"counts": [40, 10], "files": {}}, {"files": {"output": ""}}])
def test_a_manifest_whose_end_is_damaged_loses_nothing(joined, label, begun, tmp_path):
    manifest = begun / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"joined": joined}))
    before = made(tmp_path)
    with pytest.raises(UserError, match=r"out\.csv\.parts: holds no manifest of `fintune predict`, so nothing in it"):
        label()
    assert made(tmp_path) == before


def test_columns_that_another_version_adds_are_not_mixed(label, begun, monkeypatch):
    monkeypatch.setattr(label_file, "added_columns", lambda *given: [*added_columns(*given)[:-2], "rejected"])
    with pytest.raises(UserError, match="was begun with another options"):
        label()


SIGNS = "=+-@＝＋－＠﹣"
BEFORE = ["", " ", "\x00", "\u00a0", "\u200b", "\ufeff", "\u2060", "\x1f", '"', "\u200b\u00a0 "]
NUMBERS = [
    "-5.25",
    "+3",
    "-1,234.50",
    "-1.234,5",
    "-1 234",
    "-1'234.5",
    "+5%",
    "-5 %",
    "-1e5",
    "+1.5E-07",
    "-.5",
    "-0",
    "-$4",
    "-€1,234.50",
    "+£3%",
]
FORMULAS = [
    "-",
    "-$",
    "-$A$1",
    "-$4:$4",
    "-e5",
    "+A1",
    "-5+2",
    "+1-555-0100",
    "-5.25 points",
    "--5",
    "- 5.25a",
    "@home",
    "-(5)",
    "+5%!A1",
]
PLAIN = ["", "Alder rose", "a=b", "5-6", "a; b, c", "x;-5.25", "x\n+3 %", "’-5", "é", "1,5"]


def test_formulas_get_an_apostrophe_and_numbers_do_not():
    for sign in SIGNS:
        for before in BEFORE:
            assert defused(f"{before}{sign}1+1", ",") == f"'{before}{sign}1+1"
            for between, delimiter in product(",;\t\n\r", ",;\t|"):
                mark = "'" * (between != delimiter)  # quotes keep a cell with the file's own delimiter whole
                cell = f"a{between}{before}{sign}1+1"
                assert defused(cell, delimiter) == f"a{between}{mark}{before}{sign}1+1"
    for cell in FORMULAS:
        assert defused(cell, ",") == f"'{cell}"
    for cell in ("\ta", "\ra", "\na"):
        assert defused(cell, ",") == f"'{cell}"
    for cell in [*NUMBERS, *PLAIN, -5.25, None, True]:
        assert defused(cell, ",") == cell


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_spreadsheet_gets_no_formula_in_header_or_cells(delimiter, label, tmp_path):
    rows = [["=id", "text", "@n"], ["=1+1", "Alder rose;=2+2", "-5.25"], ["\n=3", "\u200b＝4", "+A1"]]
    with (tmp_path / "f.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    assert label("safe.csv", "f.csv", prefix="=", spreadsheet_safe=True) == (2, 0)
    with (tmp_path / "safe.csv").open(newline="") as file:
        header, *found = csv.reader(file, delimiter=delimiter)
    assert header[:5] == ["'=id", "text", "'@n", "'=label", "'=confidence"]
    inner = "Alder rose;=2+2" if delimiter == ";" else "Alder rose;'=2+2"
    assert found[0][:3] == ["'=1+1", inner, "-5.25"]
    assert found[1][:3] == ["'\n'=3", "'\u200b＝4", "'+A1"]


def test_where_formulas_cannot_be_it_is_said(run, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "=1+1"}\n')
    words = ["predict", str(run), str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--spreadsheet-safe"]
    with pytest.raises(UserError, match=r"--spreadsheet-safe: out\.jsonl is no CSV, to which alone it applies"):
        command(words)
    with pytest.raises(UserError, match="--spreadsheet-safe: answers on standard output are JSON, not CSV"):
        command(["predict", str(run), "-", "--spreadsheet-safe"])
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_stopped_within_a_shard_it_keeps_what_is_scored(label, tmp_path, monkeypatch):
    monkeypatch.setattr(label_file, "AT_ONCE", 5)
    label("whole.csv")
    calls, scored, answers = [], [], Classifier.answers

    def stop(classifier, inputs):
        calls.append(len(inputs))
        scored.extend(inputs)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return answers(classifier, inputs)

    monkeypatch.setattr(Classifier, "answers", stop)
    with pytest.raises(Stopped):
        label()
    assert not list((tmp_path / "out.csv.parts").glob("*.rows"))  # in the middle of the first shard
    assert label() == (40, 10)
    assert calls[0] <= 5
    assert len(scored) == len(set(scored)) == 40
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
