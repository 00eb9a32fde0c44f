"""A pupil learns from a teacher's probabilities: what it reads, what its loss is, and what changes by it."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, SMALL, script
from datasets import Dataset
from safetensors.torch import load_file
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from test_baselines import FLAGS, save_encoder
from torch.nn.functional import cross_entropy, softmax
from transformers import TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from fintune.cli import command
from fintune.data.load import TaskData, load_data
from fintune.errors import UserError
from fintune.model.encoder import EncoderArguments
from fintune.model.linear import LinearArguments, build_classifier, build_features, fit, word_classifier
from fintune.recipe.identity import differences
from fintune.recipe.layers import read_task
from fintune.recipe.recipe import parse_recipe
from fintune.recipe.task import SoftLabels
from fintune.results.cells import compare_runs
from fintune.results.restore import load_scorer
from fintune.results.verify import verified_result
from fintune.training.encoder import distillation, loss_of

NAMES = ["Up", "Up or down", "Down"]
COLUMNS = [f"probability_{name}" for name in NAMES]
SURE, UNSURE = np.eye(3), np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.05, 0.35, 0.6]])
TFIDF = str(ROOT / "configs/baselines/tfidf.yaml")
MAJORITY = str(ROOT / "configs/baselines/majority.yaml")


pytestmark = pytest.mark.usefixtures("one_thread")


def hard_rows() -> list[dict]:
    return list(csv.DictReader(Path("data/toy.csv").open()))


def teach(rows: list[dict], **more: str) -> TaskData:
    """The toy task, whose training rows are taken from a file of these rows, in toy-taught.yaml."""
    with Path("data/taught.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = {"extends": "toy.yaml", "soft_labels": "taught.csv"} | more
    Path("data/toy-taught.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return load_data(read_task(Path("data/toy-taught.yaml")))


def answered(by_label: np.ndarray) -> list[dict]:
    """The toy's rows as a teacher answers that gives each class of them its own probabilities."""
    rows = hard_rows()
    return [
        {"text": row["text"]} | dict(zip(COLUMNS, by_label[NAMES.index(row["label"])], strict=True)) for row in rows
    ]


def divergence(teacher: np.ndarray, pupil: np.ndarray) -> float:
    """Mean KL(teacher || pupil) of rows, in nats."""
    return float((teacher * (np.log(teacher) - np.log(pupil))).sum(axis=1).mean())


def held_out(data: TaskData) -> tuple[list[str], np.ndarray]:
    rows = [row for split in ("validation", "test") for row in data.splits[split]]
    return [row["text"] for row in rows], UNSURE[[row["label"] for row in rows]]


# Loss


def test_one_hot_probabilities_give_cross_entropy_and_its_gradients():
    logits, labels = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 1, 1, 2, 0])
    outputs = SequenceClassifierOutput(logits=logits)
    for items in (None, 24):  # the Trainer counts every probability
        hard = loss_of(None)(outputs, labels, None if items is None else 6)
        soft = loss_of(None)(outputs, torch.eye(4)[labels], items)
        torch.testing.assert_close(soft, hard, rtol=1e-6, atol=0)
        [of_hard], [of_soft] = (torch.autograd.grad(loss, logits, retain_graph=True) for loss in (hard, soft))
        torch.testing.assert_close(of_soft, of_hard, rtol=1e-6, atol=1e-7)


def test_the_loss_is_the_divergence_at_a_temperature_times_its_square():
    """As Hinton et al. 2015 write it: T^2 KL(softmax(v / T) || softmax(z / T))."""
    v, z = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    for T in (1.0, 2.0, 5.0):
        teacher, pupil = softmax(v / T, dim=1), softmax(z / T, dim=1)
        expected = T**2 * (teacher * (teacher.log() - pupil.log())).sum()
        torch.testing.assert_close(distillation(z, softmax(v, dim=1), T), expected)
    [gradient] = torch.autograd.grad(distillation(z, softmax(v, dim=1), 1.0), z)
    [of_targets] = torch.autograd.grad(cross_entropy(z, softmax(v, dim=1), reduction="sum"), z)
    torch.testing.assert_close(gradient, of_targets)
    assert distillation(v, softmax(v, dim=1), 3.0).item() == pytest.approx(0, abs=1e-12)


