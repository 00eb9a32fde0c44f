"""Files as people bring them are read right, or refused with what to state; also by `make faults`, with a model."""

import pytest
from faults.brought import brought, fault_of_file

from fintune.data.tables import read_table
from fintune.errors import UserError


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
