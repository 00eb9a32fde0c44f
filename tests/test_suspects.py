"""Wrong labels are found where they were planted, and rows that are left out stay out of training alone."""

import csv
import json
import random
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import COMPANIES, ROOT, script
from test_baselines import frozen, save_encoder

from fintune.cli import command
from fintune.data.load import load_data
from fintune.errors import UserError
from fintune.files import sha256
from fintune.model.linear import LinearArguments
from fintune.recipe.layers import read_task
from fintune.recipe.recipe import parse_recipe
from fintune.scoring import suspects

PHRASES = {
    "Up": ["raised its dividend", "won a large order", "reports a record profit", "lifts its outlook"],
    "Down": ["cut its dividend", "lost a large client", "reports a heavy loss", "lowers its outlook"],
    "Flat": ["holds its meeting", "moves its head office", "names a new auditor", "publishes its calendar"],
}
WHEN = ["In spring", "On Monday morning", "After a long summer", "Before the vote of today"]
WHERE = ["from the north of Norway", "with mines in Chile", "based in Ghent", "which owns ships and ports"]
CONTRADICTORY = [  # the second and the fourth differ from the one before by a comma, and by a word
    ("Zinc mines of the north close over winter as every year", "Up"),
    ("Zinc mines of the north close over winter, as every year!", "Down"),
    ("All ships of the line wait for 12 days off the eastern coast of the island", "Flat"),
    ("All ships of the line wait for 12 days off the eastern coast of an island", "Up"),
    ("All ships of the line wait for 34 days off the western coast of any island", "Down"),  # other numbers
]


@pytest.fixture
def planted(task_folder):
    """(task, the 25 of 500 rows, 5 %, whose label was changed); five more rows are CONTRADICTORY."""
    texts = {
        f"{when}, {company} {where} {phrase}": label
        for label, phrases in PHRASES.items()
        for when, company, where, phrase in product(WHEN, COMPANIES, WHERE, phrases)
    }
    rng = random.Random(0)
    rows = rng.sample(sorted(texts.items()), 500)
    flipped = {(text, rng.choice([name for name in PHRASES if name != label])) for text, label in rows[:25]}
    rows = [*sorted(flipped), *rows[25:], *CONTRADICTORY]
    rng.shuffle(rows)
    with open("data/news.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    (task_folder / "data/news.yaml").write_text("task: news\nlabels: [Up, Down, Flat]\nfiles: {all: news.csv}\n")
    (task_folder / "templates/news.jinja").write_text("{{ text }}")
    return read_task(task_folder / "data/news.yaml"), flipped


def read_csv(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_first_suspects_are_the_planted_ones_and_the_counts_add_up(planted, capsys):
    _, flipped = planted
    command(["audit", "data/news.yaml", "--suspects", "suspects.csv"])
    said = capsys.readouterr().out.splitlines()[-1]
    found, lines = read_csv("suspects.csv"), read_csv("data/news.csv")
    hits = [(row["text"], row["label"]) in flipped for row in found if row["text"] not in dict(CONTRADICTORY)]
    assert sum(hits[:20]) >= 18
    assert sum(hits) >= 23
    for row in found:
        there = lines[int(row["line"]) - 2]  # line 1 is the header
        assert (there["text"], there["label"]) == (row["text"], row["label"])
        assert float(row["probability"]) <= float(row["likely_probability"])
        assert row["file"] == "news.csv"
        assert row["why"]

    total, rows, *splits = (int(number) for number in re.findall(r"\d+", said.partition(" in suspects.csv")[0]))
    kinds = [int(n) for n in re.findall(r"(\d+) (?:contradicted|predicted|both)", said)]
    assert (total, rows) == (len(found), 505)
    assert sum(splits) == sum(kinds) == total
    contradicted = ["contradicts line" in row["why"] for row in found]
    assert contradicted == sorted(contradicted, reverse=True)
    assert sum(contradicted) == kinds[0] + kinds[2]
    own = [float(row["probability"]) for row, first in zip(found, contradicted, strict=True) if not first]
    assert own == sorted(own)


def test_of_a_contradiction_the_less_likely_row_is_given_and_names_the_other(planted):
    task, _ = planted
    rows = [row for row in suspects.all_rows(load_data(task)) if row["text"] in dict(CONTRADICTORY)]
    rows.sort(key=lambda row: row["line"])
    at = {row["text"]: place for place, row in enumerate(rows)}
    zinc, comma, ships, an_island, _ = (at[text] for text, _ in CONTRADICTORY)
    own = np.full(5, 0.5)
    own[[zinc, an_island]] = 0.1
    found = suspects.contradictions(rows, np.zeros(5), own)
    assert found == {zinc: [comma], an_island: [ships]}
    told_apart = np.zeros(5)
    told_apart[ships] = 1
    assert suspects.contradictions(rows, told_apart, own) == {zinc: [comma]}

    partner = (rows[comma], "Down")
    why = suspects.Suspect(rows[zinc], "Up", 0.1, "Flat", 0.8, True, [partner]).why
    assert why == (
        f"contradicts line {rows[comma]['line']}: the same text, labelled Down; "
        "predicted Flat with 0.80 by models that did not see it"
    )
    elsewhere = [(rows[ships] | {"file": "old.csv"}, "Flat"), partner, partner]
    why = suspects.Suspect(rows[an_island], "Up", 0.1, "Flat", 0.8, False, elsewhere).why
    assert why == f"contradicts line {rows[ships]['line']} of old.csv and 2 more: nearly the same text, labelled Flat"


def test_near_duplicates_share_a_fold_and_no_model_saw_the_rows_that_it_predicts(planted, monkeypatch):
    task, _ = planted
    rows = suspects.all_rows(load_data(task))
    fold = suspects.folds(task, rows)
    assert set(fold) == set(range(suspects.FOLDS))
    cluster = np.array([row["cluster"] for row in rows])
    assert len(set(cluster)) < len(rows)
    assert all(len(set(fold[cluster == each])) == 1 for each in set(cluster))

    seen, build_features = [], suspects.build_features
    monkeypatch.setattr(
        suspects, "build_features", lambda args, base, texts: seen.append(texts) or build_features(args, base, texts)
    )
    texts, labels = [row["text"] for row in rows], np.array([row["label"] for row in rows])
    tfidf = LinearArguments(linear_model="tfidf")
    test = np.array([row["split"] == "test" for row in rows])
    assert 0 < test.sum() < len(rows)
    probabilities = suspects.cross_fitted(tfidf, texts, labels, fold, test)
    for number, fitted in enumerate(seen):
        assert fitted == [text for text, own, out in zip(texts, fold, test, strict=True) if own != number and not out]
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(rows)))
    swapped = np.where(fold == 0, (labels + 1) % 3, labels)  # a fold's own labels do not touch what is said of it
    again = suspects.cross_fitted(tfidf, texts, swapped, fold, test)
    assert np.array_equal(again[fold == 0], probabilities[fold == 0])
    assert not np.array_equal(again[fold == 1], probabilities[fold == 1])