# Rows


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_what_predict_writes_is_what_is_read(ending, task_folder):
    """Of a file with labels of its own, which a prefix keeps apart: the pupil never sees them."""
    script("train_linear").main(["data/toy.yaml", TFIDF, "--report_to", "none"])
    hard, rows = load_data(read_task(Path("data/toy.yaml"))), hard_rows()
    source, out = Path(f"in.{ending}"), f"data/teacher.{ending}"
    if ending == "csv":
        source.write_bytes(Path("data/toy.csv").read_bytes())
    elif ending == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), source)
    command(["predict", "runs/toy/tfidf", str(source), "--prefix", "teacher_", "-o", out])
    soft = teach(answered(SURE), soft_labels=f"{{path: teacher.{ending}, prefix: teacher_}}")

    for split in ("train", "validation", "test"):  # the same rows on the same sides
        assert list(soft.splits[split]["text"]) == list(hard.splits[split]["text"])
    assert soft.splits["test"]["label"] == hard.splits["test"]["label"]
    assert "probabilities" not in soft.splits["validation"].column_names
    assert (soft.sha256, soft.clean) == (hard.sha256, hard.clean)
    counts, of = soft.soft_labels, {split: len(rows) for split, rows in hard.splits.items()}
    assert counts == {
        "rows": 108,
        "unlabelled": 0,
        "abstained": 0,
        "near_held_out": of["validation"] + of["test"],
    }
    texts = list(soft.splits["train"]["text"])
    expected = load_scorer(Path("runs/toy/tfidf"), verified_result(Path("runs/toy/tfidf"))).probabilities(texts)
    found = np.array(soft.splits["train"]["probabilities"])
    assert list(soft.splits["train"]["label"]) == expected.argmax(axis=1).tolist()
    T = verified_result(Path("runs/toy/tfidf"))["calibration"]["temperature"]
    scaled = expected ** (1 / T)
    np.testing.assert_allclose(found, scaled / scaled.sum(axis=1, keepdims=True), atol=1e-6)


def test_rejected_abstained_and_held_out_rows_are_left_out_and_counted(task_folder, capsys):
    data = teach(answered(UNSURE))
    train = [row["line"] - 2 for row in data.splits["train"]]
    rows = [row | {"abstained": "False"} for row in answered(UNSURE)]
    rows[train[0]] |= dict.fromkeys(COLUMNS, "") | {"text": ""}
    rows[train[1]]["abstained"] = rows[train[2]]["abstained"] = "True"
    held = data.splits["validation"][0]["text"]
    rows.append(answered(UNSURE)[0] | {"text": f"{held.upper()}!"})  # the same news in other characters
    capsys.readouterr()
    again = teach(rows)
    counts = {"rows": 109, "unlabelled": 1, "abstained": 2, "near_held_out": 108 - len(train) + 1}
    assert again.soft_labels == again.summary()["soft_labels"] == counts
    assert [row["line"] - 2 for row in again.splits["train"]] == train[3:]
    said = capsys.readouterr().out.splitlines()[0]
    assert f"data: {len(train) - 3} of the 109 rows of " in said and "1 that predict rejected, 2 abstained" in said


