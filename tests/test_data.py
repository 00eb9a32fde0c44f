"""Rows from file to splits: every one counted, bad ones named, near-duplicates on one side."""

import hashlib
import os
import shutil
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from fintune.data import load as load_module
from fintune.data import near_duplicates as near_module
from fintune.data.load import load_data
from fintune.data.near_duplicates import near_pairs
from fintune.data.same_text import normalise
from fintune.errors import UserError
from fintune.recipe.task import DataFile, absolute_paths, make_task


def task_of(folder: Path, **changes):
    values = yaml.safe_load((folder / "data/toy.yaml").read_text()) | changes
    return make_task(absolute_paths(values, folder / "data"), "data/toy.yaml")


def write_rows(folder: Path, content: str | bytes) -> None:
    (folder / "data/toy.csv").write_bytes(content.encode() if isinstance(content, str) else content)


def test_splits_are_stratified_whole_and_stable(task_folder):
    data = load_data(task_of(task_folder))
    places = [(row["file"], row["line"]) for split in data.splits.values() for row in split]
    assert len(places) == len(set(places)) == 108
    for split in ("validation", "test"):
        assert Counter(data.splits[split]["label"]) == {0: 4, 1: 4, 2: 4}
    again = load_data(task_of(task_folder))
    assert [row["text"] for row in again.splits["test"]] == [row["text"] for row in data.splits["test"]]
    other = load_data(task_of(task_folder, split={"seed": 7}))
    assert other.splits["test"]["text"] != data.splits["test"]["text"]
    assert other.sha256 != data.sha256


def test_more_rows_move_few_of_the_others(task_folder):
    before = {row["text"]: split for split, rows in load_data(task_of(task_folder)).splits.items() for row in rows}
    with (task_folder / "data/toy.csv").open("a") as file:
        file.writelines(f"a wholly new story number {'x' * i} about {'y' * i},Down\n" for i in range(1, 11))
    after = {row["text"]: split for split, rows in load_data(task_of(task_folder)).splits.items() for row in rows}
    assert sum(after[text] != split for text, split in before.items()) <= 4


def near_duplicates(texts: list[str]):
    return near_pairs(texts).clusters()


def test_near_duplicates_stay_on_one_side(task_folder, monkeypatch):
    texts = [
        f"Company {name} said that its operating profit rose to EUR {number} mn from EUR {number + 3} mn a year ago"
        for name in ("Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Larch", "Maple")
        for number in range(8)
    ]
    found = near_duplicates(texts)
    assert len(set(found)) == 1  # one sentence, other names and numbers
    assert len(set(near_duplicates(["profit rose", "Profit ROSE! https://x.y/z", "a merger", "x"]))) == 3
    toy = [line.rpartition(",")[0] for line in (task_folder / "data/toy.csv").read_text().splitlines()[1:]]
    whole = near_duplicates(toy)
    assert 3 < len(set(whole)) < 108
    monkeypatch.setattr(near_module, "BLOCK", 7)
    assert (near_duplicates(toy) == whole).all()
    lines = [f"{text},{('Up', 'Down')[i % 2]}" for i, text in enumerate(texts)]
    base = (task_folder / "data/toy.csv").read_text()
    write_rows(task_folder, base + "\n".join(lines) + "\n")
    sides = {
        split
        for split, rows in load_data(task_of(task_folder)).splits.items()
        for row in rows
        if row["text"].startswith("Company ")
    }
    assert len(sides) == 1


def test_clean_rows_are_those_without_a_twin_in_training(task_folder):
    labels = ("Up", "Down", "Up or down")
    rows = "".join(f"story {i} of {'abcdefghij'[i % 10] * (i + 3)},{labels[i % 3]}\n" for i in range(60))
    write_rows(task_folder, "text,label\n" + rows)
    test = "text,label\nSTORY 0 of aaa! https://t.co/x,Up\nnever seen before,Down\nmeh,Up or down\n"
    (task_folder / "data/test.csv").write_text(test)
    data = load_data(task_of(task_folder, files={"train": "toy.csv", "test": "test.csv"}))
    assert data.clean == [False, True, True]
    assert data.summary()["test_rows_repeated_in_train"] == 1
    assert normalise("Profit, UP 5%! https://t.co/abc www.x.com") == "profit up 5 %"


