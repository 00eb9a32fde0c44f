"""Files as people bring them are read right, or refused with what to state; also by `make faults`, with a model."""

import csv
import io
import json

import openpyxl
import pytest
from faults.brought import brought, fault_of_file

from fintune.data.tables import check_column, read_table
from fintune.errors import UserError

ROWS = [("Alder rises, 5 %", "up"), ('Oak "falls"', "down"), ("Elm\nstays", "flat")] * 3


def found(path, **stated) -> list[tuple]:
    """(text or fault, label) of each row."""
    table = read_table(path, "text", **stated)
    check_column(table, path, "text", "--text {}")
    check_column(table, path, "label", "--label {}", texts=False)
    return [(row.fault or row.text, row.cells and table.value(row, "label")) for row in table.rows()]


def cells(delimiter=",", end="\n", after="") -> str:
    made = io.StringIO()
    csv.writer(made, delimiter=delimiter, lineterminator=after + end).writerows([("text", "label"), *ROWS])
    return made.getvalue()


SHAPES = {
    "empty cells at the end of rows alone": cells(after=",,,").replace("text,label,,,", "text,label", 1),
    "a delimiter at the end of the header alone": cells().replace("text,label", "text,label,,", 1),
    "3,000 delimiters at each end": cells(after="," * 3000),
    "empty lines above the header": "\n\n" + cells(),
    "a quoted hint": '"sep=;"\n' + cells(";"),
    "a hint in capitals": "SEP=|\r\n" + cells("|", "\r\n"),
    "a hint that was saved with the rows": "sep=;;;\n" + cells(";", after=";;"),
    "a space after each delimiter": '"text", "label"\n'
    + "".join('"{}", "{}"\n'.format(text.replace('"', '""'), label) for text, label in ROWS),
    "marked twice": "\ufeff\ufeff" + cells(),
}


@pytest.mark.parametrize("content", SHAPES.values(), ids=SHAPES)
def test_what_is_no_row_and_no_cell_costs_none(content, tmp_path):
    (tmp_path / "in.csv").write_bytes(content.encode())
    assert found(tmp_path / "in.csv") == ROWS


def test_cells_that_are_missing_or_too_many_cost_their_row(tmp_path):
    rows = ["text,note,label", "Alder,x,up", "Oak,down", "Elm,x,up,y", "Fir,x,up,,", ",,", "Ash"]
    (tmp_path / "in.csv").write_text("\n".join(rows))
    said = ["Alder", "2 cells where the header has 3", "4 cells where the header has 3", "Fir", ""]
    assert [text for text, _ in found(tmp_path / "in.csv")] == [*said, "1 cells where the header has 3"]


IN_DISGUISE = {
    "utf-32-le": "貴州茅台 🚀",
    "utf-32-be": "plain",
    "utf-7": "Crédit – 5 €",
    "hz": "贵州茅台上调分红",
    "iso2022_kr": "삼성전자 배당 확대",
    "cp874": "ตลาดหุ้นปรับขึ้น",
    "koi8_u": "Акції Газпрому впали а прибуток зріс на п'ять відсотків",
}


@pytest.mark.parametrize("encoding,text", IN_DISGUISE.items())
def test_what_looks_like_another_encoding_is_named(encoding, text, tmp_path):
    place = tmp_path / "in.csv"
    place.write_bytes("".join(["text,label\n", *(f"{text} {i},up\n" for i in range(30))]).encode(encoding))
    with pytest.raises(UserError, match=rf"encoding,? {encoding}"):
        found(place)
    assert found(place, encoding=encoding) == [(f"{text} {i}", "up") for i in range(30)]


def test_plain_text_is_taken_for_no_encoding_in_ascii(tmp_path):
    text = "+AAPL- +TSLA- ~{x} ~5% \x1b[31m +5%"
    (tmp_path / "in.csv").write_text("text,label\n" + f"{text},up\n" * 9 + "\0" * 500)  # ends in what a crash leaves
    assert found(tmp_path / "in.csv")[:-1] == [(text, "up")] * 9


LINES = [json.dumps({"text": f"Alder {i}", "label": "up"}) for i in range(20)]


def test_a_column_that_begins_late_is_found(tmp_path):
    early = [json.dumps({"text": f"Oak {i}"}) for i in range(1100)]
    (tmp_path / "in.jsonl").write_text("\n".join(early + LINES))
    assert [label for _, label in found(tmp_path / "in.jsonl")] == [None] * 1100 + ["up"] * 20
    with pytest.raises(UserError, match="column 'mood' is missing"):
        check_column(read_table(tmp_path / "in.jsonl", "text"), tmp_path, "mood", "--label {}", texts=False)