def test_rows_near_a_test_file_of_its_own_are_for_max_leakage(task_folder):
    """The task's author stated that file; what is split off here is kept apart, as it is for hard labels."""
    rows = hard_rows()
    for name, part in (("rest", rows[1::4]), ("test", rows[::4])):
        with Path(f"data/{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(part)
    more = {"files": "{train: rest.csv, test: test.csv}", "max_leakage": "1"}
    hard = load_data(read_task(Path("data/toy.yaml")))
    data = teach(answered(UNSURE), **more)
    assert data.clean.count(False) == len(data.splits["test"]) == 27
    trained, validation = set(data.splits["train"]["text"]), set(data.splits["validation"]["text"])
    assert not trained & validation and validation
    assert trained >= set(data.splits["test"]["text"])
    assert data.sha256 != hard.sha256


FAULTS = {
    "above 1": (COLUMNS[0], "1.2", r"taught.csv:4: probability_Up is '1.2', no number from 0 to 1"),
    "below 0": (COLUMNS[1], "-0.1", r"taught.csv:4: probability_Up or down is '-0.1'"),
    "nan": (COLUMNS[2], "nan", r"taught.csv:4: probability_Down is 'nan'"),
    "inf": (COLUMNS[2], "inf", r"taught.csv:4: probability_Down is 'inf'"),
    "a word": (COLUMNS[0], "high", r"taught.csv:4: probability_Up is 'high'"),
    "one is missing": (COLUMNS[0], "", r"taught.csv:4: probability_Up is ''"),
    "no distribution": (COLUMNS[0], "0.602", r"taught.csv:4: the probabilities sum to 1\.0020, not to 1"),
    "no text": ("text", " ", r"taught.csv:4: the text is empty; fix or remove the row"),
}


@pytest.mark.parametrize("column,value,message", FAULTS.values(), ids=FAULTS)
def test_a_bad_row_is_named_before_a_model_loads(column, value, message, task_folder):
    rows = answered(UNSURE)
    rows[2][column] = value
    with pytest.raises(UserError, match=message) as refused:
        teach(rows)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=message):  # where a model would have to be downloaded
        script("train_cls").main(["data/toy-taught.yaml", str(ROOT / "configs/baselines/bert-base.yaml"), *FLAGS])
    rows[2] = answered(UNSURE)[2] | {COLUMNS[0]: "0.6008"}  # rounded
    assert np.sum(teach(rows).splits["train"]["probabilities"], axis=1) == pytest.approx(1, abs=1e-12)


def test_a_file_that_cannot_be_meant_is_refused(task_folder):
    rows = answered(UNSURE)
    with pytest.raises(
        UserError, match=r"no column 'x_probability_Up', or several, among .* \(its --prefix is `prefix`\)"
    ):
        teach(rows, soft_labels="{path: taught.csv, prefix: x_}")
    with pytest.raises(UserError, match=r"gone.csv: no such file; write it by `fintune predict`"):
        teach(rows, soft_labels="gone.csv")
    for wrong in ("{path: taught.csv, prefixes: x_}", "[taught.csv]", "true", "{prefix: x_}"):
        with pytest.raises(UserError, match="`soft_labels` is "):
            teach(rows, soft_labels=wrong)
    with pytest.raises(UserError, match="no row is left to train on"):
        teach([row | {"abstained": "true"} for row in rows])
    with pytest.raises(UserError, match="no row of class Down in the train split"):
        teach([row for row in rows if float(row[COLUMNS[2]]) < 0.5])
    with pytest.raises(UserError, match="`class_weights` weighs hard labels; take it out, or `soft_labels`"):
        teach(rows, class_weights="balanced")
    with pytest.raises(UserError, match="`exclude` names rows by their label; take it out, or `soft_labels`"):
        teach(rows, exclude="taught.csv")


