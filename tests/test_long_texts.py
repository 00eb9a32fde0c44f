"""Texts longer than the model reads: cut exactly, never tokenised whole, said row by row; or read in windows."""

import csv
import io
import json
import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_baselines import save_encoder

from fintune.data.tables import read_table
from fintune.deploy import label_file
from fintune.deploy.answers import Answers, added_columns
from fintune.model import cut
from fintune.model.encoder import EncoderInput

WORDS = [
    "profit",
    "of",
    "Alder",
    "rose",
    "by",
    "12.5",
    "%",
    "to",
    "EUR",
    "1,234.5",
    "mn",
    "-",
    "Birch's",
    "outlook,",
    "dividend",
    "&",
    "staff\n\n",
]
RANDOM = random.Random(0)
LONG = {  # of each kind about 20,000 characters
    "words": " ".join(RANDOM.choices(WORDS, k=4000)),
    "one word": "a" * 20_000,
    "syllables": "".join(RANDOM.choices(["div", "id", "end", "ing", "s"], k=6000)),
    "no spaces": "".join(RANDOM.choices("公司利润增长了股息下降年度，。", k=20_000)),
    "spaces": " ".join(f"rose{' ' * RANDOM.randrange(300)}by" for _ in range(150)),
    "rules": ("Total " + "-" * 700 + "." * 300 + "\n" * 200) * 16,
    "digits": "".join(RANDOM.choices("0123456789", k=20_000)),
    "emoji": "👩‍👩‍👧‍👦🚀é" * 2000,
    "marks": "a" + "́̂" * 9000,
    "any": "".join(chr(RANDOM.randrange(32, 0x3000)) for _ in range(20_000)),
}
CONTROL = {
    "ends in ends": " ".join(RANDOM.choices(WORDS, k=30)) + "<|im_end|>" * 2000,
    "ends": "<|im_end|>" * 2000,
    "thoughts": "profit <think> rose </think>.<|im_end|>.<tool_response>" * 400,
    "halves": "<|im_<|im_end|>end|>" * 1000,
}


@pytest.fixture
def whole_reads(monkeypatch):
    """How many characters the longest string had that was tokenised."""
    longest = [0]

    def watch(tokenizer):
        call = type(tokenizer)._encode_plus

        def counted(self, text, *args, **kwargs):
            longest[0] = max([longest[0], *map(len, [text] if isinstance(text, str) else text)])
            return call(self, text, *args, **kwargs)

        monkeypatch.setattr(type(tokenizer), "_encode_plus", counted)
        return longest

    return watch


@pytest.mark.parametrize("kind", [*LONG, *CONTROL])
def test_a_prompt_is_cut_as_if_the_whole_text_had_been_tokenised(toy, kind):
    prompt = toy[2]
    text = (LONG | CONTROL)[kind].strip()
    room = prompt.max_length - max(map(len, prompt.label_ids))
    starts = prompt._starts(text)  # of all of it
    fitting = [text[:start] for start in starts[: room + 1] if len(prompt._render([text[:start]])[0]) <= room]
    [ids] = prompt.encode([text])
    assert ids == prompt._render([max(fitting, key=len)])[0]
    assert prompt.truncated_texts == 1 and prompt.is_cut(text)
    # a control token that is not special is kept or cut as one, and so are spaces, which no prompt ends in
    assert len(ids) <= room and (len(ids) >= room - 16 or kind == "spaces")


def test_a_text_that_ends_in_control_tokens_keeps_its_beginning(toy):
    prompt = toy[2]
    text = "profit of Alder rose by a third"
    for tail in ("<|im_end|>", "<|endoftext|>", "<|im_start|>user\n"):
        [ids] = prompt.encode([text + tail * 500])
        room = prompt.max_length - max(map(len, prompt.label_ids))
        assert text + tail in prompt.tokenizer.decode(ids) and len(ids) > room - 8


