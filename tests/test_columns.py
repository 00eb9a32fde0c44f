"""A task with columns: the same headline with two tickers gets two labels, in every kind of model and use."""

import asyncio
import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, SMALL, script, write_task
from test_baselines import save_encoder
from test_export import run_snippet
from test_prompt import HOSTILE

from fintune.cli import command
from fintune.data import audit
from fintune.data.load import inputs_of, load_data
from fintune.data.parquet_file import Parquet
from fintune.data.tables import read_inputs
from fintune.deploy.classifier import Classifier
from fintune.deploy.fleet import Labeller
from fintune.deploy.service import create_app
from fintune.errors import UserError
from fintune.model.encoder import EncoderInput
from fintune.model.forward import common_prefix
from fintune.model.linear import as_words
from fintune.model.prompt import Prompt
from fintune.recipe.layers import read_task
from fintune.recipe.task import make_task
from fintune.scoring.suspects import contradictions
from fintune.training.shared_prefix import SharedPrefixCollator

TICKERS = {"Alder": "ALD", "Birch": "BIR", "Cedar": "CED", "Elm": "ELM"}
THINGS = [
    "order",
    "plant",
    "patent",
    "licence",
    "contract",
    "market",
    "client",
    "mine",
    "bank",
    "brand",
    "fund",
    "port",
]
PLACES = ["Oslo", "Rome", "Lima", "Cairo", "Delhi", "Perth", "Quito", "Turin", "Minsk", "Hanoi", "Dakar", "Sofia"]


def headlines(pairs: list[tuple[str, str]]) -> list[dict]:
    """12 headlines a pair, each of them twice: what wins the one company loses the other."""
    return [
        {
            "Title": f"{winner} takes the {thing} from {loser} in {PLACES[(n + pair) % 12]}",
            "Symbol": TICKERS[one],
            "tone": tone,
        }
        for pair, (winner, loser) in enumerate(pairs)
        for n, thing in enumerate(THINGS)
        for one, tone in ((winner, "Up"), (loser, "Down"))
    ]