def test_cells_stay_text(task_folder):
    odd = [
        "NA",
        "null",
        "007",
        "None",
        "1e5",
        '"quoted, with comma"',
        "=SUM(A1)",
        '"two\nlines"',
        "a\u2028b",
        "tab\there",
    ]
    rows = (task_folder / "data/toy.csv").read_text() + "".join(f"{cell},Up\n" for cell in odd)
    write_rows(task_folder, "\ufeff" + rows)
    texts = {row["text"] for split in load_data(task_of(task_folder)).splits.values() for row in split}
    assert {"NA", "null", "007", "None", "1e5", "quoted, with comma", "=SUM(A1)", "two\nlines", "a\u2028b"} <= texts


HEAD = "text,label\n" + "".join(f"row {i} about {'z' * i},{('Up', 'Down', 'Up or down')[i % 3]}\n" for i in range(60))

BAD = {
    "unknown label": (HEAD + "fine,Sideways\n", r"toy.csv:62: label 'Sideways' is not among \['Up', "),
    "empty text": (HEAD + "  ,Up\n", "toy.csv:62: the text is empty"),
    "too many cells": (HEAD + "a,b,Up\n", "toy.csv:62: 3 cells where the header has 2"),
    "too few cells": (HEAD + "a\n", "toy.csv:62: 1 cells"),
    "open quote": (HEAD + '"never closed,Up\nx,Up\n', "toy.csv:62: .*not valid CSV"),
    "multi-line then bad": (HEAD + '"two\nlines",Up\nx,Nope\n', "toy.csv:64: label 'Nope'"),
    "missing column": ("title,label\nx,Up\n", "column 'text' is missing from the header"),
    "double header": ("text,text,label\nx,y,Up\n", "column 'text' appears 2 times"),
    "wrong encoding": (
        HEAD.encode() + "Zürich,Up\n".encode("latin-1"),
        "toy.csv:62: not UTF-8 .*set `encoding: cp1252`",
    ),
    "missing class": ("text,label\n" + "a b c,Up\nd e f,Down\n" * 30, "no row of class"),
    "no rows": ("text,label\n", "toy.csv: no rows"),
    "open quote in the header": ('"text,label\n', "toy.csv:1: .*not valid CSV"),
    "empty file": ("", "has no header, which names the columns"),
}


@pytest.mark.parametrize("content,message", BAD.values(), ids=BAD)
def test_bad_files_are_refused_with_the_place(task_folder, content, message):
    write_rows(task_folder, content)
    with pytest.raises(UserError, match=message) as error:
        load_data(task_of(task_folder))
    assert "\n" not in str(error.value)


def test_other_bytes_or_rows_than_pinned_are_refused(task_folder):
    digest = hashlib.sha256((task_folder / "data/toy.csv").read_bytes()).hexdigest()
    load_data(task_of(task_folder, files={"all": {"path": "toy.csv", "sha256": digest, "rows": 108}}))
    with pytest.raises(UserError, match=f"SHA-256 is {digest}, the task pins 00"):
        load_data(task_of(task_folder, files={"all": {"path": "toy.csv", "sha256": "00"}}))
    with pytest.raises(UserError, match="108 rows, the task's YAML says 107"):
        load_data(task_of(task_folder, files={"all": {"path": "toy.csv", "rows": 107}}))
    with pytest.raises(UserError, match=r"gone.csv: no such file"):
        load_data(task_of(task_folder, files={"all": "gone.csv"}))


TASKS = {
    "no labels": ({"labels": None}, "`labels` is missing"),
    "one label": ({"labels": ["Up"]}, "at least two"),
    "same name": ({"labels": {"a": "Up", "b": "Up"}}, "repeated name"),
    "unknown split": ({"files": {"dev": "toy.csv"}}, r"names \['dev'\]"),
    "all and train": ({"files": {"all": "toy.csv", "train": "toy.csv"}}, r"names \['all', 'train'\]"),
    "share that is no number": ({"split": {"test": "10%"}}, "takes 0.1 and '10%'"),
    "shares of more than all": ({"split": {"test": 0.6, "validation": 0.5}}, "below 1"),
    "a string for a switch": ({"log_texts": "no"}, "takes true or false"),
    "unknown file key": ({"files": {"all": {"path": "x", "sha": "y"}}}, "sha256"),
    "unpinned hub": ({"hub": "a/b"}, "pin the commit"),
    "unknown split key": ({"split": {"share": 1}}, "known keys are"),
}


