"""What is small on the disk and large in memory is read in parts of bounded size, or refused by name."""

import codecs
import gzip
import io
import subprocess
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fintune.data import csv_file, excel_file, text_file
from fintune.data.rows import Row, slices
from fintune.data.tables import read_table
from fintune.deploy import stream
from fintune.errors import UserError

MIB = 2**20
READ = """
import re, sys
from pathlib import Path
from fintune.data.rows import slices
from fintune.data.tables import check_column, read_table
from fintune.deploy.label_file import SHARD, SHARD_SIZE
from fintune.errors import UserError
def peak():  # in MiB; what getrusage says begins with that of the process that began this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10
before = peak()
good = bad = 0
try:
    table = read_table(Path(sys.argv[1]), "title", encoding=sys.argv[2] if len(sys.argv) > 2 else None)
    check_column(table, Path(sys.argv[1]), "title", "--text-column {}")
    for number, rows in enumerate(slices(table.rows(), SHARD, SHARD_SIZE)):
        good += sum(row.fault is None for row in rows)
        bad += sum(row.fault is not None for row in rows)
        if number == 9:
            break
except UserError as error:
    print(error, file=sys.stderr)
print(good, bad, peak() - before)
"""


def read(path, *options) -> tuple[int, int, int, str]:
    """(rows that can be labelled, others, MiB more than before, message) of the first ten shards of a file."""
    done = subprocess.run([sys.executable, "-c", READ, str(path), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return *map(int, done.stdout.split()), done.stderr


def test_what_is_packed_is_read_in_parts(tmp_path):
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(b"title\n" + (b"a" * 200_000 + b"\n") * 600, 1))
    word = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["word " * 200_000]))
    pq.write_table(pa.table({"title": word}), tmp_path / "in.parquet")
    ends, title = pa.array(range(5001), pa.int32()), pa.array(["Alder"] * 5000)
    fixed = pa.DictionaryArray.from_arrays(word.indices, pa.array([b"a" * 10**6], pa.binary(10**6)))
    large = pa.DictionaryArray.from_arrays(word.indices, word.dictionary.cast("large_string"))
    for name, column in (
        ("struct", pa.StructArray.from_arrays([word], ["word"])),
        ("list", pa.ListArray.from_arrays(ends, word)),
        ("map", pa.MapArray.from_arrays(ends, title, word)),
        ("inner", pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays([large], ["a.b"]))),
        ("fixed", fixed),
    ):
        pq.write_table(pa.table({"title": title, "more": column}), tmp_path / f"{name}.parquet")
    nested = {f"{name}.parquet": 10 * 17 for name in ("struct", "list", "map", "inner", "fixed")}
    # ten shards of a row over 2**24 characters, which in a text counts twice
    for name, rows in ({"in.csv.gz": 600, "in.parquet": 10 * 9} | nested).items():
        assert (tmp_path / name).stat().st_size < MIB
        good, bad, more, said = read(tmp_path / name)
        assert (good, bad, said) == (rows, 0, "") and more < 150, (name, good, bad, more, said)


def test_a_shard_ends_at_its_rows_or_at_its_size():
    rows = [Row(number, size=size) for number, size in enumerate([1, 1, 1, 9, 1, 20, 1, 1, 1, 1])]
    found = [[row.line for row in part] for part in slices(iter(rows), 3, 10)]
    assert (
        found == [[0, 1, 2], [3, 4], [5], [6, 7, 8], [9]] == [[r.line for r in p] for p in slices(iter(rows), 3, 10)]
    )


def test_a_record_and_a_line_have_a_largest_size(tmp_path, monkeypatch):
    for module in (text_file, csv_file):
        monkeypatch.setattr(module, "LINE_CHARACTERS", 100)
    lines = ["fine", "a" * 300, '"never', *["b" * 40] * 5, '"two', 'lines"', "end"]
    (tmp_path / "in.csv").write_text("title\n" + "\n".join(lines) + "\n")
    rows = list(read_table(tmp_path / "in.csv", "title").rows())
    assert [row.text for row in rows if row.fault is None] == ["fine", *["b" * 40] * 5, "two\nlines", "end"]
    assert [row.fault[:30] for row in rows if row.fault] == [
        "a line of over 0 million chara",
        "a quote that is not closed wit",
    ]
    assert all(row.size == 0 and row.cells is None for row in rows if row.fault)


def test_the_head_of_a_file_is_bounded_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "HEAD_CHARACTERS", 50)
    (tmp_path / "in.jsonl").write_text('{"title": "aaaaaaaaaaaaaaa"}\n' * 20)
    (tmp_path / "in.csv").write_text("title\n" + "a,b\n" * 100)
    table = read_table(tmp_path / "in.jsonl", "title")
    assert len(table._head) == 2 and len(list(table.rows())) == 20 and not table._head
    assert len(list(read_table(tmp_path / "in.csv", "title").rows())) == 100


def test_a_packed_page_of_parquet_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fintune.data.parquet_file.UNPACKED", (MIB, 100))
    for name, column in (("text", pa.array(["a" * 2 * MIB])), ("list", pa.array([[1] * MIB]))):
        table = pa.table({"title": ["Alder"], "more": column})
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="zstd", use_dictionary=name == "list")
        with pytest.raises(UserError, match=r"column 'more.*' takes over 1 MiB at once when row group 0 is unpacked"):
            read_table(tmp_path / f"{name}.parquet", "title")


