"""Files as people have them: read in the encoding, delimiter and line ends that they have, and written likewise."""

import csv
import gzip
import io
import json
import subprocess
import sys
import zipfile
from datetime import datetime

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from fintune.cli import command
from fintune.data.load import load_data
from fintune.data.tables import check_column, read_table
from fintune.deploy.label_file import label_file
from fintune.errors import UserError
from fintune.recipe.task import absolute_paths, make_task

TITLES = ["Alder raised; its dividend, again", "", "Börsen föll – “5 €”", "losses\nof Oak | widened", "a\ttab"]
MARKS = {"utf-8-sig": b"\xef\xbb\xbf", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}


def table_bytes(rows, delimiter=",", end="\n", encoding="utf-8", mark=b"") -> bytes:
    content = io.StringIO()
    csv.writer(content, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    return mark + content.getvalue().encode(encoding)


def opened(path):
    """The decompressed bytes of a file."""
    if path.suffix == ".zst":
        return pa.input_stream(str(path), compression="zstd").read()
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "cp1252"])
def test_a_file_comes_out_as_it_went_in(encoding, delimiter, end, run_dir, classifier, tmp_path):
    rows = [["id", "title", "note"], *([str(i), title, "x;y,z|\t"] for i, title in enumerate(TITLES))]
    name = {"\t": "in.tsv", "|": "in.csv.zst", ";": "in.CSV"}.get(delimiter, "in.csv.gz")
    mark, bare = MARKS.get(encoding, b""), encoding.removesuffix("-sig")
    content = table_bytes(rows, delimiter, end, bare, mark)
    source, target = tmp_path / name, tmp_path / name.replace("in", "out")
    if name.endswith(".zst"):
        with pa.output_stream(str(source), compression="zstd") as file:
            file.write(content)
    else:
        source.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    stated = encoding if encoding == "cp1252" else None
    assert label_file(classifier, run_dir, source, target, "title", 0.0, encoding=stated) == (4, 1)
    written = opened(target)
    assert written.startswith(mark)
    text = written.removeprefix(mark).decode(bare)
    found = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    assert [row[:3] for row in found] == rows
    assert [row[3] for row in found[1:]] == [classifier.predict(title) if title else "" for title in TITLES]
    assert [row[-1] for row in found] == ["rejected", "", "empty", "", "", ""]
    assert text.endswith(end)
    assert not target.with_name(target.name + ".rejected.jsonl").exists()