def test_two_files_in_one_are_read_as_both(tmp_path):
    (tmp_path / "in.csv").write_text(cells() + "\ufeff" + cells())
    said = ("the header again, as of two files in one", None)
    assert found(tmp_path / "in.csv") == [*ROWS, said, *ROWS]
    (tmp_path / "in.jsonl").write_text("\n".join([*LINES, "\ufeff" + LINES[0], *LINES[1:]]))
    assert found(tmp_path / "in.jsonl") == [(f"Alder {i}", "up") for i in range(20)] * 2


def test_an_object_with_two_values_of_one_name_costs_itself(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n".join(['{"text": "Oak", "label": "up", "label": "down"}', *LINES]))
    assert found(tmp_path / "in.jsonl")[0] == ("has 'label' twice", None)


@pytest.mark.parametrize("delimiter", [":", "^", "\x1f"])
def test_a_delimiter_that_is_not_looked_for_is_asked_for(delimiter, tmp_path):
    (tmp_path / "in.csv").write_bytes(cells(delimiter).encode())
    with pytest.raises(UserError, match="state what separates its cells: --delimiter"):
        found(tmp_path / "in.csv")
    assert found(tmp_path / "in.csv", delimiter=delimiter) == ROWS


def test_the_sheet_that_has_the_column_is_read_and_a_hidden_one_last(tmp_path):
    book = openpyxl.Workbook()
    book.active.append(["About this workbook"])
    for name in ("old", "news"):
        sheet = book.create_sheet(name)
        for row in [("text", "label"), *((f"{name} {text}", label) for text, label in ROWS)]:
            sheet.append(row)
    book["old"].sheet_state = "hidden"
    book.save(tmp_path / "in.xlsx")
    assert found(tmp_path / "in.xlsx") == [(f"news {text}", label) for text, label in ROWS]
    assert read_table(tmp_path / "in.xlsx", "text").about == "sheet 'news', the first of 3 with column 'text'"
    book["news"].sheet_state = "veryHidden"
    book.save(tmp_path / "in.xlsx")
    assert found(tmp_path / "in.xlsx")[0][0] == "old Alder rises, 5 %"


def test_cells_of_a_workbook_are_what_excel_shows(tmp_path):
    book = openpyxl.Workbook()
    for row in [("text", "label", ""), ("a_x000D_\nb_x005F_c", "up_x0041_", ""), ("#NAME?", "up"), ("_xD83D_", "up")]:
        book.active.append(row)
    book.save(tmp_path / "in.xlsx")
    said = [("a\r\nb_c", "upA"), ("#NAME?, an error of a formula", "up"), ("_xD83D_", "up")]
    assert found(tmp_path / "in.xlsx") == said
    book.create_chartsheet("empty", 0)  # which openpyxl itself cannot read
    book.save(tmp_path / "in.xlsx")
    with pytest.raises(UserError, match="not a complete"):
        found(tmp_path / "in.xlsx")


def test_two_hundred_files_are_read_right_or_refused_with_their_encoding(tmp_path):
    files = list(brought())
    found = [(file.name, file.encoding, *fault_of_file(file, tmp_path / file.name)) for file in files]
    assert len(found) == 200
    assert [each for each in found if each[2]] == []
    refused = {encoding for _, encoding, _, named in found if named is not None}
    assert refused == {file.encoding for file in files} - {None}
    for encoding, named in (("gb18030", "gb18030"), ("shift_jis", "cp932"), ("iso2022_jp", "iso2022_jp")):
        assert {each[3] for each in found if each[1] == encoding} == {named}


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_a_stray_line_end_hides_no_delimiter(delimiter, tmp_path):
    rows = ["id,text,label", "1,Alder rose,up", "2,Oak\rfell,down", *(f"{i},Elm {i},up" for i in range(3, 60))]
    (tmp_path / "in.csv").write_bytes("\n".join(rows).replace(",", delimiter).encode())
    table = read_table(tmp_path / "in.csv", "text")
    assert table.columns == ["id", "text", "label"]
    assert [row.line for row in table.rows() if row.fault] == [3]


def test_japanese_mail_is_no_ascii(tmp_path):
    (tmp_path / "in.csv").write_bytes("text,label\nトヨタは配当を引き上げた,up\n".encode("iso2022_jp"))
    with pytest.raises(UserError, match="looks like ISO-2022-JP; state its encoding, iso2022_jp"):
        read_table(tmp_path / "in.csv", "text")
    [row] = read_table(tmp_path / "in.csv", "text", encoding="iso2022_jp").rows()
    assert row.text == "トヨタは配当を引き上げた"