def test_what_would_have_no_effect_is_refused(task_folder):
    teach(answered(UNSURE))
    overlay = str(ROOT / "configs/overlays/distilled.yaml")
    for name in ("tfidf", "minilm-l6-frozen"):
        words = ["data/toy.yaml", str(ROOT / f"configs/baselines/{name}.yaml"), overlay]
        recipe = parse_recipe(words, LinearArguments, script="train_linear.py")
        assert recipe.task.soft_labels == SoftLabels(str(ROOT / "runs/teacher.csv"), "teacher_")
    for name in ("tiny", "smollm2-135m"):
        with pytest.raises(UserError, match=r"train_sft\.py learns the words of one label"):
            script("train_sft").main(["data/toy.yaml", str(ROOT / f"configs/{name}.yaml"), overlay, *SMALL])
    with pytest.raises(UserError, match=r"train_sft\.py learns the words of one label, .* take train_cls\.py or"):
        script("train_sft").main(["data/toy-taught.yaml", "small.yaml", *SMALL])
    bert = [str(ROOT / "configs/baselines/bert-base.yaml"), "--report_to", "none"]

    def parse(task: str, *flags: str) -> None:
        parse_recipe([task, *bert, *flags], EncoderArguments, TrainingArguments, script="train_cls.py")

    with pytest.raises(UserError, match="`label_smoothing_factor` smooths hard labels"):
        parse("data/toy-taught.yaml", "--label_smoothing_factor", "0.1")
    with pytest.raises(UserError, match="`distillation_temperature` needs `soft_labels`"):
        parse("data/toy.yaml", "--distillation_temperature", "2")
    for wrong in ("0", "-1", "nan", "inf"):
        with pytest.raises(UserError, match=r"distillation_temperature is .*; it takes one above 0"):
            parse("data/toy-taught.yaml", "--distillation_temperature", wrong)
    parse("data/toy-taught.yaml", "--distillation_temperature", "2")


def test_a_result_is_of_its_soft_labels_and_shares_a_table_with_the_teacher(task_folder):
    script("train_linear").main(["data/toy.yaml", MAJORITY, "--report_to", "none"])
    found = []
    for by_label, where in ((SURE, "sure"), (UNSURE, "unsure")):
        teach(answered(by_label))
        script("train_linear").main(["data/toy-taught.yaml", MAJORITY, "--report_to", "none", "--output_dir", where])
        result = verified_result(Path(where))
        found.append(result["identity"])
        assert result["data"]["soft_labels"]["rows"] == 108
        script("evaluate").main([where, "--split", "validation"])  # by the recipe.yaml that the run keeps
    hard = verified_result(Path("runs/toy/majority"))
    assert "soft_labels" not in hard["identity"] and "soft_labels" not in hard["data"]
    assert differences(*found) == differences(found[0], hard["identity"]) == ["soft_labels"]
    Path("sure").rename("runs/toy/sure")
    [group], _ = compare_runs(Path("runs"))
    assert len(group.cells) == 2


# Encoders


def pupil(task: str, out: str, *flags: str) -> Path:
    texts = [row["text"] for row in hard_rows()]
    base = save_encoder(Path("base"), "bert", texts)
    recipe = str(ROOT / "configs/baselines/bert-base.yaml")
    script("train_cls").main([task, recipe, "--model_name_or_path", base, *FLAGS, *flags, "--output_dir", out])
    return Path(out)