PAIRS = [("Alder", "Cedar"), ("Alder", "Elm"), ("Birch", "Cedar"), ("Birch", "Elm")]
ROWS = headlines(PAIRS)
HEADLINE = "Alder takes the bank from Cedar in Lima"
BOTH = [{"text": HEADLINE, "ticker": ticker} for ticker in ("ALD", "CED")]
SOURCES = {"ticker": "ALD", "source": "Wire"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Kind of model -> a run of it on a task that `fintune prepare` made of one CSV."""
    folder = write_task(tmp_path_factory.mktemp("columns"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tfidf = str(ROOT / "configs/baselines/tfidf.yaml")
        prepare("mine", ROWS)
        flags = ["--num_train_epochs", "30", "--learning_rate", "3e-3", "--eval_strategy", "no"]
        script("train_sft").main(["data/mine.yaml", "small.yaml", *SMALL, *flags])
        script("train_linear").main(["data/mine.yaml", tfidf, "--report_to", "none"])
        base = save_encoder(folder / "base", "bert", [*(row["Title"] for row in ROWS), "ticker: ALD BIR CED ELM"])
        tell_segments(Path(base))
        bert = ["data/mine.yaml", str(ROOT / "configs/baselines/bert-base.yaml"), "--model_name_or_path", base]
        flags = ["--num_train_epochs", "12", "--learning_rate", "1e-2", "--early_stopping_patience", "12"]
        flags += ["--report_to", "none", "--disable_tqdm", "true", "--per_device_train_batch_size", "8"]
        script("train_cls").main([*bert, *flags])
    return {name: folder / f"runs/mine/{name}" for name in ("small", "tfidf", "bert-base")}


def tell_segments(base: Path) -> None:
    """As tokenizers of BERT do."""
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))


def prepare(task: str, rows: list[dict]) -> None:
    """A CSV becomes a task, in the current folder."""
    Path("news.csv").write_text("Title,Symbol,tone\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    words = ["--text", "Title", "--label", "tone", "--task", task, "--columns", "ticker=Symbol"]
    command(["prepare", "news.csv", *words])


@pytest.fixture(params=["small", "tfidf", "bert-base"])
def run(request, runs) -> Path:
    return runs[request.param]


@pytest.fixture(scope="module")
def classifier(runs) -> Classifier:
    return Classifier.from_pretrained(runs["tfidf"])


def task_of(**keys):
    keys = {"task": "x", "labels": ["Up", "Down"], "files": {"all": "x.csv"}, "template": "x.jinja"} | keys
    return make_task(keys, "x.yaml")


@pytest.fixture
def prompt(toy, task_folder):
    """The toy's prompt with two columns, between the instruction and the text."""
    (task_folder / "columns.jinja").write_text(
        "Where does {{ ticker }} go? One of: {{ labels | join('; ') }}.\n{{ source }}:\n{{ text }} /no_think"
    )
    task = task_of(columns=["ticker", "source"], template=str(task_folder / "columns.jinja"))
    return Prompt(task, toy[2].tokenizer, 120)


def test_the_ticker_decides_the_label(run):
    result = json.loads((run / "metrics.json").read_text())
    assert (
        result["test"]["accuracy"] >= 0.9
    )  # at most a half without the ticker: each headline is there with both labels
    assert result["data"]["columns"] == ["ticker"] == result["identity"]["columns"]
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert {tuple(row["columns"]) for row in rows} == {("ticker",)}
    inputs = [{"text": row["text"], **row["columns"]} for row in rows]
    classifier = Classifier.from_pretrained(run)
    labels, probabilities = classifier(inputs)
    assert labels == [row["prediction"] for row in rows]
    expected = [list(row["probabilities"].values()) for row in rows]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert classifier.predict(BOTH).tolist() == ["Up", "Down"]
    assert classifier.predict(BOTH[1]) == "Down"
    assert classifier.predict({"ticker": "CED", "text": HEADLINE}) == "Down"  # whatever the order


def test_words_beside_the_ticker_tell_who_wins(task_folder):
    """Here a ticker alone tells nothing either: every company wins as often as it loses."""
    rows = headlines([*PAIRS, *(pair[::-1] for pair in PAIRS)])
    prepare("both", rows)
    script("train_linear").main(["data/both.yaml", str(ROOT / "configs/baselines/tfidf.yaml"), "--report_to", "none"])
    assert json.loads(Path("runs/both/tfidf/metrics.json").read_text())["test"]["accuracy"] >= 0.9
    turned = "Cedar takes the bank from Alder in Lima"
    inputs = [*BOTH, *({**one, "text": turned} for one in BOTH)]
    assert Classifier.from_pretrained("runs/both/tfidf").predict(inputs).tolist() == ["Up", "Down", "Down", "Up"]


def test_what_is_exported_reads_the_columns_too(run, monkeypatch, tmp_path):
    target = tmp_path / "plain"
    command(["export", str(run), str(target)])
    card = (target / "README.md").read_text()
    assert "Beside the text it reads ticker of each row" in card
    monkeypatch.chdir(tmp_path)
    example = {"text": "Alder raised its dividend again", "ticker": "TICKER"}
    assert run_snippet(card, Path(), monkeypatch) == Classifier.from_pretrained(run).predict(example)


def test_columns_that_no_template_can_name_are_refused():
    for columns in (["Company Name"], ["not"], ["2nd"], ["a | upper"], [5], [["a"]], ["x}} {{ y"], [""]):
        with pytest.raises(UserError, match="which no template can name"):
            task_of(columns=columns)
    for name in ("text", "texts", "label", "labels", "headline", "move"):
        with pytest.raises(UserError, match=f"`columns` lists '{name}', which is taken"):
            task_of(columns=[name], text_column="headline", label_column="move")
    for columns in ("ticker", {"a": "b"}, ["a", "a"]):
        with pytest.raises(UserError, match="list different columns"):
            task_of(columns=columns)


def test_a_task_without_columns_is_what_it_was(toy):
    from fintune.recipe.identity import identity
    from fintune.recipe.task import task_yaml

    assert toy[0].columns == [] and "columns" not in task_yaml(toy[0])
    assert "columns" not in identity({}, toy[0], "0" * 64)
    assert "columns" not in toy[1].splits["train"].column_names
    texts = toy[1].splits["train"]["text"]
    assert list(inputs_of(toy[1].splits["train"])) == [as_words(text) for text in texts] == list(texts)


def test_the_template_uses_the_declared_columns_and_no_others(toy, tmp_path):
    for text, columns in (
        ("{{ ticker }} {{ text }}", []),
        ("{{ text }}", ["ticker"]),
        ("{{ ticker }} {{ text }} {{ source }}", ["ticker"]),
    ):
        (tmp_path / "x.jinja").write_text(text)
        with pytest.raises(UserError, match=r"x\.jinja: uses \[.*\]; it must use \{\{ text \}\}"):
            Prompt(task_of(columns=columns, template=str(tmp_path / "x.jinja")), toy[2].tokenizer, 120)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_column_cannot_write_control_tokens(prompt, hostile):
    control = set(prompt.tokenizer.convert_tokens_to_ids(list(prompt.tokenizer.get_added_vocab())))
    plain, ids = prompt.encode(
        [{"text": "profit rose", **SOURCES}, {"text": "profit rose", **SOURCES, "source": hostile}]
    )
    assert [token for token in ids if token in control] == [token for token in plain if token in control]
    assert hostile in prompt.tokenizer.decode(ids)


def test_a_long_row_loses_text_alone(prompt):
    long = {"text": "profit of Alder rose " * 200, "ticker": " ALD ", "source": "Wire"}
    (ids,) = prompt.encode([long])
    room = prompt.max_length - max(map(len, prompt.label_ids))
    assert prompt.truncated_texts == 1 and room - 3 <= len(ids) <= room
    rendered = prompt.tokenizer.decode(ids)
    assert rendered.startswith("<|im_start|>user\nWhere does ALD go? One of: Up; Down.\nWire:\nprofit of Alder rose")
    assert rendered.endswith(" /no_think<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    for text in ("profit rose", "profit rose " * 200):
        with pytest.raises(UserError, match=r"text 0: its columns take the prompt to .* of max_length 120; shorten"):
            prompt.encode([{"text": text, "ticker": "ALD", "source": "a wire " * 60}])


def test_the_shared_instruction_is_computed_once(runs):
    scorer = Classifier.from_pretrained(runs["small"]).scorer
    prompt = scorer.encoder
    instruction = prompt.tokenizer.decode(prompt.encode(BOTH)[0]).partition("ALD\n")[0]
    assert "ticker: " in instruction
    shared = len(prompt.tokenizer(instruction, add_special_tokens=False)["input_ids"]) - 1  # " ALD" may take the space
    folder = runs["small"].parents[2]
    rows = prompt.training_rows(load_data(read_task(folder / "data/mine.yaml")).splits["train"])
    assert SharedPrefixCollator.of("shared_prefix", rows).shared >= shared
    assert common_prefix(prompt.encode(BOTH)) >= shared
    scorer.log_likelihoods(BOTH)  # compared with the model's own forward once
    read = []
    hook = scorer.model.get_input_embeddings().register_forward_hook(lambda *call: read.append(call[1][0].shape))
    together = scorer.log_likelihoods(BOTH)
    hook.remove()
    assert read[0] >= (1, shared) and read[1][1] < len(prompt.encode(BOTH)[0])
    np.testing.assert_allclose(together, [scorer.log_likelihoods([one])[0] for one in BOTH], atol=1e-4)


def test_an_encoder_reads_a_second_segment(tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    for kind, segments in (("bert", True), ("roberta", True), ("distilbert", False), ("t5", False)):
        folder = save_encoder(tmp_path / kind, kind, ["profit of Alder rose", "ticker: ALD; source: Wire"])
        tell_segments(Path(folder))
        tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
        encoder = EncoderInput(tokenizer, config, 30)
        plain = {"text": "profit rose", **SOURCES}
        found, cut = encoder.read([plain, {**plain, "ticker": "</s> <pad>"}, {**plain, "text": "profit rose " * 40}])
        first, hostile, long = found["input_ids"]
        assert tokenizer.decode(first, skip_special_tokens=True) == "profit rose ticker : ald ; source : wire"
        assert hostile.count(1) == first.count(1) == 2 and hostile.count(0) == 0
        assert len(long) == 30 and encoder.truncated_texts == 1 and long[-8:] == first[-8:]
        assert cut == [False, False, True] and ("token_type_ids" in found) == segments
        if segments:
            assert found["token_type_ids"][0] == [0] * 4 + [1] * (len(first) - 4)
            assert next(encoder.batches([plain], config_device()))[1]["token_type_ids"].shape == (1, len(first))
        with pytest.raises(UserError, match=r"its columns take .* of max_length 30; shorten"):
            encoder.read([{**plain, "source": "wire " * 40}])
        assert list(encoder.read(["profit rose"])[0]) == ["input_ids"]


def config_device():
    import torch

    return torch.device("cpu")


def test_words_count_for_each_value_and_without_links():
    given = {"text": "Alder takes over https://t.co/x", "ticker": "BRK.A"}
    assert as_words(given) == (
        "Alder takes over https://t.co/x\n_ticker_BRK_A alder_ticker_BRK_A takes_ticker_BRK_A over_ticker_BRK_A"
    )


def write_mine(folder: Path, *rows: str, **keys) -> None:
    """data/mine.yaml with columns, of rows `text,ticker,label`."""
    (folder / "data/mine.csv").write_text("text,ticker,label\n" + "\n".join(rows) + "\n")
    keys = {"task": "mine", "labels": ["Up", "Down"], "files": {"all": "mine.csv"}, "columns": ["ticker"]} | keys
    (folder / "data/mine.yaml").write_text(yaml.safe_dump(keys))


def test_rows_of_one_headline_stay_together_and_are_no_repeats(task_folder):
    rows = [f"{row['Title']},{row['Symbol']},{row['tone']}" for row in ROWS]
    write_mine(task_folder, *rows)
    task = read_task(task_folder / "data/mine.yaml")
    data = load_data(task)
    places = {}
    for split, found in data.splits.items():
        for row in found:
            places.setdefault(row["text"], []).append(split)
    assert {len(found) for found in places.values()} == {2} and all(len(set(found)) == 1 for found in places.values())
    found = audit.audit(task, data)
    assert found["repeats"]["exact"] == found["repeats"]["normalised"] == found["contradictions"] == 0
    assert data.clean == [True] * len(data.clean) and found["leaked"]["near"] == 0

    again = rows[0].replace("ALD", "ald").replace("Up", "Down")  # the same question, answered otherwise
    write_mine(task_folder, *rows, again)
    found = audit.audit(task, load_data(task))
    assert (found["repeats"]["normalised"], found["contradictions"]) == (1, 1)


def test_a_test_row_is_clean_unless_text_and_columns_are_in_training(task_folder):
    rows = [f"{row['Title']},{row['Symbol']},{row['tone']}" for row in ROWS]
    write_mine(task_folder, *rows, files={"train": "mine.csv", "test": "test.csv"})
    (task_folder / "data/test.csv").write_text(
        f"text,ticker,label\n{rows[0]}\n{rows[0].replace('ALD', 'XYZ')}\n{rows[1]}\n"
    )
    assert load_data(read_task(task_folder / "data/mine.yaml")).clean == [False, True, False]


def test_a_row_without_its_column_stops_the_run_with_its_line(task_folder):
    for row, message in (
        ("a,,Up", r"mine\.csv:3: column 'ticker' is empty; fill it in"),
        ("a,X,Up,Y", r"mine\.csv:3: 4 cells where the header has 3"),
    ):
        write_mine(task_folder, "x,X,Up", row)
        with pytest.raises(UserError, match=message):
            load_data(read_task(task_folder / "data/mine.yaml"))
    write_mine(task_folder, "x,X,Up", columns=["isin"])
    with pytest.raises(
        UserError,
        match=r"mine\.csv: column 'isin' is missing from the header .*`columns: \[NAME\]` in the task's YAML",
    ):
        load_data(read_task(task_folder / "data/mine.yaml"))
    (task_folder / "data/mine.txt").write_text("x@Up\n")
    write_mine(task_folder, "x,X,Up", files={"all": "mine.txt"})
    with pytest.raises(UserError, match=r"mine\.txt: has no column 'ticker', only `text@label`"):
        load_data(read_task(task_folder / "data/mine.yaml"))


def test_prepare_writes_the_columns_and_a_template_that_uses_them(task_folder, capsys):
    rows = [{**row, "year": 2024} for row in ROWS]
    rows += [{**ROWS[0], "year": None}, {**ROWS[0]}, {**ROWS[0], "Symbol": " ", "year": 1}]
    Path("news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["prepare", "news.jsonl", "--text", "Title", "--label", "tone", "--task", "mine"]
    command([*words, "--columns", "ticker=Symbol, year"])
    out = capsys.readouterr().out
    assert "left out: 3 rows" in out and "2: 'year': missing" in out and "1: 'ticker': empty" in out
    task = read_task(Path("data/mine.yaml"))
    assert task.columns == ["ticker", "year"]
    assert (
        Path("templates/mine.jinja")
        .read_text()
        .endswith("\n\nticker: {{ ticker }}\nyear: {{ year }}\n{{ text }} /no_think\n")
    )
    found = [given for split in load_data(task).splits.values() for given in inputs_of(split)]
    expected = [{"text": row["Title"], "ticker": row["Symbol"], "year": "2024"} for row in ROWS]
    assert sorted(map(str, found)) == sorted(map(str, expected))
    for columns, message in (
        ("isin", "column 'isin' is missing from the header .* --columns isin=NAME"),
        ("text=Symbol", "`columns` lists 'text', which is taken"),
        ("mood=tone", "is the column of the labels"),
        ("year,year", "column 'year': is given twice"),
        ("year,", "column '': has no name"),
    ):
        with pytest.raises(UserError, match=message):
            command([*words, "--force", "--columns", columns])


def test_a_file_is_labelled_by_its_columns(run, tmp_path, monkeypatch, capsys):
    rows = [[HEADLINE, "ALD"], [HEADLINE, "CED"], [HEADLINE, ""], [HEADLINE, "ALD"], [HEADLINE, "wire " * 900]]
    (tmp_path / "in.csv").write_text("text,Symbol\n" + "".join(f"{text},{ticker}\n" for text, ticker in rows))
    words = ["predict", str(run), str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.csv")]
    with monkeypatch.context() as patch:  # before a model is loaded
        patch.setattr(Classifier, "from_pretrained", None)
        for more, message in (
            (
                [],
                r"in\.csv: column 'ticker' is missing from the header \['text', 'Symbol'\]; .*--column ticker=NAME",
            ),
            (["--column", "ticker=isin"], "column 'isin' is missing"),
            (["--column", "symbol=Symbol"], "the run has no such column, it reads ticker"),
        ):
            with pytest.raises(UserError, match=message):
                command([*words, *more])
    assert command([*words, "--column", "ticker=Symbol"]) == 3
    cut = run.name != "tfidf"  # which reads columns of any length
    with (tmp_path / "out.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [[row["text"], row["Symbol"]] for row in found] == rows
    assert [row["label"] for row in found][:4] == ["Up", "Down", "", "Up"]
    assert [row["rejected"] for row in found][:4] == ["", "", "'ticker': empty", ""]
    assert found[4]["rejected"].startswith("its columns take") == cut
    assert f"5 rows: {4 - cut} labelled, {1 + cut} rejected" in capsys.readouterr().err


def test_json_and_parquet_rows_have_numbers_and_gaps(classifier, runs, tmp_path):
    rows = [{"text": HEADLINE, "ticker": "CED"}, {"text": HEADLINE}, {"text": HEADLINE, "ticker": None}]
    rows += [{"text": HEADLINE, "ticker": 5}, {"text": HEADLINE, "ticker": ["ALD"]}]
    rows += [{"text": HEADLINE, "ticker": float("nan")}]  # as pandas writes a gap
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["predict", str(runs["tfidf"]), str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    assert command(words) == 3
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["label"], row["rejected"]) for row in found] == [
        ("Down", None),
        (None, "'ticker': missing"),
        (None, "'ticker': missing"),
        (classifier.predict({**BOTH[0], "ticker": "5"}), None),
        (None, "'ticker': list, not text"),
        (None, "'ticker': missing"),
    ]

    broken = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], dtype=np.int32)), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"text": [HEADLINE], "ticker": broken}), tmp_path / "in.parquet")
    (row,) = read_inputs(Parquet(tmp_path / "in.parquet", "text"), {"ticker": "ticker"})
    assert row.fault == "not UTF-8"


