"""A linear run keeps its model without pickle, and labels like any other run; what a Classifier answers."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import httpx
import numpy as np
import pytest
import skops.io
from conftest import ROOT, script, write_task
from huggingface_hub import ModelCard
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from test_baselines import frozen, save_encoder
from test_export import run_snippet

from fintune.cli import command
from fintune.deploy.classifier import Classifier
from fintune.deploy.predict import predict
from fintune.deploy.service import create_app
from fintune.errors import UserError
from fintune.files import sha256
from fintune.model.linear import URL, word_classifier, word_features
from fintune.scoring.linear_scorer import TRUSTED, LinearScorer, load_linear

NAMES = ["Up", "Up or down", "Down"]
KINDS = ["majority", "tfidf", "embedding"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """linear_model -> a run of it on the toy task; the encoder lies beside them in base/."""
    folder = write_task(tmp_path_factory.mktemp("linear"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("majority", "tfidf"):
            recipe = str(ROOT / f"configs/baselines/{name}.yaml")
            script("train_linear").main(["data/toy.yaml", recipe, "--report_to", "none"])
        texts = [line.split(",")[0] for line in Path("data/toy.csv").read_text().splitlines()[1:]]
        base = save_encoder(folder / "base", "bert", texts)
        script("train_linear").main(frozen(base, "C: [300]"))
    return {name: folder / f"runs/toy/{name.replace('embedding', 'frozen')}" for name in KINDS}


@pytest.fixture
def copy(runs, tmp_path):
    """Copies a run, and changes keys of its metrics.json."""

    def copy(name: str, **changes) -> Path:
        target = Path(shutil.copytree(runs[name], tmp_path / "copied" / name))
        result = json.loads((target / "metrics.json").read_text())
        (target / "metrics.json").write_text(json.dumps(result | changes))
        return target

    return copy


def rehash(run: Path) -> None:
    """As whoever may write to a run's folder can do."""
    result = json.loads((run / "metrics.json").read_text())
    result["files"]["model.skops"] = sha256(run / "model.skops")
    (run / "metrics.json").write_text(json.dumps(result))


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_words_are_those_of_a_text_without_its_links():
    texts = ["Rise http://t.co/x of a b cd", "xhttp://foo ends", "wwww.foo x yy", "https://alone", "www no http now"]
    texts += ["ABChttps://q z", "Ünï_code İx 12", "httphttp://x yy", "a-b c'd ef", "see (www.x.y) or http:// there"]
    word = word_features(3).build_analyzer()
    plain = word_features(3).set_params(token_pattern=r"(?u)\b\w\w+\b", stop_words=None).build_analyzer()
    for text in texts:
        assert word(text) == plain(re.sub(URL, " ", text.lower()))
    assert word("https://alone") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_labels_as_it_was_tested(kind, runs):
    run, result = runs[kind], json.loads((runs[kind] / "metrics.json").read_text())
    assert {"model.skops", "recipe.yaml"} <= result["files"].keys()
    assert not list(run.rglob("*.safetensors")), "the encoder is named, not kept"
    rows, classifier = rows_of(run), Classifier.from_pretrained(run)
    labels, probabilities = classifier([row["text"] for row in rows])
    assert labels == [row["prediction"] for row in rows]
    expected = [[row["probabilities"][name] for name in NAMES] for row in rows]
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert classifier([])[1].shape == (0, 3)
    assert classifier.max_length == (256 if kind == "embedding" else None)
    assert Classifier.from_pretrained(run, merge=False).scorer.exact


def test_a_model_without_pickle_or_foreign_types_is_all_that_is_loaded(copy, runs):
    fitted = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    for kind, model, message in (
        ("tfidf", Pipeline([("a", FunctionTransformer(np.exp)), ("b", fitted)]), "holds .*exp"),
        ("tfidf", Pipeline([("a", FunctionTransformer(subprocess.run)), ("b", fitted)]), "holds .*"),
        ("tfidf", SGDClassifier().fit([[0.0], [1.0]], [0, 1]), r"holds sklearn\.linear_model\._sgd"),
        ("tfidf", fitted, "holds a LogisticRegression, another kind"),
        (
            "embedding",
            Pipeline([("a", FunctionTransformer()), ("b", fitted)]),
            "holds a Pipeline, another kind",
        ),
    ):
        run = copy(kind)
        skops.io.dump(model, run / "model.skops")
        with pytest.raises(UserError, match=r"model\.skops: not what was saved"):
            Classifier.from_pretrained(run)
        rehash(run)
        base = runs[kind].parents[2] / "base" if kind == "embedding" else None  # which a copy of the run lies off
        with pytest.raises(UserError, match=rf"model\.skops: {message}") as refused:
            Classifier.from_pretrained(run, base=base)
        assert "\n" not in str(refused.value)
        shutil.rmtree(run)


