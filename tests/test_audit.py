"""What is wrong with rows is found, counted and said; a test split that leaks stops the training."""

import pytest
from conftest import ROOT, SMALL, script

from fintune.cli import command
from fintune.data import audit, splits
from fintune.data.load import load_data
from fintune.errors import UserError
from fintune.recipe.layers import read_layer
from fintune.recipe.task import make_task


def planted(folder, **more) -> tuple:
    """A task with files of its own: 12 training rows a class, and faults of each kind."""
    kinds = ("opens a branch in town", "sells its old shares")
    rows = [
        f"{kinds[label]} number {n} of {'abcdefghijkl'[n]},{'up' if label else 'down'}"
        for label in (0, 1)
        for n in range(12)
    ]
    train = [
        *rows,
        rows[0],
        "Sold! https://x.y/1,up",
        "sold https://x.y/2,down",
        "Sepp+ñl+ñ AT&amp;T \u202e,up",
        "=1+1 \x07,down",
    ]
    train += ["https://only.a/link,up"]
    test = ["brand new words stand here,up", "nothing like the others ever,down", "SOLD https://z.z,up", rows[3]]
    for name, lines in (("train", train), ("test", test)):
        (folder / f"data/{name}.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    values = {"task": "toy", "labels": ["up", "down"], "files": {"train": "train.csv", "test": "test.csv"}, **more}
    (folder / "data/leaky.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    task = make_task(read_layer(folder / "data/leaky.yaml"), "leaky")
    return task, load_data(task)


def test_each_planted_fault_is_counted(task_folder):
    found = audit.audit(*planted(task_folder))
    assert found["repeats"]["exact"] == 2  # rows[0] in training, rows[3] in the test
    assert found["repeats"]["normalised"] == 4  # and two of the three `sold`
    assert found["leaked"]["exact"] == 1
    assert found["leaked"]["normalised"] == 2
    assert found["leaked"]["near"] >= 2
    assert found["contradictions"] == 1
    odd = {what.split(" ")[0]: count for what, count in found["odd"].items()}
    assert odd == {"possible": 1, "HTML": 1, "control": 1, "zero-width": 1, "the": 1, "nothing": 1}
    assert sum(sum(counts.values()) for counts in found["rows"].values()) == 34
    said = "\n".join(audit.lines(found))
    assert len(audit.lines(found)) == 3 and all(line.endswith(".") for line in audit.lines(found))
    assert "audit: 2 of 34 rows repeat an earlier one, 4 if case, links and punctuation are ignored, " in said
    assert "audit: 1 of 4 test rows are in training or validation too, 2 if case, links" in said
    assert "audit: 1 texts have two labels; odd rows: 1 with possible encoding damage" in said
    odd = dict.fromkeys(found["odd"], 0)
    assert audit.lines(found | {"odd": odd})[2] == "audit: 1 texts have two labels; no row is odd."


def test_a_test_row_that_is_in_validation_alone_has_leaked(task_folder):
    rows = {
        "train": "birch opens a branch in town,up\noak sells its old shares,down\n",
        "validation": "elm raises what it pays this year,up\nfir closes two mills up north,down\n",
        "test": "Elm raises what it pays this year!,up\nash names another person to lead it,down\n",
    }
    for split, lines in rows.items():
        (task_folder / f"data/{split}.csv").write_text("text,label\n" + lines)
    files = {split: str(task_folder / f"data/{split}.csv") for split in rows}
    task = make_task({"task": "toy", "labels": ["up", "down"], "files": files, "template": "x.jinja"}, "toy")
    data = load_data(task)
    assert audit.audit(task, data)["leaked"] == {"exact": 0, "normalised": 1, "near": 1}
    assert data.clean == [False, True]


def test_a_leak_stops_training_unless_the_task_allows_it(task_folder):
    planted(task_folder)
    argv = ["data/leaky.yaml", "small.yaml", *SMALL]
    with pytest.raises(UserError, match=r"2 of 4 test rows \(50\.0%\) are in training .*above max_leakage 0\.05"):
        script("train_sft").main(argv)
    with pytest.raises(UserError, match="above max_leakage"):
        command(["audit", "data/leaky.yaml"])
    planted(task_folder, max_leakage=0.5)
    command(["audit", "data/leaky.yaml"])
    script("train_linear").main(
        ["data/leaky.yaml", str(ROOT / "configs/baselines/majority.yaml"), "--report_to", "none"]
    )
    with pytest.raises(UserError, match="a share of the test rows"):
        planted(task_folder, max_leakage=5)


def test_a_label_map_that_swaps_names_is_refused():
    files = {"files": {"all": "x.csv"}, "template": "x.jinja", "task": "x"}
    swapped = {"negative": "Positive", "neutral": "Neutral", "positive": "Negative"}
    with pytest.raises(UserError, match="maps 'negative' to 'Positive', which is what the file calls another label"):
        make_task({"labels": swapped, **files}, "x")
    make_task({"labels": {"negative": "Negative", "positive": "Positive"}, **files}, "x")
    make_task({"labels": {0: "Down", 1: "Up"}, **files}, "x")


def test_it_looks_at_the_shipped_samples(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("sentiment", "topic"):
        command(["audit", f"data/{name}.yaml"])
        assert f"{name}: rows by label" in capsys.readouterr().out


def test_near_duplicates_are_searched_once_for_splits_and_audit(task_folder, monkeypatch):
    calls, search = [], splits.near_pairs
    monkeypatch.setattr(splits, "near_pairs", lambda texts, *more: calls.append(len(texts)) or search(texts, *more))
    audit.audit(*planted(task_folder))
    assert len(calls) == 1