def test_an_actor_of_a_cluster_labels_by_columns(runs, tmp_path):
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    table = pa.table({"text": [HEADLINE, HEADLINE], "Symbol": ["ALD", "CED"]})
    pq.write_table(table, tmp_path / "in/a.parquet")
    options = ("text", 0.0, "")
    labeller = Labeller(str(runs["tfidf"]), str(tmp_path / "in"), str(tmp_path / "out"), options, {"ticker": "Symbol"})
    assert labeller({"file": ["a.parquet"]})["error"] == [""]
    assert pq.read_table(tmp_path / "out/a.parquet")["label"].to_pylist() == ["Up", "Down"]


def test_a_stream_of_objects_is_answered_line_by_line(runs, monkeypatch, capfdbinary):
    lines = [json.dumps({"id": 7, "text": HEADLINE, "Symbol": "ALD"}), json.dumps({"text": HEADLINE, "Symbol": "CED"})]
    lines += [HEADLINE, "", "[]", '{"text": "x"}', '{"text": "x", "Symbol": "A", "label": "Up"}']
    reader, writer = os.pipe()
    os.write(writer, "\n".join(lines).encode() + b"\n")
    os.close(writer)
    before = os.dup(0)
    os.dup2(reader, 0)
    try:
        assert command(["predict", str(runs["tfidf"]), "-", "--column", "ticker=Symbol"]) == 3
    finally:
        os.dup2(before, 0)
    answers = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [answer.get("label") for answer in answers[:2]] == ["Up", "Down"]
    assert (answers[0]["id"], answers[0]["Symbol"]) == (7, "ALD")
    reasons = [
        "not valid JSON",
        "an empty line",
        "list, not an object",
        "'ticker': missing",
        "has a column 'label' already",
    ]
    assert all(answer["rejected"].startswith(reason) for answer, reason in zip(answers[2:], reasons, strict=True))
    assert (answers[2]["text"], answers[5]["text"], answers[6]["text"]) == (HEADLINE, "x", lines[-1])
    assert {answer["label"] for answer in answers[2:]} == {None}