def test_a_vocabulary_may_hold_the_words_of_the_format(tmp_path):
    texts = ["__class__ rose", "__module__ fell", "content __loader__ rose", "__id__ fell"]
    features = word_features(1).fit(texts)
    scorer = LinearScorer(features, word_classifier().fit(features.transform(texts), [0, 1, 0, 1]))
    scorer.save_pretrained(tmp_path)
    assert load_linear(tmp_path, None).probabilities(texts).tolist() == scorer.probabilities(texts).tolist()


def test_a_damaged_or_missing_model_is_said_in_one_line(copy):
    run = copy("tfidf")
    whole = (run / "model.skops").read_bytes()
    for content in (b"", b"\x80\x04\x95 a pickle.", whole[:-50], whole[:200] + b"\0" * 400 + whole[600:]):
        (run / "model.skops").write_bytes(content)
        rehash(run)
        with pytest.raises(UserError, match=r"model\.skops: cannot be read \("):
            Classifier.from_pretrained(run)
    (run / "model.skops").unlink()
    with pytest.raises(UserError, match=r"model\.skops: missing"):
        Classifier.from_pretrained(run)
    result = json.loads((run / "metrics.json").read_text())
    del result["files"]["model.skops"]  # as before linear models were kept
    (run / "metrics.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"no model\.skops, as in runs of an earlier version; train it again"):
        Classifier.from_pretrained(run)


def test_what_is_trusted_is_what_is_stored(runs):
    found = set()

    def walk(node) -> None:
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(child)
        if isinstance(node, dict) and "__class__" in node:
            found.add(f"{node['__module__']}.{node['__class__']}")

    for run in runs.values():
        with ZipFile(run / "model.skops") as file:
            walk(json.loads(file.read("schema.json")))
    assert found == TRUSTED


def test_a_classifier_takes_no_other_encoder(runs, copy):
    model = json.loads((runs["embedding"] / "metrics.json").read_text())["model"]
    run = copy("embedding", model=model | {"fingerprint": "0" * 64})
    with pytest.raises(UserError, match="its classifier belongs to base 0000"):
        Classifier.from_pretrained(run, base=runs["embedding"].parents[2] / "base")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_labelled_and_plain_weights_need_nothing_of_this_project(kind, runs, tmp_path, capsys, monkeypatch):
    run = runs[kind]
    monkeypatch.chdir(run.parents[2])  # where the card of the frozen encoder finds base/
    texts = ["Alder raised its dividend again", "losses of Oak widened"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert command(["predict", str(run), str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("2 rows: 2 labelled, 0 rejected")
    assert said.endswith("0 texts truncated to 256 tokens" if kind == "embedding" else "0 rejected")
    found = [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == Classifier.from_pretrained(run)(texts)[0]

    target = Path(f"plain-{kind}")
    command(["export", str(run), str(target)])
    assert "256 of 256 labels equal, probabilities to 0.0e+00" in capsys.readouterr().out
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "model.skops"]
    card = (target / "README.md").read_text()
    assert run_snippet(card, Path(), monkeypatch) == found[0]
    data = ModelCard(card).data
    assert (data.library_name, data.base_model) == ("sklearn", None)
    assert "skops " in card.splitlines()[-1]
    assert str(run.parents[2]) not in card


def test_a_labelling_goes_on_with_the_same_model_alone(runs, copy, tmp_path, monkeypatch):
    def power_cut(*args):
        raise RuntimeError("power cut")

    (tmp_path / "in.csv").write_text("text\nx\n")
    words = ["predict", str(runs["tfidf"]), str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.csv")]
    with monkeypatch.context() as patch:
        patch.setattr("fintune.deploy.label_file._join", power_cut)
        with pytest.raises(RuntimeError):
            command(words)
    other = copy("tfidf")
    skops.io.dump(skops.io.load(other / "model.skops"), other / "model.skops")  # other bytes
    rehash(other)
    with pytest.raises(UserError, match="was begun with another run"):
        command([words[0], str(other), *words[2:]])
    assert command(words) == 0


def test_an_export_touches_no_folder_of_the_users(runs, tmp_path, monkeypatch):
    words = ["export", str(runs["tfidf"]), str(tmp_path / "plain")]
    (tmp_path / "plain.partial").mkdir()
    (tmp_path / "plain.partial/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"plain\.partial: already exists; remove it if it is of an export that was"):
        command(words)
    assert (tmp_path / "plain.partial/notes.txt").read_text() == "mine"
    shutil.rmtree(tmp_path / "plain.partial")

    def meanwhile(*args):
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain/notes.txt").write_text("mine")

    with monkeypatch.context() as patch:
        patch.setattr("fintune.deploy.export.write_card", meanwhile)
        with pytest.raises(UserError, match="plain: already exists"):
            command(words)
    assert [path.name for path in tmp_path.rglob("*")] == ["plain", "notes.txt"]


def test_it_is_scored_again_by_evaluate(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs["tfidf"].parents[2])
    run = Path(shutil.copytree(runs["tfidf"], "runs/toy/again"))  # its paths are relative to its folder
    script("evaluate").main([str(run), "--split", "validation"])
    assert "next: " in capsys.readouterr().out
    before, after = (json.loads((run / f"metrics{end}.json").read_text()) for end in ("", "-validation"))
    assert after["validation"]["accuracy"] == before["training"]["best_eval_accuracy"]


def test_a_classifier_answers_as_scikit_learn_does(runs):
    classifier = Classifier.from_pretrained(runs["tfidf"])
    texts = np.array(["Alder raised its dividend again", "losses of Oak widened"])
    labels, probabilities = classifier.predict(texts), classifier.predict_proba(texts)
    assert classifier.classes_.tolist() == NAMES
    assert isinstance(labels, np.ndarray) and labels.shape == (2,) and probabilities.shape == (2, 3)
    assert labels.tolist() == classifier.classes_[probabilities.argmax(axis=1)].tolist() == ["Up", "Down"]
    assert classifier.predict([]).shape == (0,) and classifier.predict([]).dtype == labels.dtype
    assert classifier.predict_proba([]).shape == (0, 3)

    for one in (texts[0], str(texts[0])):
        assert classifier.predict(one) == classifier(one)[0] == "Up"
        assert classifier.predict_proba(one).tolist() == classifier(one)[1].tolist() == probabilities[0].tolist()
    assert classifier(list(texts))[0] == ["Up", "Down"]
    assert classifier(text for text in texts)[0] == ["Up", "Down"]
    with pytest.raises(UserError, match="text 0: empty"):
        classifier.predict("")

    accuracy = json.loads((runs["tfidf"] / "metrics.json").read_text())["test"]["accuracy"]
    about = f"toy/tfidf, accuracy {accuracy:.4f} on {len(rows_of(runs['tfidf']))} test rows"
    assert repr(classifier) == f"Classifier({about}; Up, Up or down, Down)"


def test_no_library_warns(runs, run_dir):
    code = "import sys; from fintune import Classifier\n"
    code += "for run in sys.argv[1:]: Classifier.from_pretrained(run).predict(['Alder raised its dividend', 'Oak'])"
    words = [sys.executable, "-c", code, *map(str, runs.values()), str(run_dir)]
    quiet = os.environ | {"TQDM_DISABLE": "1"}  # a progress bar is no warning
    done = subprocess.run(words, cwd=runs["tfidf"].parents[2], env=quiet, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_of_invented_rows_says_so_at_every_use(copy, runs, tmp_path, capsys, monkeypatch):
    data = json.loads((runs["tfidf"] / "metrics.json").read_text())["data"]
    run, said = copy("tfidf", data=data | {"source": "sample"}), "it knows nothing of finance"
    classifier = Classifier.from_pretrained(run)
    assert said in capsys.readouterr().err
    assert said in classifier.caveat and said in repr(classifier) and "\n" not in repr(classifier)
    (tmp_path / "in.csv").write_text("text\nx\n")
    command(["predict", str(run), str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.csv")])
    assert capsys.readouterr().err.count(said) == 1
    monkeypatch.setattr("fintune.deploy.fleet.label_folder", lambda *args: (1, 0))
    predict(run, "in", "out", "text", "", 0.0, None, False, "ray")
    assert capsys.readouterr().err.count(said) == 1
    monkeypatch.setattr("fintune.deploy.service.serve", lambda *args, **options: None)
    command(["serve", str(run), "--port", "0"])
    assert capsys.readouterr().err.count(said) == 1

    assert said in health(classifier)["caveat"]
    real = Classifier.from_pretrained(runs["tfidf"])
    assert capsys.readouterr().err == "" and real.caveat is None
    assert health(real) == {"status": "ok", "labels": NAMES, "waiting_texts": 0}


def health(classifier: Classifier) -> dict:
    """What GET /healthz answers, after the service has labelled a text."""
    app = create_app(classifier, 0.0, 10, 1000, "x")

    async def ask() -> dict:
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            answer = await client.post("http://x/classify", json={"text": "losses of Oak widened"})
            assert answer.json()["label"] == "Down"
            return (await client.get("http://x/healthz")).json()

    return asyncio.run(ask())
