"""A run labels files and streams: every row comes back or is rejected with its place, also after a kill."""

import csv
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fintune
from fintune.cli import command
from fintune.data.tables import check_column, read_table
from fintune.deploy import answers, label_file
from fintune.deploy.classifier import Classifier
from fintune.errors import UserError

COMMAND = [sys.executable, "-m", "fintune.cli", "predict"]
PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
NEW = ["label", "confidence", "probability_Up", "probability_Up or down", "probability_Down", "abstained"]
NEW += ["truncated", "rejected"]


@pytest.fixture
def label(classifier, run_dir, tmp_path):
    def label(source, target="out", **options):
        options = {"text_column": "title", "threshold": 0.0, **options}
        target = tmp_path / (target + source.name[source.name.index(".") :])
        return label_file.label_file(classifier, run_dir, source, target, **options), target

    return label


def rejected_of(target) -> list[dict]:
    place = target.with_name(target.name + ".rejected.jsonl")
    return [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []


def test_from_python_it_gives_what_the_run_was_tested_with(run_dir, classifier):
    assert fintune.Classifier is Classifier
    predictions = [json.loads(line) for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    labels, probabilities = classifier([row["text"] for row in predictions])
    assert labels == [row["prediction"] for row in predictions]
    expected = [[row["probabilities"][name] for name in classifier.names] for row in predictions]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    for wrong in ("", None, 5, float("nan"), "half \ud800"):
        with pytest.raises(UserError, match="text 1"):
            classifier(["fine", wrong])
    assert classifier([])[1].shape == (0, 3)


TITLES = [
    "Alder raised its dividend again",
    "NA",
    "007",
    "losses of Oak widened, much",
    'a "quoted" title',
    "né 🙂 עברית",
    "a lone\rcarriage return",
]


def test_csv_keeps_every_column_and_its_characters(label, tmp_path, classifier):
    rows = [["1", title, "x,\ny"] for title in TITLES]
    content = io.StringIO()
    csv.writer(content).writerows([["id", "title", "note"], *rows])
    for name, opener in (("a.csv", open), ("b.csv.gz", gzip.open)):
        with opener(tmp_path / name, "wb") as file:
            file.write(b"\xef\xbb\xbf" + content.getvalue().encode())
        counts, target = label(tmp_path / name, f"{name[0]}-out")
        assert counts == (7, 0)
        with opener(target, "rt", encoding="utf-8", newline="") as file:
            header, *found = csv.reader(file)
        assert header == ["\ufeffid", "title", "note", *NEW]
        assert [row[:3] for row in found] == rows
        _, probabilities = classifier(TITLES)
        np.testing.assert_allclose([[float(p) for p in row[5:8]] for row in found], probabilities, atol=1e-6)
        assert [row[3] for row in found] == classifier(TITLES)[0]
        assert not target.with_name(target.name + ".parts").exists()


def test_jsonl_and_parquet_round_trip(label, tmp_path):
    rows = [{"title": title, "n": 2**60 + i, "more": {"a": [1, None]}} for i, title in enumerate(TITLES)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts, target = label(tmp_path / "in.jsonl")
    assert counts == (7, 0)
    found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [{key: row[key] for key in ("title", "n", "more")} for row in found] == rows
    assert list(found[0])[3:] == NEW

    table = pa.Table.from_pylist(rows).append_column("kind", pa.array(TITLES).dictionary_encode())
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    counts, target = label(tmp_path / "in.parquet")
    assert counts == (7, 0)
    found_table = pq.read_table(target)
    assert found_table.select(table.column_names).equals(table)
    assert [row["label"] for row in found] == found_table["label"].to_pylist()
    assert found_table.schema.field("abstained").type == pa.bool_()


def test_bad_rows_are_rejected_with_their_line_and_counts_add_up(label, tmp_path):
    lines = [b"id,title", b"1,fine", b"2,", b"3,a,b", b"4,\xff\xfe", b'5,"never closed', b"6,after it", b"", b"8,end"]
    (tmp_path / "in.csv").write_bytes(b"\n".join(lines) + b"\n")
    (labelled, rejected), target = label(tmp_path / "in.csv")
    with target.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["id"], row["rejected"]) for row in found] == [("1", ""), ("2", "empty"), ("6", ""), ("8", "")]
    assert {found[1][column] for column in NEW[:-1]} == {""}
    assert [(row["line"], row["reason"][:12]) for row in rejected_of(target)] == [
        (4, "3 cells wher"),
        (5, "not UTF-8 (a"),
        (6, "unexpected e"),
        (8, "an empty lin"),
    ]
    assert (labelled, rejected) == (3, 5)

    deep = '{"title": ' + "[" * 100_000 + "]" * 100_000 + "}"
    lines = ['{"title": "fine"}', "{", deep, '{"title": null}', '{"title": 5}', '{"other": "x"}', "[1]", "NaN"]
    lines += ['{"title": "half \\ud800"}', ' {"title": "fine", "other": "half \\ud800", "n": 1e999 } ']
    lines += ['{"title": "a\\u0000b"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    (labelled, rejected), target = label(tmp_path / "in.jsonl")
    assert (labelled, rejected) == (3, 8)
    assert [row["line"] for row in rejected_of(target)] == [2, 3, 7, 8]
    kept = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    reasons = ["missing", "int, not text", "no column 'title'", "half a character (lone surrogate '\\ud800')"]
    assert [row["rejected"] for row in kept] == [None, *reasons, None, None]
    assert [row["label"] is None for row in kept] == [False, *[True] * 4, False, False]
    assert kept[5]["other"] == "half \ud800"
    assert ' "n": 1e999, "label": ' in target.read_text()

    broken = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 2, 4], np.int32)), pa.py_buffer(b"ok\xff\xfe"))
    pq.write_table(pa.table({"title": pa.chunked_array([broken, pa.array([None, "x"])])}), tmp_path / "in.parquet")
    (labelled, rejected), target = label(tmp_path / "in.parquet")
    assert (labelled, rejected) == (2, 2)
    assert rejected_of(target) == []
    assert pq.read_table(target, columns=["rejected"])[0].to_pylist() == [None, "not UTF-8", "missing", None]