def test_an_encoder_learns_from_one_hot_probabilities_as_from_labels(task_folder):
    """Also in micro-batches, whose loss is divided by the rows of the step."""
    teach(answered(SURE))
    flags = ["--logging_steps", "1", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"]
    flags += ["--optim", "sgd", "--learning_rate", "0.1"]  # Adam would make equal steps of any size of gradient
    runs = [pupil(f"data/{name}.yaml", name, *flags) for name in ("toy", "toy-taught")]
    logs = [verified_result(run)["training"]["log"] for run in runs]
    losses, norms = ([[e[key] for e in log if key in e] for log in logs] for key in ("loss", "grad_norm"))
    assert len(losses[0]) > 8
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and norms[1] == pytest.approx(norms[0], rel=1e-3)
    hard, soft = (load_file(run / "model.safetensors") for run in runs)
    off = {key: (soft[key] - hard[key]).abs().max().item() for key in hard}
    assert max(off.values()) < 1e-4, off


def test_an_encoder_comes_nearer_to_its_teacher_than_by_hard_labels(task_folder, capsys):
    """Mean KL from the teacher on rows that neither saw, before calibration."""
    texts, teacher = held_out(teach(answered(UNSURE)))
    flags = ["--num_train_epochs", "30", "--early_stopping_patience", "30", "--learning_rate", "3e-3"]
    found = {}
    for name, more in (("toy", []), ("toy-taught", []), ("toy-taught", ["--distillation_temperature", "2"])):
        run = pupil(f"data/{name}.yaml", name + "-".join(more), *flags, "--seed", "3", *more)
        found[name, *more] = divergence(teacher, load_scorer(run, verified_result(run)).probabilities(texts))
    hard, *soft = found.values()
    assert max(soft) < hard / 2, found
    assert " -> Up 0.6000, Up or down 0.3000, Down 0.1000" in capsys.readouterr().out


# Linear models


def linear(kind: str, **keys):
    return LinearArguments(linear_model=kind, model_name_or_path="x" if kind == "embedding" else None, **keys)


@pytest.mark.parametrize("kind", ["majority", "tfidf", "embedding"])
def test_a_linear_model_learns_from_one_hot_probabilities_as_from_labels(kind, task_folder):
    train = teach(answered(SURE)).splits["train"]
    args, features = linear(kind), build_features(linear("tfidf"), None, train["text"])
    known = list(train["text"]) if kind == "majority" else features.transform(train["text"])
    soft, hard = (
        fit(build_classifier(args, 10.0, None), known, rows) for rows in (train, train.remove_columns("probabilities"))
    )
    np.testing.assert_array_equal(soft.predict_proba(known), hard.predict_proba(known))


@pytest.mark.parametrize("labels", [2, 3])
def test_a_linear_model_minimises_cross_entropy_with_the_probabilities(labels):
    """Where the gradient of the regularised sum over rows is zero."""
    rng = np.random.default_rng(0)
    X, P, C = rng.normal(size=(60, 4)), rng.dirichlet(np.ones(labels), 60), 3.0
    rows = Dataset.from_dict({"label": P.argmax(axis=1), "probabilities": P})
    found = fit(LogisticRegression(C=C, max_iter=1000, tol=1e-10), X, rows)
    one = slice(1, None) if labels == 2 else slice(None)  # of two labels it keeps the second's weights
    error = (found.predict_proba(X) - P)[:, one]
    np.testing.assert_allclose(error.T @ X + found.coef_ / C, 0, atol=1e-3)
    np.testing.assert_allclose(error.sum(axis=0), 0, atol=1e-3)

    found = fit(word_classifier(C).set_params(estimator__tol=1e-10), X, rows)
    assert len(found.estimators_) == (1 if labels == 2 else 3)
    for part, share in zip(found.estimators_, P[:, one].T, strict=True):
        error = expit(X @ part.coef_[0] + part.intercept_) - share
        np.testing.assert_allclose(error @ X + part.coef_[0] / C, 0, atol=1e-3)
    assert found.predict_proba(X).shape == P.shape


def test_the_commonest_label_of_a_teacher_has_its_mean_probability(task_folder):
    train = teach(answered(UNSURE)).splits["train"]
    found = fit(build_classifier(linear("majority"), None, None), list(train["text"]), train)
    expected = np.mean(train["probabilities"], axis=0)
    assert found.predict_proba(["x"])[0] == pytest.approx(expected)


def test_a_linear_pupil_comes_nearer_to_its_teacher_and_labels_like_any_run(task_folder):
    texts, teacher = held_out(teach(answered(UNSURE)))
    found = []
    for name in ("toy", "toy-taught"):
        script("train_linear").main([f"data/{name}.yaml", TFIDF, "--report_to", "none", "--output_dir", name])
        run = Path(name)
        found.append(divergence(teacher, load_scorer(run, verified_result(run)).probabilities(texts)))
    assert found[1] < found[0] / 2
    assert command(["predict", "toy-taught", "data/toy.csv", "--prefix", "x_", "-o", "out.csv"]) == 0