def test_a_text_of_parquet_that_is_too_long_keeps_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr("fintune.data.parquet_file.LINE_CHARACTERS", 100)
    pq.write_table(pa.table({"title": ["a", "b" * 101, None, "c"]}), tmp_path / "in.parquet")
    rows = list(read_table(tmp_path / "in.parquet", "title").rows())
    assert [row.text for row in rows] == ["a", None, None, "c"] and all(row.cells is not None for row in rows)
    assert rows[1].fault.startswith("a text of over")


def sheet(rows: str) -> bytes:
    return f'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{rows}</sheetData></worksheet>'.encode()


def test_a_packed_workbook_is_refused(tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in ("title", "Alder", "Oak"):
        book.active.append([row])
    book.save(tmp_path / "fine.xlsx")
    assert [row.text for row in read_table(tmp_path / "fine.xlsx", "title").rows()] == ["Alder", "Oak"]
    monkeypatch.setattr(excel_file, "PART_BYTES", 3 * MIB)
    monkeypatch.setattr(excel_file, "ROW_BYTES", MIB)
    monkeypatch.setattr(excel_file, "MOST_ROWS", 60_000)
    cell = '<c t="inlineStr"><is><t>title</t></is></c>'
    for name, content, message in (
        ("xl/worksheets/sheet1.xml", sheet(f"<row>{cell}</row><row>{cell * 60_000}</row>"), "a row of xl/worksheets"),
        ("xl/worksheets/sheet1.xml", sheet(f"<row>{cell.replace('title', 'a' * 2 * MIB)}</row>"), "a row of xl/work"),
        (
            "xl/worksheets/sheet1.xml",
            sheet(f"<row>{cell}</row>" + f'<row r="9999999">{cell}</row>'),
            "a row 60,001, where Excel has 60,000",
        ),
        ("xl/worksheets/sheet1.xml", sheet(f"<row>{cell}</row>" * 50_000), None),
        (
            "xl/sharedStrings.xml",
            b"<sst>" + b"<si><t>a</t></si>" * 200_000 + b"</sst>",
            "xl/sharedStrings.xml has over",
        ),
    ):
        with zipfile.ZipFile(tmp_path / "fine.xlsx") as fine, zipfile.ZipFile(tmp_path / "in.xlsx", "w", 8) as made:
            for part in fine.namelist():
                if part != name:
                    made.writestr(part, fine.read(part))
            made.writestr(name, content)
        assert (tmp_path / "in.xlsx").stat().st_size < MIB
        if message is None:
            assert len(list(read_table(tmp_path / "in.xlsx", "title").rows())) == 49_999
            continue
        with pytest.raises(UserError, match=message):
            list(read_table(tmp_path / "in.xlsx", "title").rows())


def test_a_line_of_a_stream_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(stream, "LINE_CHARACTERS", 100)
    for content, expected in (
        (b"a\n" + b"b" * 500 + b"\nc\n" + b"d" * 100 + b"\n" + b"e" * 101, ["a", None, "c", "d" * 100, None]),
        ("é".encode() * 60 + b"\n\n" + b"f" * 30, ["é" * 60, "", "f" * 30]),
        (b"g" * 200, [None]),
        (b"", []),
    ):
        for size in (7, 64):
            pipe = io.BytesIO(content[size:])
            monkeypatch.setattr(stream.os, "read", lambda _, most, pipe=pipe, size=size: pipe.read(size))
            decoder = codecs.getincrementaldecoder("utf-8")()
            lines = [line for lines in stream._arriving(decoder, content[:size]) for line in lines]
            assert lines == expected, (content[:9], size)


def test_nested_columns_of_parquet_come_out_as_they_went_in(tmp_path):
    rows = range(3000)
    columns = {
        "title": [f"Alder {row}" for row in rows],
        "struct": [{"a.b": f"x{row % 7}", "n": row, "bytes": b"1"} if row % 4 else None for row in rows],
        "list": [[f"y{row % 5}", None] if row % 3 else None for row in rows],
        "of structs": [[{"a": f"z{row % 5}"}] * (row % 3) for row in rows],
        "map": pa.array([[("k", f"v{row % 4}")] * (row % 2) for row in rows], pa.map_(pa.string(), pa.string())),
        "pairs": pa.array([["a", f"{row}"] for row in rows], pa.list_(pa.large_string(), 2)),
        "view": pa.array([f"{row}" for row in rows], pa.string_view()),
        "of views": pa.array([[f"{row}"] for row in rows], pa.list_(pa.string_view())),
        "category": pa.array([f"{row % 3}" for row in rows]).dictionary_encode(),
        "of categories": pa.array([["a"]] * 3000, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "fixed": pa.array([b"abc"] * 3000, pa.binary(3)),
        "number": pa.array([row / 4 for row in rows]).cast(pa.decimal128(9, 2)),
    }
    before = pa.table(columns)
    pq.write_table(before, tmp_path / "in.parquet", row_group_size=1100)
    table = read_table(tmp_path / "in.parquet", "title")
    table.add_columns(["label", "abstained", "truncated", "rejected"])
    added = {"label": "Up", "abstained": False, "truncated": False, "rejected": None}
    parts = []
    for number, part in enumerate(slices(table.rows(), 700, 10**9)):
        parts.append(tmp_path / f"{number}.rows")
        table.write(parts[-1], part, [added] * len(part))
    assert table.join(parts, tmp_path / "out.parquet") == 3000
    after = pq.read_table(tmp_path / "out.parquet")
    assert after.select(before.column_names).equals(pq.read_table(tmp_path / "in.parquet"))
    assert sum(row.size for row in table.rows()) > 3000 * 64