def test_a_classifier_says_what_it_takes(classifier, toy):
    form = r'give \{"text": "\.\.\.", "ticker": "\.\.\."\}, every value a non-empty string'
    for given, message in (
        (HEADLINE, "text 0: str, without column 'ticker'"),
        ({"text": HEADLINE}, "text 0: 'ticker': missing"),
        ([*BOTH, {"text": HEADLINE, "ticker": 5}], "text 2: 'ticker': int, not text"),
        ({"text": "", "ticker": "A"}, "text 0: 'text': empty"),
        ({**BOTH[0], "source": "Wire"}, "text 0: unknown column 'source'"),
    ):
        with pytest.raises(UserError, match=f"{message}; {form}") as refused:
            classifier.predict(given)
        assert "\n" not in str(refused.value)


def test_a_service_takes_columns(classifier):
    app = create_app(classifier, 0.0, 10, 10_000, "x")
    json_type = {"Content-Type": "application/json"}
    refused = {
        b'{"text": "a"}': "text 0: 'ticker': missing",
        b'{"text": "a", "ticker": 5}': "text 0: 'ticker': int, not text",
        b'{"text": "a", "ticker": "A", "isin": "B"}': "text 0: unknown column 'isin'",
        b'{"ticker": "A"}': "give",
        b'{"texts": ["a"]}': "texts: 0: Input should be",
        b'{"texts": [{"text": "a", "ticker": "A"}, {"ticker": "A"}]}': "text 1: 'text': missing",
        b'{"texts": [{"text": "a"}], "ticker": "A"}': "'ticker' beside `texts`",
    }

    async def ask() -> None:
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            for one, label in zip(BOTH, ("Up", "Down"), strict=True):
                assert (await client.post("http://x/classify", json=one)).json()["label"] == label
            many = (await client.post("http://x/classify", json={"texts": [*BOTH, BOTH[0]]})).json()["results"]
            assert [result["label"] for result in many] == ["Up", "Down", "Up"]
            for body, message in refused.items():
                answer = await client.post("http://x/classify", content=body, headers=json_type)
                assert (answer.status_code, message in answer.json()["error"]) == (422, True), (body, answer.text)
                assert "\n" not in answer.json()["error"]
            assert (await client.get("http://x/healthz")).json()["columns"] == ["ticker"]

    asyncio.run(ask())