def test_the_line_above_the_header_comes_out_too(run_dir, classifier, tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(b"\xef\xbb\xbfsep=;\r\ntitle;note;\r\nAlder rises;x\r\nOak falls;y;;\r\n")
    assert label_file(classifier, run_dir, source, target, "title", 0.0) == (2, 0)
    lines = target.read_bytes().split(b"\r\n")
    assert lines[0] == b"\xef\xbb\xbfsep=;" and lines[1].startswith(b"title;note;;label;confidence")
    assert [line.split(b";")[:3] for line in lines[2:4]] == [[b"Alder rises", b"x", b""], [b"Oak falls", b"y", b""]]
    assert lines[4:] == [b""]


def titles(path, name="title", **stated) -> list:
    table = read_table(path, name, **stated)
    check_column(table, path, name, "--text-column {}")
    return [row.text for row in table.rows()]


DELIMITERS = {
    "texts full of commas": "id;title\n1;a, b, c\n2;d, e, f\n",
    "decimal commas": "price;title;note,s\n1,5;x;y\n2,5;x;y\n",
    "semicolons in a comma file": "id,title\n1,a; b; c\n2,d; e\n",
    "quoted commas under bars": 'id|title\n1|"a, ""b"", c|d"\n',
    "Excel's hint": "sep=;\nid;title\n1;a,b\n",
    "line ends in cells": 'id\ttitle\r\n1\t"a\r\nb"\r\n',
    "a Mac's line ends, with a cell's own": 'id;title\r1;"a\nb"\r2;c\r',
    "one column": "title\na; b\nc; d\n",
    "nothing but a header": "id;title\n",
}
FOUND = [["a, b, c", "d, e, f"], ["x", "x"], ["a; b; c", "d; e"], ['a, "b", c|d'], ["a,b"], ["a\r\nb"], ["a\nb", "c"]]
FOUND += [["a; b", "c; d"], []]


@pytest.mark.parametrize("content,found", list(zip(DELIMITERS.values(), FOUND, strict=True)), ids=DELIMITERS)
def test_the_delimiter_is_found(content, found, tmp_path):
    (tmp_path / "in.csv").write_bytes(content.encode())
    assert titles(tmp_path / "in.csv") == found


def test_a_stated_delimiter_and_encoding_win(tmp_path):
    (tmp_path / "in.csv").write_bytes("title;a,b\nÄ;1,2\n".encode("cp1252"))
    assert titles(tmp_path / "in.csv", "title;a", delimiter="comma", encoding="latin-1") == ["Ä;1"]
    (tmp_path / "in.csv").write_bytes("id^title\n1^x\n".encode("utf-16-le"))
    assert titles(tmp_path / "in.csv", delimiter="^", encoding="utf-16-le") == ["x"]
    for stated, message in (
        ({}, "UTF-16-LE without a byte order mark; state its encoding, utf-16-le"),
        ({"encoding": "utf-16"}, "its encoding is utf-16-le or utf-16-be; state it"),
        ({"encoding": "latin-99"}, "encoding 'latin-99' is unknown"),
        ({"encoding": "base64"}, "encoding 'base64' is unknown"),
        ({"encoding": "punycode"}, "encoding 'punycode' is unknown"),
        ({"encoding": "idna"}, "encoding 'idna' is unknown"),
        ({"encoding": "cp1252", "delimiter": "→"}, "give one character, or one of tab,"),
        ({"encoding": "utf-16-le", "delimiter": "\udce9"}, "give one character, or one of tab,"),
        ({"encoding": "utf-16-le", "delimiter": "=>"}, "give one character, or one of tab,"),
    ):
        with pytest.raises(UserError, match=message):
            titles(tmp_path / "in.csv", **stated)
    (tmp_path / "in.csv").write_bytes("id,title\n1,x\n".encode("utf-16"))
    with pytest.raises(UserError, match="begins with the mark of UTF-16-LE, so it is not cp1252"):
        titles(tmp_path / "in.csv", encoding="cp1252")


SPOKEN = {
    "cp1252": "Crédit Agricole relève ses prévisions – “très bien”",
    "cp1250": "Spółka ogłosiła wyższy zysk: Żabka w Łodzi",
    "cp1251": "Прибыль Сбербанка выросла на треть",
    "gb18030": "贵州茅台上调分红，比亚迪利润增长三成",
    "cp932": "トヨタ自動車は配当を引き上げた",
    "cp949": "삼성전자 배당 확대 현대차 이익 증가",
}


@pytest.mark.parametrize("encoding", SPOKEN)
def test_another_encoding_is_named_once_and_a_few_damaged_lines_cost_themselves_alone(encoding, tmp_path):
    lines = [f"{i},{SPOKEN[encoding]} {i}" if i % 3 else f"{i},plain {i}" for i in range(30)]
    content = "id,title\n" + "\n".join(lines)
    (tmp_path / "in.csv").write_bytes(content.encode(encoding))
    with pytest.raises(UserError, match="20 lines are not UTF-8, the first of them line 3") as error:
        titles(tmp_path / "in.csv")
    assert f"--encoding {encoding} reads it so" in str(error.value)
    assert SPOKEN[encoding][:20] in str(error.value)
    assert titles(tmp_path / "in.csv", encoding=encoding) == [line.split(",", 1)[1] for line in lines]
    assert titles(tmp_path / "in.csv", encoding="utf-8").count(None) == 20  # as asked for
    few = [line.encode(encoding if i < 7 else "utf-8") for i, line in enumerate(lines)]
    (tmp_path / "in.csv").write_bytes(b"id,title\n" + b"\n".join(few))
    assert titles(tmp_path / "in.csv").count(None) == 4


def test_a_damaged_line_inside_quotes_costs_its_row_alone(tmp_path):
    (tmp_path / "in.csv").write_bytes(b'title\nfine\n"one\ntwo \xff\nthree"\nlast\n')
    rows = list(read_table(tmp_path / "in.csv", "title").rows())
    assert [(row.line, row.text, row.fault) for row in rows] == [
        (2, "fine", None),
        (3, None, "not UTF-8 (at character 5)"),
        (6, "last", None),
    ]


COLUMNS = {
    "case": ("id,Title,tone", "1,Alder rose,Up", "'Title' is likely meant: --text-column Title"),
    "space": ("id, title ,tone", "1,Alder rose,Up", "' title ' is likely meant: --text-column ' title '"),
    "a usual name": ("id,Headline,tone", "1,Alder rose,Up", "'Headline' is likely meant: --text-column Headline"),
    "the only words": ("id,was,tone", "1,Alder rose by a third,Up", "'was' is likely meant: --text-column was"),
    "two of words": ("id,a,b", "1,Alder rose by a third,so it is said", "name the right one: --text-column NAME"),
    "none of words": ("id,a,b", "1,x,y", "name the right one: --text-column NAME"),
}


@pytest.mark.parametrize("header,row,message", COLUMNS.values(), ids=COLUMNS)
def test_a_column_that_is_missing_is_proposed(header, row, message, tmp_path):
    (tmp_path / "in.csv").write_text(f"{header}\n{row}\n")
    (tmp_path / "in.jsonl").write_text(json.dumps(dict(zip(header.split(","), row.split(","), strict=True))))
    table = pa.table({name: [cell] for name, cell in zip(header.split(","), row.split(","), strict=True)})
    pq.write_table(table, tmp_path / "in.parquet")
    for name in ("in.csv", "in.jsonl", "in.parquet"):
        with pytest.raises(UserError, match="column 'title' is missing from the header") as error:
            titles(tmp_path / name)
        assert str(error.value).endswith(message)


FOREIGN = {
    "array.jsonl": (b'[{"title": "x"}, {"title": "y"}]', "is one JSON array"),
    "pretty.jsonl": (b'[\n  {"title": "x"},\n  {"title": "y"}\n]', "is one JSON array"),
    "pretty2.jsonl": (b'{\n  "title": "x"\n}', "line 1 is not valid JSON"),
    "book.csv": (b"PK\x03\x04 and so on", "Excel workbook; unpack it, or name it .xlsx"),
    "old.csv": (b"\xd0\xcf\x11\xe0 and so on", "an old or encrypted Excel workbook"),
    "parquet.csv": (b"PAR1 and so on", "is a Parquet file"),
    "packed.csv": (gzip.compress(b"title\nx\n"), "is compressed by gzip; add .gz"),
    "plain.csv.gz": (b"title\nx\n", "its gzip is damaged after line 0"),
    "plain.csv.zst": (b"title\nx\n", "its zstd is damaged after line 0"),
    "plain.xlsx": (b"title\nx\n", "not a complete .xlsx workbook"),
    "old.xls": (b"", "ends in none of .csv, .tsv"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_file_is_instead_is_said(name, tmp_path):
    content, message = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        titles(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_folder_is_called_one(run_dir, tmp_path):
    (tmp_path / "news.parquet").mkdir()
    with pytest.raises(UserError, match=r"news\.parquet: is a folder; --engine ray labels the \.parquet files in it"):
        command(["predict", str(run_dir), str(tmp_path / "news.parquet"), "-o", str(tmp_path / "out.parquet")])
    with pytest.raises(UserError, match="is a folder; name a file"):
        titles(tmp_path / "news.parquet")
    with pytest.raises(UserError, match="no such file"):
        titles(tmp_path / "gone.parquet")


def workbook(path, rows, before=(), sheets=("News",)) -> None:
    book = openpyxl.Workbook(write_only=True)
    for name in before:
        book.create_sheet(name)
    for name in sheets:
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)


def test_an_excel_workbook_is_labelled_as_csv(run_dir, tmp_path, capsys):
    rows = [
        ["id", "title", "when", "n", None],
        [7, "Börsen föll – 5 €", datetime(2026, 1, 2), 1.5, None],
        [None, None, None, None, None],
        [8, 2026, datetime(2026, 1, 2, 3, 4), True, None],
        [9, "Alder rose,\nagain"],
        [10, "x", None, None, "beyond"],
        [None, None],
    ]
    workbook(tmp_path / "in.xlsx", rows, before=["Notes"], sheets=["News", "Old"])
    target = tmp_path / "out.csv"
    words = ["predict", str(run_dir), str(tmp_path / "in.xlsx"), "--text-column", "title", "-o"]
    with pytest.raises(UserError, match=r"out\.xlsx: what is made of in\.xlsx ends in \.csv"):
        command([*words, str(tmp_path / "out.xlsx")])
    assert command([*words, str(target)]) == 3
    said = capsys.readouterr().err
    assert "in.xlsx: sheet 'News', the first of 3 with rows" in said
    assert f"5 rows: 2 labelled, 3 rejected (see the column rejected, and {target}.rejected.jsonl for" in said
    assert target.read_bytes().startswith(b"\xef\xbb\xbf")
    with target.open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.reader(file))
    assert [row[:4] for row in found] == [
        ["id", "title", "when", "n"],
        ["7", "Börsen föll – 5 €", "2026-01-02", "1.5"],
        ["8", "2026", "2026-01-02 03:04:00", "True"],
        ["9", "Alder rose,\nagain", "", ""],
    ]
    assert [row[-1] for row in found] == ["rejected", "", "int, not text", ""]
    lost = [json.loads(line) for line in (tmp_path / "out.csv.rejected.jsonl").read_text().splitlines()]
    assert lost == [
        {"line": 3, "reason": "an empty line"},
        {"line": 6, "reason": "5 cells where the header has 4"},
    ]


def test_a_workbook_cut_short_or_empty_is_said(tmp_path):
    workbook(tmp_path / "in.xlsx", [["title"], *([f"row {i}"] for i in range(500))])
    with zipfile.ZipFile(tmp_path / "in.xlsx") as whole, zipfile.ZipFile(tmp_path / "cut.xlsx", "w") as cut:
        for name in whole.namelist():
            content = whole.read(name)
            cut.writestr(name, content[: len(content) // 2] if "sheet1.xml" in name else content)
    with pytest.raises(UserError, match=r"cut\.xlsx: .*save it again"):
        titles(tmp_path / "cut.xlsx")
    workbook(tmp_path / "none.xlsx", [])
    with pytest.raises(UserError, match="no sheet of the workbook holds rows"):
        titles(tmp_path / "none.xlsx")


def task_rows(folder, file) -> list[tuple[str, int]]:
    values = yaml.safe_load((folder / "data/toy.yaml").read_text()) | {"files": {"all": file}}
    splits = load_data(make_task(absolute_paths(values, folder / "data"), "data/toy.yaml")).splits
    return sorted((row["text"], row["label"]) for split in splits.values() for row in split)


def test_a_task_may_name_any_of_them(task_folder):
    expected, place = task_rows(task_folder, "toy.csv"), task_folder / "data"
    with (place / "toy.csv").open() as file:
        rows = list(csv.reader(file))
    (place / "toy.tsv").write_bytes(table_bytes(rows, "\t", "\r", "utf-16-le", b"\xff\xfe"))
    (place / "semi.CSV").write_bytes(table_bytes(rows, ";", "\r\n", "cp1252"))
    (place / "toy.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps(dict(zip(rows[0], row, strict=True))).encode() + b"\n" for row in rows[1:]))
    )
    pq.write_table(pa.table(dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))), place / "toy.parquet")
    workbook(place / "toy.xlsx", rows)
    for name in ("toy.tsv", {"path": "semi.CSV", "encoding": "cp1252"}, "toy.jsonl.gz", "toy.parquet", "toy.xlsx"):
        assert task_rows(task_folder, name) == expected
    (place / "toy.csv").write_text("Text,label\nx,Up\n")
    with pytest.raises(
        UserError, match=r"toy\.csv: column 'text' is missing .*`text_column: Text` in the task's YAML"
    ):
        task_rows(task_folder, "toy.csv")


def test_standard_input_may_have_a_mark_or_another_encoding(run_dir):
    base = [sys.executable, "-m", "fintune.cli", "predict", str(run_dir), "-"]
    for content, flags in (
        (b"\xef\xbb\xbf" + "Börsen föll\r\nAlder rose\n".encode(), []),
        ("\ufeffBörsen föll\nAlder rose".encode("utf-16-le"), []),
        ("Börsen föll\nAlder rose\n".encode("cp1252"), ["--encoding", "cp1252"]),
    ):
        done = subprocess.run([*base, *flags], input=content, capture_output=True)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["text"] for row in found] == ["Börsen föll", "Alder rose"], done.stderr
        assert done.returncode == 0
    many = "Börsen föll i dag\n".encode("cp1252") * 9 + b"Alder rose\n"
    done = subprocess.run(base, input=many, capture_output=True, text=False)
    assert done.returncode == 3
    assert done.stdout.count(b"not UTF-8 (at character 2)") == 9
    assert b"over 5 lines are not UTF-8 and rejected; --encoding cp1252 may read them" in done.stderr


def test_labels_that_the_encoding_cannot_hold_are_said_before_any_work(classifier, run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "names", ["上涨", "Up or down", "Down"])
    (tmp_path / "in.csv").write_bytes("title\nBörsen\n".encode("cp1252"))
    with pytest.raises(UserError, match="'上' in a label's name cannot be written in cp1252"):
        label_file(classifier, run_dir, tmp_path / "in.csv", tmp_path / "out.csv", "title", 0.0, encoding="cp1252")


def test_an_object_without_columns_keeps_its_place(classifier, run_dir, tmp_path):
    (tmp_path / "in.jsonl").write_bytes('\ufeff{"title": "föll"}\r\n{}\r\n'.encode("utf-16-be"))
    counts = label_file(classifier, run_dir, tmp_path / "in.jsonl", tmp_path / "out.jsonl", "title", 0.0)
    assert counts == (1, 1)
    content = (tmp_path / "out.jsonl").read_bytes().decode("utf-16")
    first, second = (json.loads(line) for line in content.split("\r\n") if line)
    assert first["title"] == "föll"
    assert (second["label"], second["rejected"]) == (None, "no column 'title'")
