"""A file of one's own becomes a task that the trainer reads, and every row is kept or accounted for."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import COMPANIES, TEXTS

from fintune.cli import command
from fintune.data.load import load_data
from fintune.errors import UserError
from fintune.recipe.layers import read_layer
from fintune.recipe.task import make_task

ROWS = [
    {"title": f"{text.format(company)} {number}", "tone": tone}
    for tone, texts in TEXTS.items()
    for number, text in enumerate(texts)
    for company in COMPANIES
]
ODD = [{"title": f"{row['title']}\r!", "tone": "up"} for row in ROWS[:18]]  # a label of other case, a lone return
BAD = [{"title": "", "tone": "Up"}, {"title": "no label", "tone": ""}, {"title": "rare", "tone": "Sideways"}]


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """`fintune prepare` in a folder of its own, which it writes to."""
    for folder in ("data", "templates"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    return lambda words: command(["prepare", *words])


def write(path, kind: str):
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["title", "tone"])
            writer.writeheader()
            writer.writerows([*ROWS, *ODD, *BAD])
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *ODD, *BAD]))
    else:
        pq.write_table(pa.Table.from_pylist([*ROWS, *ODD, *BAD]), path)
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_file_becomes_a_task(kind, prepare, tmp_path, capsys):
    source = write(tmp_path / f"news.{kind}", kind)
    flags = [source, "--text", "title", "--label", "tone", "--task", "mine"]
    prepare(flags)
    out = " ".join(capsys.readouterr().out.split())
    assert "left out: 3 rows" in out
    assert "label 'Sideways' has 1 rows, 10 are needed" in out
    yaml_text = (tmp_path / "data/mine.yaml").read_text()
    assert "class_weights" not in yaml_text + out  # 36 rows of each class
    assert "  Up or down: Up or down # 36 rows" in yaml_text
    task = make_task(read_layer(tmp_path / "data/mine.yaml"), "mine.yaml")
    data = load_data(task)
    assert sum(data.summary()["rows"].values()) == len(ROWS) + len(ODD)
    found = {(row["text"], task.names[row["label"]]) for split in data.splits.values() for row in split}
    assert found == {(row["title"], row["tone"]) for row in [*ROWS, *ODD]}
    with pytest.raises(UserError, match=r"mine\.csv: already exists"):
        prepare(flags)
    prepare([*flags, "--force"])


def test_what_makes_no_task_is_said_and_nothing_is_written(prepare, tmp_path):
    source = write(tmp_path / "news.csv", "csv")
    for flags, message in (
        (["--text", "title", "--label", "title"], "holds 0 different labels"),
        (["--text", "title", "--label", "mood"], "no column 'mood'"),
        (["--text", "headline", "--label", "tone"], "column 'headline' is missing from"),
    ):
        with pytest.raises(UserError, match=message):
            prepare([source, *flags, "--task", "mine"])
    with pytest.raises(UserError, match="letters, digits"):
        prepare([source, "--text", "title", "--label", "tone", "--task", "../mine"])
    assert [path.name for path in (tmp_path / "data").iterdir() if path.name.startswith("mine")] == []


def test_weights_are_offered_where_classes_are_uneven(prepare, tmp_path, capsys):
    more = [{**ROWS[-1], "title": f"more {i}"} for i in range(40)]
    rows = ROWS[:20] + [row for row in ROWS if row["tone"] != "Up"] + more
    (tmp_path / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare([str(tmp_path / "news.jsonl"), "--text", "title", "--label", "tone", "--task", "mine"])
    assert "3.8 times the rows of the rarest; `class_weights: balanced`" in " ".join(capsys.readouterr().out.split())
    path = tmp_path / "data/mine.yaml"
    assert make_task(read_layer(path), "").class_weights is None
    path.write_text(path.read_text().replace("# class_weights", "class_weights"))
    assert make_task(read_layer(path), "").class_weights == "balanced"