def test_suspects_read_the_columns_and_exclude_names_rows_by_them(task_folder, capsys):
    rows = [[row["Title"], row["Symbol"], row["tone"]] for row in ROWS]
    wrong = rows[7]
    wrong[2] = "Up"  # of a headline whose other row says the same, for another ticker
    assert rows[6] == [wrong[0], "ALD", "Up"]
    write_mine(task_folder, *(",".join(row) for row in rows))
    command(["audit", "data/mine.yaml", "--suspects", "suspects.csv"])
    said = " ".join(capsys.readouterr().out.split())
    assert "0 contradicted by a near-duplicate" in said
    assert float(said.partition("cross-fitted, predict ")[2].partition("%")[0]) > 95  # a half without the tickers
    with open("suspects.csv") as file:
        assert [[row["text"], row["ticker"], row["label"]] for row in csv.DictReader(file)] == [wrong]

    def training(**keys) -> set[tuple[str, ...]]:
        task = replace(read_task(task_folder / "data/mine.yaml"), **keys)
        train = load_data(task).splits["train"]
        labels = [task.names[label] for label in train["label"]]
        columns = [row["ticker"] for row in train["columns"]]
        return set(zip(train["text"], columns, labels, strict=True))

    assert training() - training(exclude="suspects.csv") == {tuple(wrong)}
    Path("listed.csv").write_text("text,label\n")
    with pytest.raises(
        UserError, match=r"listed\.csv: no column 'ticker' .*`exclude` needs text and ticker and label"
    ):
        training(exclude="listed.csv")