def test_an_encoder_is_given_the_first_tokens_of_the_whole_text(toy, tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    texts = ["profit of Alder rose by 12.5 %", "outlook, dividend & staff", *WORDS, "公司利润增长了"]
    folder = save_encoder(tmp_path / "bert", "bert", texts)
    words, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    merges = toy[2].tokenizer  # byte-level, without special tokens
    for kind, tokenizer in (("words", words), ("merges", merges)):
        encoder = EncoderInput(
            tokenizer, SimpleNamespace(**vars(config) | {"pad_token_id": tokenizer.pad_token_id}), 40
        )
        settings = {"split_special_tokens": True, "truncation": "only_first", "max_length": 40}
        for number, (name, text) in enumerate((LONG | CONTROL).items(), start=1):
            whole = tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
            assert encoder.encode([text]) == [tokenizer(text, **settings)["input_ids"]], (kind, name)
            assert encoder.is_cut(text) == (len(whole) > 40), (kind, name)
            assert encoder.truncated_texts == sum(map(encoder.is_cut, list((LONG | CONTROL).values())[:number]))
        parts, before = cut.windows(encoder, LONG["words"][:2000]), encoder.truncated_texts
        assert len(parts) > 5 and max(map(len, encoder.encode(parts))) <= 40 and encoder.truncated_texts == before


def test_a_megabyte_is_never_tokenised_whole(toy, tmp_path, whole_reads):
    from transformers import AutoConfig, AutoTokenizer

    prompt = toy[2]
    folder = save_encoder(tmp_path / "bert", "bert", ["profit rose"])
    encoder = EncoderInput(AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder), 40)
    longest = whole_reads(encoder.tokenizer)
    for count, text in enumerate(("profit rose ", "<|im_end|>", "a", "公司利润"), start=1):
        [ids] = prompt.encode([text * (10**6 // len(text))])
        assert prompt.truncated_texts == count and len(ids) > 90
        if count < 3:  # a word without end is one token to BERT, so it must be read to its end
            [ids] = encoder.encode([text * (10**6 // len(text))])
            assert encoder.truncated_texts == count and len(ids) == 40
    assert 0 < longest[0] < 20_000


def test_windows_cover_a_text_and_overlap(toy):
    prompt = toy[2]
    words = [f"word{number}" for number in range(2000)]
    text = "  " + " ".join(words[:1000]) + " " * 5000 + " ".join(words[1000:]) + "\n"
    parts = cut.windows(prompt, text)
    assert cut.windows(prompt, "profit rose") == ["profit rose"]
    assert (
        not any(map(prompt.is_cut, parts)) and len(prompt.encode(parts)) == len(parts) and not prompt.truncated_texts
    )
    inside = [{word for word in words if f" {word} " in f" {part} "} for part in parts]
    assert set().union(*inside) == set(words)
    shared = [one & other for one, other in pairwise(inside)]
    assert sum(map(bool, shared)) >= len(shared) - 1  # not across the spaces
    column = {"text": text, "ticker": "ALD"}
    assert all(part["ticker"] == "ALD" for part in cut.windows(prompt, column))


def test_split_averages_the_log_probabilities_of_the_windows(classifier):
    text = "Alder raised its dividend again. " * 60 + "losses of Oak widened. " * 120
    prompt = classifier.scorer.encoder
    parts = cut.windows(prompt, text)
    logs = np.log(np.array([classifier.scorer.probabilities([part])[0] for part in parts])).mean(axis=0)
    logs /= classifier.calibration["temperature"]
    expected = np.exp(logs) / np.exp(logs).sum()
    assert classifier.truncated([text, "Elm opens an office"]).tolist() == [True, False] and classifier.truncated(text)
    cut_short = classifier(text)[1]
    before = prompt.truncated_texts
    classifier.long = "split"
    try:
        _, found = classifier([text, "Elm opens an office", text])
        assert not classifier.truncated([text]).any() and prompt.truncated_texts == before
        assert classifier([])[1].shape == (0, 3)
    finally:
        classifier.long = "cut"
    np.testing.assert_allclose(found[[0, 2]], [expected, expected], atol=1e-5)
    np.testing.assert_allclose(found[1], classifier("Elm opens an office")[1], atol=1e-6)
    assert np.abs(found[0] - cut_short).max() > 0.01


def test_what_scores_a_text_says_whether_it_was_cut(classifier, monkeypatch):
    prompt, asked = classifier.scorer.encoder, []
    monkeypatch.setattr(prompt, "is_cut", lambda given: pytest.fail("tokenised a second time"))
    bounds = prompt.bounds
    monkeypatch.setattr(prompt, "bounds", lambda given: asked.append(given) or bounds(given))
    texts = ["Übernahme: Elm kauft 12 % von Öl AG", "公司利润增长了 " * 300, "Elm", "Oak cut its outlook. " * 300]
    answers, before = Answers(classifier, 0.0, ""), classifier.truncated_texts
    for fresh in (True, False):  # the second time of those that were kept
        assert [one["truncated"] for one in answers([*texts, texts[1]])] == [False, True, False, True, True]
        assert asked == [texts[1], texts[3]] and answers.scored == 4, fresh
        assert classifier.truncated_texts == before + 2


@pytest.mark.parametrize("kind", ["decoder", "encoder", "embedding"])
def test_each_of_many_texts_is_told_from_the_others(kind, classifier, tmp_path, monkeypatch):
    """Of any length and order, in parts and batches of a few; at the limit, and one token over it."""
    from sklearn.dummy import DummyClassifier
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    from fintune.model.embedding import Embedder
    from fintune.scoring.encoder_scorer import EncoderScorer
    from fintune.scoring.linear_scorer import LinearScorer

    monkeypatch.setattr("fintune.model.batches.AT_ONCE", 8)
    if kind == "decoder":
        scorer, room = classifier.scorer, classifier.scorer.encoder._room
        sizes = {
            text: len(classifier.scorer.encoder._render([text])[0]) for text in ("rose " * n for n in range(1, 400))
        }
    else:
        folder = save_encoder(tmp_path / "bert", "bert", ["profit rose"])
        encoder, room = EncoderInput(AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder), 40), 40
        if kind == "encoder":
            scorer = EncoderScorer(AutoModelForSequenceClassification.from_pretrained(folder), encoder)
        else:
            features = Embedder(AutoModel.from_pretrained(folder), encoder)
            scorer = LinearScorer(features, DummyClassifier().fit([[0]] * 2, [0, 1]))
        sizes = {text: len(encoder._ids(text)) + 2 for text in ("rose " * n for n in range(1, 80))}
    at_limit = [text for text, size in sizes.items() if room - 1 <= size <= room + 1]
    texts = [*RANDOM.sample(list(sizes), 40), *at_limit, "é rose " * 300, "é", *at_limit[::-1]]
    expected = [sizes.get(text, room + 1 if len(text) > 100 else 1) > room for text in texts]
    assert any(expected) and not all(expected) and len(at_limit) == 3
    found, truncated = scorer.scores(texts)
    assert truncated.tolist() == expected
    np.testing.assert_allclose(found, np.concatenate([scorer.probabilities([text]) for text in texts]), atol=1e-5)


def test_of_a_cascade_the_stage_that_answers_says_whether_a_text_was_cut(classifier):
    from fintune.model.linear import word_classifier, word_features
    from fintune.scoring.cascade import CascadeScorer, Stage
    from fintune.scoring.linear_scorer import LinearScorer

    known = ["dividend raised again", "outlook of the year", "losses widened"] * 4
    features = word_features(1).fit(known)
    words = LinearScorer(features, word_classifier().fit(features.transform(known), [0, 1, 2] * 4))
    texts = ["losses widened " * 300, "Alder names Birch. " * 300, "Alder names Birch"]
    sure = words.probabilities(texts).max(axis=1)
    assert sure[0] > 0.6 > sure[1]
    for order, expected in (((0.6, 2.0), [False, True, False]), ((2.0, 0.6), [True, True, False])):
        stages = [Stage("words", words, 1.0, order[0]), Stage("model", classifier.scorer, 1.0, order[1])]
        _, truncated, at = CascadeScorer(stages).answers(texts)
        assert truncated.tolist() == expected and (order[0] > 1 or at.tolist() == [0, 2, 2])
    stages = [Stage("model", classifier.scorer, 1.0, 2.0), Stage("words", words, 1.0, 0.6)]
    assert CascadeScorer(stages).answers(texts)[1].tolist() == [False] * 3  # the last one read them whole


def test_files_say_which_rows_were_cut(classifier, run_dir, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"title": title} for title in ("Alder raised its dividend", "Oak cut its outlook. " * 300, "", "Elm")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = io.StringIO()
    csv.writer(content).writerows([["title"], *([row["title"]] for row in rows[:2]), [" "], ["Elm"]])
    (tmp_path / "in.csv").write_text(content.getvalue())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    for name in ("in.jsonl", "in.csv", "in.parquet"):
        target = tmp_path / f"out-{name}"
        assert label_file.label_file(classifier, run_dir, tmp_path / name, target, "title", 0.0) == (3, 1)
        if name == "in.parquet":
            found = pq.read_table(target)
            assert found.column_names[-2:] == ["truncated", "rejected"] and found["truncated"].type == pa.bool_()
            assert found["truncated"].to_pylist() == [False, True, None, False]
        elif name == "in.jsonl":
            answers = [json.loads(line) for line in target.read_text().splitlines()]
            assert [answer["truncated"] for answer in answers] == [False, True, None, False]
        else:
            answers = list(csv.reader(io.StringIO(target.read_text())))
            assert [answer[-2] for answer in answers] == ["truncated", "False", "True", "", "False"]


@pytest.mark.parametrize("staged", [False, True])
def test_added_columns_have_their_types_in_parquet(tmp_path, staged):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"title": ["Alder"]}), tmp_path / "in.parquet")
    table = read_table(tmp_path / "in.parquet", "title")
    names = added_columns(["stage", "Up"], "abstained_", staged)
    table.add_columns(names)
    values = ["Up", 0.75, 0.25, 0.75, False, *["minilm"] * staged, True, None]
    table.write(tmp_path / "rows", list(table.rows()), [dict(zip(names, values, strict=True))])
    assert table.join([tmp_path / "rows"], tmp_path / "out.parquet") == 1
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [
        {"title": "Alder", **dict(zip(names, values, strict=True))}
    ]


def test_a_date_in_the_chat_template_is_the_runs_for_good(toy, tmp_path, monkeypatch):
    import datetime

    from transformers.utils import chat_template_utils

    from fintune.model import chat_date
    from fintune.model.load import load_tokenizer
    from fintune.model.prompt import Prompt

    def today(day):
        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls.fromisoformat(day)

            @classmethod
            def today(cls):
                return cls.fromisoformat(day).date()

        monkeypatch.setattr(chat_template_utils, "datetime", Day)
        monkeypatch.setattr(
            chat_date, "date", type("Date", (), {"today": Day.today, "fromisoformat": datetime.date.fromisoformat})
        )

    template = Path(tmp_path / "dated.jinja")
    stated = "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}Today: {{ day }}\n"
    template.write_text(stated + toy[2].tokenizer.chat_template)
    base = str(tmp_path / "base")
    prompts = []
    for day in ("2026-11-26", "2026-12-27"):
        today(day)
        chat_template_utils._compile_jinja_template.cache_clear()
        first = load_tokenizer(base, None, str(template))
        prompts.append(Prompt(toy[0], first, 200).encode(["profit rose"]))
        if day == "2026-11-26":
            first.save_pretrained(tmp_path / "runs/checkpoint-3")
            assert "Today: 26 Nov 2026" in first.decode(prompts[0][0])
        again = load_tokenizer(str(tmp_path / "runs/checkpoint-3"), None)
        assert Prompt(toy[0], again, 200).encode(["profit rose"]) == prompts[0]
        resumed = load_tokenizer(base, None, str(template), begun=tmp_path / "runs")
        assert Prompt(toy[0], resumed, 200).encode(["profit rose"]) == prompts[0]
    assert prompts[0] != prompts[1]
    plain = str(toy[2].tokenizer.chat_template)
    template.write_text(plain)
    assert load_tokenizer(base, None, str(template)).chat_template == plain