@pytest.mark.parametrize("changes,message", TASKS.values(), ids=TASKS)
def test_bad_tasks_are_refused(task_folder, changes, message):
    with pytest.raises(UserError, match=message):
        task_of(task_folder, **changes)


def test_phrasebank_lines_keep_odd_separators(task_folder):
    lines = [f"row {i} @ {'z' * i} said \u0085 so@{('Up', 'Down', 'Up or down')[i % 3]}" for i in range(60)]
    (task_folder / "data/toy.txt").write_bytes("\r\n".join([*lines, ""]).encode("iso-8859-1"))
    file = {"path": "toy.txt", "encoding": "iso-8859-1", "rows": 60}
    data = load_data(task_of(task_folder, files={"all": file}))
    texts = {row["text"] for split in data.splits.values() for row in split}
    assert "row 3 @ zzz said \u0085 so" in texts
    (task_folder / "data/toy.txt").write_bytes(b"no label here\r\n")
    with pytest.raises(UserError, match=r"toy.txt:1: no `@`"):
        load_data(task_of(task_folder, files={"all": {**file, "rows": 1}}))


@pytest.mark.parametrize("name", ["sentiment", "topic"])
def test_the_sample_stands_in_only_where_allowed(name, monkeypatch):
    path = ROOT / f"data/{name}.yaml"
    task = make_task(absolute_paths(yaml.safe_load(path.read_text()), path.parent), str(path))
    data = load_data(task, allow_sample=True)
    assert data.source == "sample"
    assert sum(map(len, data.splits.values())) == {"sentiment": 600, "topic": 800}[name]
    with pytest.raises(UserError, match="out of reach"):
        load_data(task)
    monkeypatch.setenv("FINTUNE_DATA", "/nowhere")
    with pytest.raises(UserError, match=r"/nowhere/.*no such file"):
        load_data(task, allow_sample=True)


MIRROR = os.environ.get("FINTUNE_TEST_DATA")  # laid out as FINTUNE_DATA; the real files are not part of the repository


@pytest.mark.skipif(not MIRROR, reason="FINTUNE_TEST_DATA is not set: the real data sets are not here")
@pytest.mark.parametrize("name,rows,leaked", [("sentiment", 4846, 0), ("topic", 21107, 692)])
def test_the_real_files_are_read_whole(monkeypatch, name, rows, leaked):
    monkeypatch.setenv("FINTUNE_DATA", MIRROR)
    path = ROOT / f"data/{name}.yaml"
    data = load_data(make_task(absolute_paths(yaml.safe_load(path.read_text()), path.parent), str(path)))
    assert sum(map(len, data.splits.values())) == rows
    assert data.clean.count(False) == leaked


def test_what_the_hub_sends_wrongly_is_fetched_again_and_never_trained_on(task_folder, monkeypatch):
    """A Hub of our own: other bytes once, an error once, other bytes always."""
    content = (task_folder / "data/toy.csv").read_bytes()
    other = content.replace(b"dividend", b"DIVIDEND")
    answers, asked = [], []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.command)
            status, body = (200, content) if self.command == "HEAD" else answers[0]
            if self.command == "GET" and len(answers) > 1:
                answers.pop(0)
            self.send_response(status)
            for key, value in {"X-Repo-Commit": "0" * 40, "ETag": '"1"', "Content-Length": len(body)}.items():
                self.send_header(key, str(value))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(task_folder / "cache"))
    monkeypatch.setattr(load_module, "hub_reachable", lambda: True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    file = DataFile("toy.csv", sha256=hashlib.sha256(content).hexdigest())
    task = replace(task_of(task_folder), hub="me/data", revision="0" * 40, files={"all": file})
    try:
        answers[:] = [(200, other), (500, b"no"), (200, content)]
        assert sum(load_data(task).summary()["rows"].values()) == 108
        assert asked.count("GET") == 3
        shutil.rmtree(task_folder / "cache")
        answers[:] = [(200, other)]
        with pytest.raises(UserError, match=r"me/data/toy.csv: SHA-256 is .* \(fetched three times\)"):
            load_data(task, allow_sample=True)
        answers[:] = [(403, b"no")]
        shutil.rmtree(task_folder / "cache")
        with pytest.raises(UserError, match=r"the Hub does not give me/data .*status 403"):
            load_data(task, allow_sample=True)
    finally:
        server.shutdown()