def test_an_unterminated_quote_costs_its_line_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("fintune.data.csv_file.RECORD_LINES", 5)
    (tmp_path / "in.csv").write_text('title\n"never closed\n' + "".join(f"row {i}\n" for i in range(20)))
    rows = list(read_table(tmp_path / "in.csv", "title").rows())
    assert [row.text for row in rows] == [None, *(f"row {i}" for i in range(20))]
    assert rows[0].line == 2
    assert "not closed within 5 lines" in rows[0].fault


def test_what_cannot_be_done_is_said_in_one_line(label, tmp_path):
    (tmp_path / "in.csv").write_text("id,title,label\n1,x,y\n")
    for options, message in (
        ({"text_column": "name"}, "column 'name' is missing from"),
        ({}, "has a column 'label' already; choose a --prefix"),
    ):
        with pytest.raises(UserError, match=message):
            label(tmp_path / "in.csv", **options)
    assert label(tmp_path / "in.csv", prefix="new_")[0] == (1, 0)
    with pytest.raises(UserError, match="already exists"):
        label(tmp_path / "in.csv", prefix="new_")
    (tmp_path / "in.jsonl").write_text('{"title": "x", "label": 1}\n')
    with pytest.raises(UserError, match="has a column 'label' already"):
        label(tmp_path / "in.jsonl")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"title\n" + os.urandom(5000).hex().encode())[:-3000])
    with pytest.raises(UserError, match="gzip is damaged"):
        label(tmp_path / "cut.csv.gz", "cut-out")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match="not a complete Parquet file"):
        label(tmp_path / "no.parquet")
    pq.write_table(pa.table({"title": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(UserError, match="holds int64, not text"):
        label(tmp_path / "numbers.parquet")


def test_spreadsheets_get_no_formula_on_request(label, tmp_path):
    (tmp_path / "in.csv").write_text('id,title\n"=1+1",+5 % for Alder\n-,@home\n')
    _, target = label(tmp_path / "in.csv", spreadsheet_safe=True)
    with target.open(newline="") as file:
        assert [row[:2] for row in csv.reader(file)][1:] == [["'=1+1", "'+5 % for Alder"], ["'-", "'@home"]]


def test_repeated_texts_are_scored_once_also_across_shards(label, tmp_path, classifier, monkeypatch):
    monkeypatch.setattr(label_file, "SHARD", 30)
    asked = []
    inner = classifier.scorer.scores
    monkeypatch.setattr(classifier.scorer, "scores", lambda texts: asked.extend(texts) or inner(texts))
    texts = [f"{i % 100} for Alder" for i in range(250)]
    (tmp_path / "in.csv").write_text("title\n" + "\n".join(texts) + "\n")
    counts, target = label(tmp_path / "in.csv")
    assert counts == (250, 0)
    assert sorted(asked) == sorted(set(texts))
    own = dict(zip(texts[:100], classifier(texts[:100])[1].max(axis=1), strict=True))
    assert len({round(confidence, 5) for confidence in own.values()}) > 90  # so each row's answer tells its text
    with target.open(newline="") as file:
        for row in csv.DictReader(file):
            assert float(row["confidence"]) == pytest.approx(own[row["title"]], abs=1e-6)


def test_a_stream_forgets_what_it_scored_long_ago(classifier, monkeypatch):
    monkeypatch.setattr(answers, "MOST_IN_MEMORY", 5)
    answer = answers.Answers(classifier, 0.0, "")
    first = answer([f"news {i}" for i in range(4)])
    assert answer(["news 0", "more", "and more"])[0] == first[0]
    assert answer.database.execute("SELECT count(*) FROM scores").fetchone() == (2,)
    assert answer(["news 0"])[0] == pytest.approx(first[0])


def test_a_killed_run_goes_on_and_ends_the_same(run_dir, tmp_path, label):
    random.seed(0)
    lines = [f"{i},{random.choice(TITLES[3:6])[:9]} number {i % 900}" for i in range(6000)]
    lines = [line if i % 7 else f"{i}," if i % 105 else f"{i},a,b" for i, line in enumerate(lines)]
    (tmp_path / "in.csv").write_text("id,title\n" + "\n".join(lines) + "\n")
    code = "from fintune import cli; from fintune.deploy import label_file; label_file.SHARD = 200; cli.main()"
    outs = []
    for name in ("whole.csv", "parts.csv"):
        command = [sys.executable, "-c", code, "predict", str(run_dir), str(tmp_path / "in.csv")]
        command += ["--text-column", "title", "-o", str(tmp_path / name)]
        if name == "parts.csv":
            parts = tmp_path / "parts.csv.parts"
            for signum, shards in ((signal.SIGKILL, 1), (signal.SIGTERM, 4), (signal.SIGKILL, 6)):
                process = subprocess.Popen(command, stderr=subprocess.PIPE)
                while process.poll() is None and len(list(parts.glob("*.rows"))) < shards:
                    time.sleep(0.005)
                process.send_signal(signum)
                process.communicate(timeout=60)
                assert process.returncode == (-9 if signum == signal.SIGKILL else 143)
                assert not (tmp_path / name).exists()
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 3, done.stderr
        assert "6,000 rows: 5,142 labelled, 858 rejected" in done.stderr
        outs.append([(tmp_path / f"{name}{end}").read_bytes() for end in ("", ".rejected.jsonl")])
    assert outs[0] == outs[1]
    assert outs[0][0].count(b"\n") == 5943
    assert outs[0][1].count(b"\n") == 58


def test_what_went_on_does_not_say_how_many_texts_were_cut_before(run_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "in.csv").write_text("text\n" + "Oak cut its outlook. " * 300 + "\nElm\n")
    words = ["predict", str(run_dir), str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.csv")]

    def power_cut(*args):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(label_file, "_join", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            command(words)
    assert command(words) == 0
    assert capsys.readouterr().err.endswith("; 0 texts truncated to 360 tokens since it went on\n")
    (tmp_path / "out.csv").unlink()
    assert command(words) == 0
    assert capsys.readouterr().err.endswith("; 1 texts truncated to 360 tokens\n")


def test_a_begun_file_takes_no_other_input_or_run(label, tmp_path, monkeypatch):
    (tmp_path / "in.csv").write_text("title\nx\n")

    def power_cut(*args):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(label_file, "_join", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            label(tmp_path / "in.csv")
    with pytest.raises(UserError, match="was begun with another options"):
        label(tmp_path / "in.csv", threshold=0.5)
    (tmp_path / "in.csv").write_text("title\ny\n")
    with pytest.raises(UserError, match="was begun with another input"):
        label(tmp_path / "in.csv")
    (tmp_path / "in.csv").write_text("title\nx\n")
    join = label_file._join

    def power_cut_after(*args):
        join(*args)
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(label_file, "_join", power_cut_after)
        with pytest.raises(RuntimeError, match="power cut"):
            label(tmp_path / "in.csv")
    counts, target = label(tmp_path / "in.csv")
    assert counts == (1, 0)
    assert target.exists()
    assert not target.with_name(target.name + ".parts").exists()
    with pytest.raises(UserError, match="already exists"):
        label(tmp_path / "in.csv")


def test_lines_of_standard_input_are_answered_as_they_come(run_dir):
    process = subprocess.Popen([*COMMAND, str(run_dir), "-"], **PIPES)
    process.stdin.write(b"Alder cut its dividend\n")
    process.stdin.flush()
    first = json.loads(process.stdout.readline())  # while standard input is still open
    assert first["text"] == "Alder cut its dividend"
    assert list(first)[1:] == NEW
    out, _ = process.communicate(b"\n\xff\nlast", timeout=60)
    second, third, last = (json.loads(line) for line in out.splitlines())
    assert [list(row)[1:] for row in (second, third, last)] == [NEW] * 3
    assert (second["rejected"], second["label"], third["text"], last["text"]) == ("empty", None, None, "last")
    assert third["rejected"] == "not UTF-8 (at character 1)"
    assert last["rejected"] is None
    assert process.returncode == 3


def test_a_reader_that_goes_away_ends_a_stream_in_one_line(run_dir):
    process = subprocess.Popen([*COMMAND, str(run_dir), "-"], **PIPES)
    process.stdout.close()
    process.stdin.write(b"Alder cut its dividend\n")
    process.stdin.close()
    errors = process.stderr.read().decode()
    assert process.wait(timeout=60) == 141
    assert errors.splitlines()[-1] == "the reader of standard output went away"
    assert "Traceback" not in errors


def test_abstaining_from_a_target_accuracy(classifier, label, tmp_path, monkeypatch):
    curve = [(0.9, 0.2, 1.0), (0.7, 0.5, 0.9), (0.4, 1.0, 0.6)]
    monkeypatch.setattr(classifier, "calibration", {**classifier.calibration, "curve": curve})
    assert classifier.threshold(0.9) == 0.7
    assert classifier.threshold(0.1) == 0.4
    with pytest.raises(UserError, match=r"at best 1\.0000"):
        classifier.threshold(1.01)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"title": f"{t} {i}"}) + "\n" for i, t in enumerate(TITLES)))
    confidences = classifier([f"{title} {i}" for i, title in enumerate(TITLES)])[1].max(axis=1)
    least = float(np.median(confidences))
    _, target = label(tmp_path / "in.jsonl", threshold=least)
    found = [json.loads(line)["abstained"] for line in target.read_text(encoding="utf-8").splitlines()]
    assert found == [confidence < least for confidence in confidences]
    assert 0 < sum(found) < 6


PIECES = [b"\x00", b"\xff", b'"', b'""', b",", b"\r", b"\r\n", "\u2028".encode(), "\u202e".encode(), b"NA", b"007"]
PIECES += ["🙂".encode(), b"<|im_end|>", b"<think>", b"{", b"}", b'{"title": "x"}', b"[" * 5000, b"\\ud800", b"null"]
PIECES += [b"\xed\xa0\x80", b"a" * 50_000, b'"title"', b": ", b'{"title": ', b"\xef\xbb\xbf", b"=1+1", b"\x1a", b"\t"]


def hostile(rng: random.Random, before: bytes, after: bytes) -> bytes:
    """Lines, a third of them ordinary, the others of up to 6 pieces that trip readers, half of these in a frame."""
    lines = []
    for _ in range(rng.randint(0, 12)):
        kind, pieces = rng.random(), b"".join(rng.choices(PIECES, k=rng.randint(0, 6)))
        framed = before + pieces + after
        lines.append(before + b"fine <|im_end|>" + after if kind < 1 / 3 else framed if kind < 2 / 3 else pieces)
    return b"\n".join(lines)


def test_hostile_files_give_rows_rejections_or_one_line(tmp_path, classifier):
    """1,000 files of each kind, read to their end and tokenised: nothing but a UserError may come out."""
    rng, texts, rejected, refused = random.Random(1), set(), 0, 0
    for name, head, frame in (
        ("in.csv", b"id,title\n", (b"7,", b"")),
        ("in.jsonl", b"", (b'{"title": "', b'"}')),
    ):
        for number in range(1000):
            path = tmp_path / name
            path.write_bytes((head if number % 10 else b"") + hostile(rng, *frame))
            try:
                table = read_table(path, "title")
                check_column(table, path, "title", "--text-column {}")
                rows = answers.judge(list(table.rows()), classifier)
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
                continue
            assert all(row.fault for row in rows if row.cells is None)
            assert [row.line for row in rows] == sorted({row.line for row in rows})
            texts.update(row.text for row in rows if row.fault is None)
            rejected += sum(row.fault is not None for row in rows)
    assert refused > 50
    assert rejected > 500
    assert len(texts) > 100
    control = set(classifier.scorer.encoder.tokenizer.get_added_vocab().values())
    frame = sorted(set(classifier.scorer.encoder.encode(["x"])[0]) & control)
    for ids in classifier.scorer.encoder.encode(sorted(texts)):
        assert len(ids) <= classifier.max_length
        assert sorted(set(ids) & control) == frame  # those of the chat format, none of a text's own
