"""A file of one's own becomes a task that the trainer reads, and every row is kept or accounted for."""

import csv
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import COMPANIES, ROOT, TEXTS, script

from fintune.cli import command
from fintune.data import prepare as prepare_module
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


def rows_of(tone: str) -> list[dict]:
    return [row for row in ROWS if row["tone"] == tone]


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
    assert "class_weights" not in yaml_text + out  # 36 to 54 rows of a class
    assert "  Up or down: Up or down # 36 rows" in yaml_text
    task = make_task(read_layer(tmp_path / "data/mine.yaml"), "mine.yaml")
    data = load_data(task)
    assert sum(data.summary()["rows"].values()) == len(ROWS) + len(ODD)
    found = {(row["text"], task.names[row["label"]]) for split in data.splits.values() for row in split}
    assert found == {(row["title"], row["tone"].replace("up", "Up")) for row in [*ROWS, *ODD]}
    assert "one label: 'Up' (36 rows), also spelt 'up' (18)" in out
    with pytest.raises(UserError, match=r"mine\.csv: already exists"):
        prepare(flags)
    prepare([*flags, "--force"])


def test_what_makes_no_task_is_said_and_nothing_is_written(prepare, tmp_path):
    source = write(tmp_path / "news.csv", "csv")
    for flags, message in (
        (["--text", "title", "--label", "title"], "holds 0 different labels"),
        (["--text", "title", "--label", "mood"], "column 'mood' is missing from"),
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


def made_from(prepare, tmp_path, content: str | bytes, name: str = "news.csv", *flags: str) -> list[tuple[str, str]]:
    """(text, label) of the task's rows, in the file's order."""
    place = tmp_path / name
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    prepare([str(place), "--text", "title", "--label", "tone", "--task", "mine", *flags])
    load_data(make_task(read_layer(tmp_path / "data/mine.yaml"), "mine.yaml"))
    with (tmp_path / "data/mine.csv").open(newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def test_a_first_line_without_label_or_title_costs_itself_alone(prepare, tmp_path, capsys):
    lines = [json.dumps(row) for row in ROWS]
    for first, said in (('{"id": 1, "title": "x"}', "no label"), ("", "an empty line"), ("{}", "no column 'title'")):
        made = made_from(prepare, tmp_path, "\n".join([first, *lines]), "news.jsonl", "--force")
        assert made == [(row["title"], row["tone"]) for row in ROWS]
        assert f"left out: 1 rows\n  1: {said} (line 1)" in capsys.readouterr().out


def test_values_that_are_no_labels_are_named_and_make_no_class(prepare, tmp_path, capsys):
    missing = [float("nan"), "nan", "NaN", "None", None, " ", "", "NA", "<NA>"]
    rows = [{"title": f"no tone {i} {value!r}", "tone": value} for value in missing for i in range(12)]
    content = "".join(json.dumps(row) + "\n" for row in [*rows, *ROWS])
    made = made_from(prepare, tmp_path, content, "news.jsonl")
    assert {label for _, label in made} == set(TEXTS)
    out = capsys.readouterr().out
    assert f"left out: {len(rows)} rows" in out
    for count, said in ((24, "'nan' stands for a missing label"), (12, "'None' stands for"), (36, "no label (line")):
        assert f"  {count}: {said}" in out


def test_spellings_that_differ_in_case_or_space_are_one_label(prepare, tmp_path, capsys):
    spelt = {"Up": ["Up", "up", " UP ", "Up"], "Down": ["down\u00a0", "DOWN", "down\u00a0"]}
    rows = [
        {**row, "tone": spelt[row["tone"]][i % len(spelt[row["tone"]])] if row["tone"] in spelt else row["tone"]}
        for i, row in enumerate(ROWS)
    ]
    made = made_from(prepare, tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "news.jsonl")
    assert made == [(row["title"], "down" if row["tone"] == "Down" else row["tone"]) for row in ROWS]
    out = capsys.readouterr().out
    assert "one label: 'Up' (18 rows), also spelt 'up' (9), ' UP ' (9)" in out
    assert "# One label: 'Up' (18 rows)" in (tmp_path / "data/mine.yaml").read_text()


ONE_LABEL = {
    "marks that nobody sees": ["Up", "\u200fUp", "Up\u200b", "\ufeffUp", "\u202aUp\u202c", "U\u00adp", "Up\x00"],
    "composed and decomposed": ["Café", "Cafe\u0301"],
    "full width": ["UP", "ＵＰ"],
    "a mark that colours": ["❤", "❤\ufe0f"],
    "numbers": [1, 1.0, "1", "1.0", "1.00"],
    "truth": [True, "True", "true", "TRUE"],
}


@pytest.mark.parametrize("spelt", ONE_LABEL.values(), ids=ONE_LABEL)
def test_labels_that_look_the_same_are_one(spelt, prepare, tmp_path, capsys):
    rows = [
        {**row, "tone": spelt[i % len(spelt)] if row["tone"] == "Up" else row["tone"]} for i, row in enumerate(ROWS)
    ]
    made = made_from(prepare, tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "news.jsonl")
    taken = {label for _, label in made} - {"Down", "Up or down"}
    assert len(made) == len(ROWS) and len(taken) == 1
    assert taken.pop().isprintable()
    assert capsys.readouterr().out.count("one label: ") == 1


def test_labels_that_differ_in_what_is_seen_stay_apart(prepare, tmp_path):
    apart = ["01", "1", "10", "1.5", "-1", "v1.0", "v1", "👍", "👍🏽", "up", "up or", "up or down", "Yes", "No", "~"]
    rows = [{"title": f"{row['title']} {label}", "tone": label} for label in apart for row in ROWS[:12]]
    made = made_from(prepare, tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "news.jsonl")
    assert made == [(row["title"], row["tone"]) for row in rows]


NO_LABEL = {
    "list, not one label": ["up", "down"],
    "dict, not one label": {"tone": "up"},
    "no label": "\u200b \ufeff",
    "'inf' stands for a missing label": float("inf"),
    "'-inf' stands for a missing label": float("-inf"),
    "'#REF!' stands for a missing label": "#REF!",
    "'#NAME?' stands for a missing label": " #NAME?",
    "label: half a character": "\ud83d",
}


def test_what_cannot_be_a_label_is_left_out_by_its_reason(prepare, tmp_path, capsys):
    bad = [{"title": f"row {i} {why}", "tone": value} for why, value in NO_LABEL.items() for i in range(12)]
    made = made_from(prepare, tmp_path, "".join(json.dumps(row) + "\n" for row in [*bad, *ROWS]), "news.jsonl")
    assert made == [(row["title"], row["tone"]) for row in ROWS]
    out = capsys.readouterr().out
    for why in NO_LABEL:
        assert f"  12: {why}" in out
    with pytest.raises(UserError, match=r"0 usable rows.*left out: 12: list, not one label \(line 1, 2"):
        made_from(prepare, tmp_path, "".join(json.dumps(row) + "\n" for row in bad[:12]), "news.jsonl", "--force")


def test_ten_rows_make_a_class_and_nine_do_not(prepare, tmp_path, capsys):
    rows = [row for tone, count in (("Up", 10), ("Down", 12), ("Up or down", 9)) for row in rows_of(tone)[:count]]
    made = made_from(prepare, tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "news.jsonl")
    assert made == [(row["title"], row["tone"]) for row in rows[:22]]
    assert "9: label 'Up or down' has 9 rows, 10 are needed (line 23, 24" in capsys.readouterr().out


def test_labels_of_bytes_in_parquet_are_text_and_damaged_ones_cost_themselves(prepare, tmp_path, capsys):
    tones = pa.array([row["tone"].encode() for row in ROWS] + [b"Up\xff"] * 12)
    titles = [row["title"] for row in ROWS] + [f"damaged {i}" for i in range(12)]
    for kind in (pa.binary(), pa.string()):  # the latter is not checked when it is written
        column = pa.Array.from_buffers(kind, len(tones), tones.buffers())
        pq.write_table(pa.table({"title": titles, "tone": column}), tmp_path / "made.parquet")
        content = (tmp_path / "made.parquet").read_bytes()
        made = made_from(prepare, tmp_path, content, "news.parquet", "--force")
        assert made == [(row["title"], row["tone"]) for row in ROWS]
        assert "12: label: not UTF-8 (line 109, 110" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["what is the\ntone?", "tone # no", "a: b", "\u2028\x85", "'\"", "\ttab "])
def test_whatever_a_column_or_a_label_is_called_the_yaml_reads_back(name, prepare, tmp_path):
    rows = [{name: row["title"], "tone": row["tone"] + name} for row in ROWS]
    (tmp_path / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare([str(tmp_path / "news.jsonl"), "--text", name, "--label", "tone", "--task", "mine"])
    task = make_task(read_layer(tmp_path / "data/mine.yaml"), "mine.yaml")
    assert task.names == sorted((label + name).strip() for label in TEXTS)
    load_data(task)


def test_a_prepare_that_fails_leaves_everything_as_it_was(prepare, tmp_path, monkeypatch):
    twice = "title,tone\n" + "same words,Up\n" * 20 + "other words,Down\n" * 20  # two clusters: no split has both
    with pytest.raises(UserError, match="mine: no row of class"):
        made_from(prepare, tmp_path, twice)
    assert not list(tmp_path.glob("*/mine.*"))

    content = "title,tone\n" + "".join(f"{row['title']},{row['tone']}\n" for row in ROWS)
    made_from(prepare, tmp_path, content)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/mine.*")}
    assert len(before) == 3
    write_text = prepare_module.write_text

    def full_disk(path, content):
        if path.name == "mine.jinja" and path.parent.parent == tmp_path.relative_to(tmp_path):
            raise OSError(28, "No space left on device", str(path))
        write_text(path, content)

    monkeypatch.setattr(prepare_module, "write_text", full_disk)
    with pytest.raises(UserError, match=r"templates/mine\.jinja: cannot be written .*nothing was"):
        made_from(prepare, tmp_path, content.replace("Up", "Upwards"), "news.csv", "--force")
    assert {path: path.read_bytes() for path in tmp_path.glob("*/mine.*")} == before


@pytest.mark.parametrize(
    "encoding,delimiter,end",
    [("utf-8-sig", ";", "\r\n"), ("utf-16", "\t", "\r\n"), ("utf-8", "|", "\r"), ("cp1252", ";", "\n")],
)
def test_what_spreadsheets_write_is_read_right_or_named(encoding, delimiter, end, prepare, tmp_path, capsys):
    rows = [(f"“{row['title']}é” – €", row["tone"]) for row in ROWS]
    content = end.join(delimiter.join(row) for row in [("title", "tone"), *rows, ()]).encode(encoding)
    flags = []
    if encoding == "cp1252":
        with pytest.raises(UserError, match=r"108 lines are not UTF-8, the first of them line 2.*reads '“Alder"):
            made_from(prepare, tmp_path, content, "news.CSV")
        flags = ["--encoding", "cp1252"]
    assert made_from(prepare, tmp_path, content, "news.CSV", *flags) == rows
    names = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
    assert f"cells separated by {names[delimiter]}" in capsys.readouterr().out


def wide(labels: list[str]) -> str:
    """A CSV of 20 rows of each label, no two texts alike."""
    drawn = random.Random(0)

    def text() -> str:
        return " ".join("".join(drawn.choices("abcdefghijklmnop", k=6)) for _ in range(8))

    return "title,tone\n" + "".join(f'"{text()}","{label}"\n' for label in labels * 20)


KINDS = {
    "77 intents": ([f"card_payment_{a}_not_{b}_as_expected" for a in "abcdefghijk" for b in "lmnopqr"], False),
    "40 codes": ([f"{i * 7919 % 100000:05d}-{i}" for i in range(40)], False),
    "20 in Chinese": ([f"第{i}类公司公告与财务报表说明" for i in range(20)], False),
    "20 topics": ([f"Topic of kind {letter}" for letter in "abcdefghijklmnopqrst"], True),
    "3 long ones": (["x" * 119 + end for end in "abc"], False),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", KINDS)
def test_what_prepare_promises_trains(kind, prepare, tmp_path, capsys):
    labels, listed = KINDS[kind]
    made_from(prepare, tmp_path, wide(labels))
    out = capsys.readouterr().out
    assert "then `make train-mine`" in out
    assert (f"{len(labels)} labels are too long a list" in out) is not listed
    assert ("labels | join" in (tmp_path / "templates/mine.jinja").read_text()) is listed
    small = "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2, "
    small += "num_key_value_heads: 2, head_dim: 16}"
    (tmp_path / "small.yaml").write_text(
        f"extends: {ROOT}/configs/tiny.yaml\ntiny_config: {small}\ntiny_vocab_size: 1000\n"
    )
    more = ["--max_steps", "1", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
    more += ["--eval_strategy", "no"]
    script("train_sft").main(["data/mine.yaml", "small.yaml", "--output_dir", "run", *more])
    result = json.loads((tmp_path / "run/metrics.json").read_text())
    assert result["test"]["texts_truncated"] == 0 and len(result["test"]["per_class"]) == len(labels)


def test_a_label_too_long_to_be_one_is_left_out_and_counted(prepare, tmp_path, capsys):
    rows = [*ROWS, *({"title": f"odd {i}", "tone": "a whole sentence that is no label, " * 5} for i in range(12))]
    made = made_from(prepare, tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "news.jsonl")
    assert {label for _, label in made} == set(TEXTS)
    out = capsys.readouterr().out
    assert "12: label 'a whole sentence that is no label, a who'... has 174 characters; shorten it" in out