def test_test_labels_change_nothing_that_is_said_of_other_rows(planted):
    task, _ = planted
    rows = suspects.all_rows(load_data(task))
    rows[0], rows[-1] = rows[0] | {"split": "train"}, rows[0] | {"split": "test", "line": 999}  # the same text twice
    test = np.array([row["split"] == "test" for row in rows])
    texts, fold = [row["text"] for row in rows], suspects.folds(task, rows)
    assert fold[0] == fold[-1]

    def said(rows: list[dict]) -> tuple[list, set]:
        labels = np.array([row["label"] for row in rows])
        tfidf = LinearArguments(linear_model="tfidf")
        probabilities = suspects.cross_fitted(tfidf, texts, labels, fold, test)
        found = suspects.find_suspects(task, rows, probabilities)
        return [each.cells for each in found if each.row["split"] != "test"], {each.row["line"] for each in found}

    others, lines = said(rows)
    assert others
    changed = [row | {"label": (row["label"] + 1) % 3} if row["split"] == "test" else row for row in rows]
    assert said(changed)[0] == others
    assert 999 not in lines
    assert 999 in said(changed)[1]


def test_an_encoder_looks_for_suspects_too(task_folder, capsys):
    texts = [row["text"] for row in read_csv("data/toy.csv")]
    recipe = frozen(save_encoder(task_folder / "base", "bert", texts), "C: [1, 300]")[1]
    command(["audit", "data/toy.yaml", "--suspects", "out.csv", "--encoder", recipe])
    assert "; TF-IDF and frozen, cross-fitted, predict " in capsys.readouterr().out
    task = read_task(Path("data/toy.yaml"))
    rows = suspects.all_rows(load_data(task))
    texts, labels = [row["text"] for row in rows], np.array([row["label"] for row in rows])
    test = np.array([row["split"] == "test" for row in rows])
    both = [LinearArguments(linear_model="tfidf"), suspects.read_encoder(Path("data/toy.yaml"), Path(recipe))[1]]
    one, other = (suspects.cross_fitted(args, texts, labels, suspects.folds(task, rows), test) for args in both)
    assert not np.allclose(one, other, atol=0.05)
    mean, at = (one + other) / 2, {text: place for place, text in enumerate(texts)}
    found = read_csv("out.csv")
    assert found  # an untrained encoder takes many rows for another class
    for row in found:
        assert row["probability"] == f"{mean[at[row['text']], labels[at[row['text']]]]:.4f}"
    tfidf = str(ROOT / "configs/baselines/tfidf.yaml")
    with pytest.raises(UserError, match=r"tfidf\.yaml: `linear_model` is tfidf; name the recipe of an embedding"):
        command(["audit", "data/toy.yaml", "--suspects", "other.csv", "--encoder", tfidf])


