"""A cascade of runs: the fast ones answer what they are sure of, and the error of what is labelled is bounded."""

import csv
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import script
from starlette.testclient import TestClient

from fintune.cli import command
from fintune.deploy.classifier import Classifier
from fintune.deploy.service import create_app
from fintune.errors import UserError
from fintune.results.cascade import cascade, check_stages
from fintune.results.restore import load_scorer
from fintune.results.verify import verified_result
from fintune.scoring.cascade import CascadeScorer, Stage

WORDS = {"up": ["rose", "gained", "beat"], "down": ["fell", "lost", "missed"]}


def train(name, *flags):
    script("train_linear").main(["data/news.yaml", f"{name}.yaml", *flags])
    return f"runs/news/{name}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two finished runs of one task: the one reads words, the other pairs of words, which tell more."""
    folder = tmp_path_factory.mktemp("cascade")
    chosen = random.Random(0)
    rows = ["text,label"]
    for number in range(1500):
        label, word = chosen.choice([(label, word) for label, words in WORDS.items() for word in words])
        if chosen.random() < 0.3:  # only the pairs tell
            word = "demand above supply" if label == "up" else "supply above demand"
        rows.append(f"{chosen.choice('ABCDEFGH')}{number} {word} on {chosen.choice(['Monday', 'Friday'])},{label}")
    for name, text in {
        "data/news.csv": "\n".join(rows),
        "data/news.yaml": "task: news\nlabels: [up, down]\nfiles: {all: news.csv}\nmax_leakage: 1\n"
        "split: {validation: 0.3, test: 0.3}\n",
        "words.yaml": "linear_model: tfidf\nngram_max: 1\nC: [0.3]\n",
        "pairs.yaml": "linear_model: tfidf\nngram_max: 2\nC: [10.0]\n",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train("words")
        train("pairs")
    return folder


def stage(folder, name, threshold):
    path = folder / f"runs/news/{name}"
    result = verified_result(path)
    return Stage(name, load_scorer(path, result), result["calibration"]["temperature"], threshold)


TEXTS = ["A1 rose on Monday", "B2 demand above supply", "C3 supply above demand", "D4 fell on Friday", "unheard of"]


def test_each_text_is_answered_by_the_first_stage_that_is_sure(runs, monkeypatch):
    monkeypatch.chdir(runs)
    first, second = stage(runs, "words", 0.8), stage(runs, "pairs", 0.9)
    expected = [one.scores(TEXTS)[0] for one in (first, second)]
    seen = []
    score = second.scorer.scores
    monkeypatch.setattr(second.scorer, "scores", lambda texts, bar: seen.extend(texts) or score(texts, bar))
    found, _, stage_of = CascadeScorer([first, second]).answers(TEXTS)
    for row in range(len(TEXTS)):
        sure = [number for number in (0, 1) if expected[number][row].max() >= (0.8, 0.9)[number]]
        assert stage_of[row] == (sure or [2])[0]
        np.testing.assert_array_equal(found[row], expected[min(stage_of[row], 1)][row])
    assert {0, 1, 2} == set(stage_of)  # one of each kind
    assert seen == [text for text, at in zip(TEXTS, stage_of, strict=True) if at > 0]  # and no other
    assert CascadeScorer([first, second]).answers([])[0].shape[0] == 0


def test_a_cascade_is_a_run_like_any_other(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    folders = [runs / "runs/news/pairs", runs / "runs/news/words"]
    cascade(folders, 0.1, 0.9, runs / "runs/news/cascade")
    folder = runs / "runs/news/cascade"
    result = json.loads((folder / "metrics.json").read_text())
    found = result["test"]["cascade"]
    assert found["error"] <= 0.1
    assert sum(found["answered_by"].values()) + found["abstained"] == pytest.approx(1)
    assert result["guarantee"]["p_value"] <= 0.1
    said = capsys.readouterr().out
    assert "labelled by " in said and "at most 0.1 with a probability of 0.9, as tested on 228 validation rows" in said
    script("evaluate").main([str(folder.relative_to(runs))])
    again = json.loads((folder / "metrics.json").read_text())
    assert again["test"]["accuracy"] == result["test"]["accuracy"]
    assert again["test"]["cascade"] == found
    assert again["guarantee"] == result["guarantee"]
    card = (folder / "README.md").read_text()
    assert "abstained" in card
    assert all(f"| {name} |" in card for name in found["answered_by"])

    (runs / "in.csv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    assert command(["predict", str(folder), "in.csv", "-o", "out.csv"]) == 0
    with open("out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected, _, stage_of = load_scorer(folder, verified_result(folder)).answers(TEXTS)
    names = [*found["answered_by"], ""]
    assert [row["stage"] for row in rows] == [names[at] for at in stage_of]
    assert [row["abstained"] for row in rows] == [str(at == len(names) - 1) for at in stage_of]
    assert [float(row["confidence"]) for row in rows] == pytest.approx(expected.max(axis=1))
    answer = TestClient(create_app(Classifier.from_pretrained(folder), 0.0, 10, 1000, "testserver"))
    with answer as client:
        said = client.post("/classify", json={"texts": TEXTS}).json()["results"]
    assert [one["stage"] or "" for one in said] == [names[at] for at in stage_of]


def test_a_stage_that_is_another_run_now_is_refused(runs, monkeypatch, tmp_path):
    shutil.copytree(runs, tmp_path / "all")
    monkeypatch.chdir(tmp_path / "all")
    folder = Path("runs/news/joined")
    cascade([Path("runs/news/pairs"), Path("runs/news/words")], 0.1, 0.9, folder)
    monkeypatch.chdir(tmp_path)  # stages are found from the cascade's own place
    [name, *_] = Classifier.from_pretrained("all" / folder).stages
    monkeypatch.chdir(tmp_path / "all")
    script("train_linear").main(["data/news.yaml", "words.yaml", "--output_dir", f"runs/news/{name}", "--C", "7"])
    with pytest.raises(UserError, match=f"{name}: is another run than the one .*joined was made of"):
        Classifier.from_pretrained(folder)


def test_a_bound_that_these_rows_cannot_show_names_one_that_they_can(runs, monkeypatch):
    monkeypatch.chdir(runs)
    with pytest.raises(
        UserError, match=r"--max-error 0\.001: 456 validation rows cannot show it .*--max-error 0\.0\d+ can"
    ):
        cascade([runs / "runs/news/pairs"], 0.001, 0.9, runs / "runs/news/strict")
    assert not (runs / "runs/news/strict/metrics.json").exists()


def test_runs_that_cannot_be_stages_are_refused_by_name(runs, monkeypatch, tmp_path):
    monkeypatch.chdir(runs)
    pairs = runs / "runs/news/pairs"
    with pytest.raises(UserError, match="named twice"):
        check_stages([pairs, runs / "runs/news/../news/pairs"])
    other = (runs / "data/news.yaml").read_text().replace("[up, down]", "[down, up]")
    (runs / "data/swapped.yaml").write_text(other)
    script("train_linear").main(["data/swapped.yaml", "words.yaml", "--output_dir", "runs/swapped"])
    with pytest.raises(UserError, match="runs/swapped: has other labels than"):
        check_stages([pairs, runs / "runs/swapped"])
    (runs / "data/other.yaml").write_text((runs / "data/news.yaml").read_text().replace("0.3", "0.2"))
    script("train_linear").main(["data/other.yaml", "words.yaml", "--output_dir", "runs/other"])
    with pytest.raises(UserError, match="runs/other: has other rows than"):
        check_stages([pairs, runs / "runs/other"])
