"""The end of a run: what it says beside its figures."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from fintune.data.load import TaskData
from fintune.recipe.task import make_task
from fintune.results import summary
from fintune.scoring.metrics import LabelMetrics
from fintune.scoring.simple import simple_models

TEXTS = ["profit rose", "loss grew", "profit doubled", "sales fell", "loss widened", "profit up"]
LABELS = [0, 1, 0, 1, 1, 0]
TASK = make_task({"task": "toy", "labels": ["Up", "Down"], "files": {"all": "toy.csv"}, "template": "x"}, "toy")


def data_of(texts: list[str], labels: list[int]) -> TaskData:
    rows = Dataset.from_dict({"text": texts, "label": labels})
    return TaskData(
        {"train": rows, "validation": rows, "test": rows}, source="file", sha256="0", clean=[True] * len(rows)
    )


def result_of(answers: np.ndarray, truth: np.ndarray, **changes) -> dict:
    """A result whose model gave these answers."""
    probabilities = np.eye(2)[answers] * 0.8 + 0.1
    test = LabelMetrics().compute(predictions=probabilities, references=truth, label_names=["Up", "Down"])
    test |= {"accuracy_clean": test["accuracy"], "rows_clean": len(truth), "ece_uncalibrated": 0.2}
    test |= {
        "rows_per_second": 1234.5,
        "simple": simple_models(TASK, data_of(TEXTS * 10, LABELS * 10), "test", answers == truth),
    }
    result = {"task": "toy", "name": "mine", "script": "train_sft.py", "split": "test", "test": test, "paper": None}
    return (
        result
        | {"data": {"source": "file"}, "training": {"epoch": 3, "steps": 15}, "model": {"base": "tiny"}}
        | changes
    )


TRUTH = np.array(LABELS * 10)


def test_simple_models_are_those_of_the_training_rows():
    found = simple_models(TASK, data_of(TEXTS * 10, LABELS * 10), "test", TRUTH == TRUTH)
    assert found["majority class"] == {"accuracy": 0.5, "p": pytest.approx(2 * 0.5**30), "label": "Up"}
    assert found["TF-IDF"] == {"accuracy": 1.0, "p": 1.0}


def test_without_a_word_or_a_second_label_there_is_no_tfidf():
    assert list(simple_models(TASK, data_of(["!", "?"], [0, 1]), "test", np.array([True, True]))) == ["majority class"]
    assert list(simple_models(TASK, data_of(["a profit", "a loss"], [0, 0]), "test", np.array([True, True]))) == [
        "majority class"
    ]


def test_a_good_run_is_set_beside_the_simple_ones_and_names_the_next_command(capsys):
    summary.print_result(result_of(TRUTH, TRUTH), Path("runs/toy/mine"))
    said = capsys.readouterr().out
    assert "0.9398 to 1.0000" in said  # 60 of 60 right
    assert "majority class" in said and "this run is better (p < 0.0001)" in said
    assert "no real difference" in said  # TF-IDF gets all of them too
    assert "run: runs/toy/mine\n" in said and "predict runs/toy/mine FILE.csv -o labelled.csv" in said
    assert "No better than" not in said and "weak:" not in said and "clean" not in said


def test_the_table_fits_100_columns(capsys):
    paper = {"row": "qwen3-8b", "accuracy": 0.9}
    summary.print_result(result_of(TRUTH, TRUTH, name="a-long-name" * 20, paper=paper), Path("runs/toy/mine"))
    table, _, _ = capsys.readouterr().out.partition("run: ")
    assert "a-long-name" in table and max(map(len, table.splitlines())) <= 100


def test_a_run_that_learnt_nothing_says_so(capsys):
    summary.print_result(result_of(np.zeros(60, dtype=int), TRUTH), Path("runs/toy/mine"))
    said = capsys.readouterr().out
    assert "No better than always answering 'Up'" in said and "--learning_rate" in said
    assert "weak: Down, precision 0.00, recall 0.00 of 30 rows" in said
    assert "this run is worse" in said  # than TF-IDF


def test_a_run_below_tfidf_says_what_to_take_and_to_try_and_one_above_it_does_not():
    def said(accuracy: float, p: float, base: str = "tiny", **training) -> str:
        simple = {"majority class": {"accuracy": 0.5, "p": 0.001, "label": "Up"}, "TF-IDF": {"accuracy": 0.8, "p": p}}
        result = {"task": "toy", "split": "test", "test": {"accuracy": accuracy, "simple": simple}}
        return "\n".join(summary.no_better(result | {"model": {"base": base}, "training": training}))

    worse = said(0.7, 0.01, steps=150)
    assert "0.7000 against 0.8000, this run is worse (p 0.0100)" in worse and "--min_steps 300" in worse
    assert "train_linear.py data/toy.yaml configs/baselines/tfidf.yaml" in worse and "always answering" not in worse
    assert "no real difference (p 0.50)" in said(0.79, 0.5, steps=150)
    assert said(0.8, 1.0, steps=150) == said(0.81, 0.7, steps=150) == said(0.9, 0.01, steps=150) == ""
    assert said(0.79, 0.5, "tfidf") == ""  # with another C
    embedding = said(0.7, 0.01, "sentence-transformers/all-MiniLM-L6-v2")
    assert "more labels" in embedding and "steps" not in embedding  # nor has logistic regression a learning rate


def test_every_trained_run_names_the_next_command_and_a_model_as_it_is_none(capsys):
    for script in ("train_sft.py", "train_cls.py", "train_linear.py"):
        summary.print_result(result_of(TRUTH, TRUTH, script=script), Path("runs/toy/tfidf"))
        assert "predict runs/toy/tfidf FILE.csv -o labelled.csv" in capsys.readouterr().out
    summary.print_result(result_of(TRUTH, TRUTH, script="evaluate.py", training=None), Path("runs/toy/x-zero-shot"))
    assert "predict" not in capsys.readouterr().out


def test_the_weakest_classes_come_first_and_the_rest_are_counted():
    per_class = {f"c{i}": {"precision": i / 10, "recall": i / 10, "f1": i / 10, "rows": 5} for i in range(9)}
    lines = summary.weak_classes(per_class | {"empty": {"precision": 0, "recall": 0, "f1": 0, "rows": 0}})
    assert [line.split(",")[0] for line in lines[:3]] == ["weak: c0", "weak: c1", "weak: c2"]
    assert lines[3].startswith("and 4 more") and len(lines) == 4


def test_figures_of_calibration_say_what_was_done():
    fitted = result_of(TRUTH, TRUTH, calibration={"temperature": 1.4, "not_fitted": None})
    assert "0.2000 before calibration" in summary.calibration_error(fitted)[1]
    for calibration in (None, {"temperature": 1.0, "not_fitted": "2 validation rows are too few, 50 are needed"}):
        result = result_of(TRUTH, TRUTH, calibration=calibration)
        value, said = summary.calibration_error(result)
        assert value == "0.1000" and said.startswith("95 % interval 0.0") and said.endswith(", not calibrated")
    assert "temperature: 1.0, not fitted" in "\n".join(summary.advice(result)) and "2 validation rows" in "\n".join(
        summary.advice(result)
    )
    assert not any("temperature" in line for line in summary.advice(fitted))
    few = result_of(TRUTH, TRUTH)
    few["test"] |= {"rows": 2, "ece": 0.0, "ece_interval": [0.0, 0.43]}
    assert summary.calibration_error(few) == ("-", "95 % interval 0.0000 to 0.4300, not calibrated")