def test_what_cannot_be_done_is_said_before_the_rows_are_read(task_folder):
    (task_folder / "kept.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"kept\.csv: already exists, perhaps with your edits"):
        command(["audit", "data/toy.yaml", "--suspects", "kept.csv"])
    with pytest.raises(UserError, match="only looks for suspects"):
        command(["audit", "data/toy.yaml", "--encoder", "small.yaml"])
    rows = [{"label": label, "cluster": 0 if label == 1 else number} for label in (0, 1, 2) for number in range(20)]
    with pytest.raises(UserError, match=r"toy: 1 rows of class Up or down differ by more .* 5 folds need one each"):
        suspects.folds(read_task(task_folder / "data/toy.yaml"), rows)


def test_excluded_rows_stay_out_of_training_alone_and_tell_runs_apart(planted, capsys):
    task, _ = planted
    before = load_data(task)
    listed = [(split, row) for split, size in (("train", 7), ("test", 3)) for row in list(before.splits[split])[:size]]
    rows = [(row["text"], task.names[row["label"]]) for _, row in listed]
    mended = (rows[0][0], next(name for name in task.names if name != rows[0][1]))  # the text with another label
    with open("listed.csv", "w", newline="") as file:
        csv.writer(file).writerows([("why", "text", "label"), *(("-", *row) for row in [*rows, mended, mended])])
    with open("data/news.yaml", "a") as file:
        file.write("exclude: ../listed.csv\n")
    capsys.readouterr()
    after = load_data(read_task(Path("data/news.yaml")))
    said = capsys.readouterr().out
    assert said.startswith(f"exclude: 7 of {len(before.splits['train'])} training rows are left out; of the 11 that ")
    assert "7 are in training, 3 in validation or test, which stay whole, 1 nowhere" in said
    assert list(after.splits["train"]) == list(before.splits["train"])[7:]
    for split in ("validation", "test"):
        assert list(after.splits[split]) == list(before.splits[split])
    assert (after.sha256, after.clean) == (before.sha256, before.clean)  # the same test rows: one table

    argv = ["data/news.yaml", str(ROOT / "configs/baselines/tfidf.yaml"), "--report_to", "none"]
    script("train_linear").main(argv)
    result = json.loads(Path("runs/news/tfidf/metrics.json").read_text())
    assert result["identity"]["exclude"] == sha256(Path("listed.csv"))
    assert result["data"]["rows"]["train"] == len(before.splits["train"]) - 7
    assert "exclude" not in parse_recipe(["data/toy.yaml", argv[1]], LinearArguments).identity("x")

    capsys.readouterr()
    command(["audit", "data/news.yaml", "--suspects", "suspects.csv"])  # looks at the rows that were left out again
    assert " of 505 rows (" in capsys.readouterr().out


def test_a_list_of_suspects_excludes_what_it_names(planted):
    task, _ = planted
    command(["audit", "data/news.yaml", "--suspects", "suspects.csv"])
    in_training = {row["text"] for row in read_csv("suspects.csv") if row["split"] == "train"}
    train = load_data(task).splits["train"]["text"]
    kept = load_data(replace(task, exclude="suspects.csv")).splits["train"]["text"]
    assert set(train) - set(kept) == in_training
    assert len(train) - len(kept) == len(in_training) > 10


@pytest.mark.parametrize(
    "content, message",
    [
        (None, r"listed\.csv: no such file; fix `exclude`"),
        ("text,why\na,b\n", r"listed\.csv: no column 'label' among \['text', 'why'\]"),
        ("title,label\na,Up\n", r"listed\.csv: no column 'text' among \['title', 'label'\]"),
        ("text,label\n,Up\n", r"listed\.csv:2: text is empty; fix or remove the row"),
        ("text,label\na,Upwards\n", r"listed\.csv:2: label 'Upwards' is not among \['Up', 'Up or down', 'Down'\]"),
    ],
)
def test_a_list_that_cannot_be_read_stops_the_run(task_folder, content, message):
    if content is not None:
        (task_folder / "data/listed.csv").write_text(content)
    with open("data/toy.yaml", "a") as file:
        file.write("exclude: listed.csv\n")
    with pytest.raises(UserError, match=message):
        load_data(read_task(Path("data/toy.yaml")))