def test_one_headline_contradicts_itself_only_for_the_same_columns():
    rows = [
        {"text": HEADLINE, "label": label, "split": "train", "columns": {"ticker": ticker}}
        for ticker, label in (("ALD", 0), ("CED", 1), ("ald ", 1))
    ]
    found = contradictions(rows, np.array([0, 0, 0]), np.array([0.9, 0.2, 0.1]))
    assert found == {2: [0]}


def test_probabilities_of_rows_with_columns_are_trained_on(task_folder, capsys):
    labelled = [
        f"{row['Title']},{row['Symbol']},{'0.9,0.1' if row['tone'] == 'Up' else '0.2,0.8'}" for row in ROWS
    ] + ["nothing was rejected in vain,,,"]
    rows = [f"{row['Title']},{row['Symbol']},{row['tone']}" for row in ROWS]
    write_mine(task_folder, *rows, soft_labels="soft.csv")
    header = "text,ticker,probability_Up,probability_Down\n"
    soft = task_folder / "data/soft.csv"
    soft.write_text(header + "\n".join(labelled) + "\n")
    train = load_data(read_task(task_folder / "data/mine.yaml")).splits["train"]
    assert "1 that predict rejected" in capsys.readouterr().out
    expected = {"Up": [0.9, 0.1], "Down": [0.2, 0.8]}
    tones = {(row["Title"], row["Symbol"]): row["tone"] for row in ROWS}
    assert train.num_rows > 60
    for row in train:
        assert row["probabilities"] == expected[tones[row["text"], row["columns"]["ticker"]]]
    script("train_linear").main(["data/mine.yaml", str(ROOT / "configs/baselines/tfidf.yaml"), "--report_to", "none"])
    assert json.loads(Path("runs/mine/tfidf/metrics.json").read_text())["test"]["accuracy"] >= 0.9
    for content, message in (
        (header + "a headline, ,0.9,0.1\n", r"soft\.csv:2: column 'ticker' is empty; fill it in"),
        (
            header.replace("ticker", "Symbol"),
            "no column 'ticker', .* needs the task's columns, and one for each label",
        ),
    ):
        soft.write_text(content)
        with pytest.raises(UserError, match=message):
            load_data(read_task(task_folder / "data/mine.yaml"))
