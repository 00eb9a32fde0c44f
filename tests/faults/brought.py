"""Files as people bring them: 200 combinations of encoding, delimiter, format, compression, line end and ending."""

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq

from faults.labelling import linear_run
from faults.shared import Fault
from fintune.data import prepare
from fintune.data.tables import check_column, read_table
from fintune.deploy.classifier import Classifier
from fintune.deploy.label_file import label_file
from fintune.errors import UserError

WESTERN = [
    "Crédit Agricole relève ses prévisions",
    "Börsen föll – 5 %",
    "“Très bien”, dit le PDG",
    "El año cerró en más",
]
CENTRAL = ["Spółka ogłosiła wyższy zysk", "Żabka rośnie w Łodzi", "Akcje spadły o pięć procent", "Český trh posílil"]
RUSSIAN = ["Прибыль Сбербанка выросла на треть", "Акции Газпрома упали", "Совет директоров рекомендовал дивиденды"]
JAPANESE = [
    "トヨタ自動車は配当を引き上げた",
    "日経平均株価は続落",
    "ソニーの営業利益は三割増",
    "円安で輸出株が上昇した",
]
CHINESE = ["贵州茅台上调分红", "比亚迪利润增长三成", "上证指数收盘下跌", "央行宣布下调存款准备金率"]
TAIWANESE = ["台積電調升股利", "鴻海營收創新高", "台股收盤下跌百點", "央行宣布升息半碼"]
KOREAN = ["삼성전자 배당 확대", "현대차 이익 증가", "코스피 하락 마감", "한국은행 기준금리 동결"]
GREEK = ["Η Εθνική Τράπεζα αύξησε τα κέρδη", "Πτώση στο χρηματιστήριο της Αθήνας", "Νέο μέρισμα για τους μετόχους"]
ENCODINGS = {  # by Python's names; those of `MARKS` are written with their byte order mark
    "utf-8": WESTERN + CHINESE,
    "utf-8-sig": WESTERN + RUSSIAN,
    "utf-16": CHINESE + WESTERN,
    "utf-16-be-marked": JAPANESE + WESTERN,
    "utf-16-le": WESTERN,
    "utf-16-be": CHINESE,
    "utf-32": KOREAN,
    "cp1252": WESTERN,
    "latin-1": [
        text for text in WESTERN if text.isascii() or text.encode("cp1252") == text.encode("latin-1", "replace")
    ],
    "cp1250": CENTRAL,
    "cp1251": RUSSIAN,
    "koi8_r": RUSSIAN,
    "cp1253": GREEK,
    "mac_roman": WESTERN,
    "shift_jis": JAPANESE,
    "euc_jp": JAPANESE,
    "iso2022_jp": JAPANESE,
    "gb18030": CHINESE,
    "big5": TAIWANESE,
    "euc_kr": KOREAN,
}
LABELS = ["up", "down", "flat"]
ROWS = 42


@dataclass
class Brought:
    """A file, and the rows that were written into it.

    Attributes:
        encoding: to be stated where the file is refused without; None where there is nothing to state.
    """

    name: str
    content: bytes
    encoding: str | None
    rows: list[tuple[str, str]]


def brought() -> Iterator[Brought]:
    """200 files: cells in 20 encodings x 4 delimiters x 2, JSON lines in 12 encodings, Parquet and Excel."""
    ends = cycle(["\n", "\r\n", "\r\n", "\r", "\n"])
    names = cycle(["in.csv", "in.CSV", "in.csv.gz", "in.Csv.Zst", "in.tsv", "in.TSV.GZ", "in.csv"])
    for encoding, texts in ENCODINGS.items():
        for number, delimiter in enumerate([",", ";", "\t", "|"] * 2):
            end, rows = next(ends), written_rows(texts, delimiter if number % 2 else "", number)
            cells = io.StringIO()
            # Python's writer takes a line feed for an ordinary character where lines end otherwise
            quoting = csv.QUOTE_NONNUMERIC if number > 3 or end == "\r" else csv.QUOTE_MINIMAL
            writer = csv.writer(cells, delimiter=delimiter, lineterminator=end, quoting=quoting)
            writer.writerows([("id", "text", "label"), *((i, *row) for i, row in enumerate(rows))])
            yield packed(next(names), cells.getvalue(), encoding, rows)
    names = cycle(["in.jsonl", "in.JSONL", "in.jsonl.gz", "in.jsonl.ZST"])
    for number, (encoding, texts) in enumerate(list(ENCODINGS.items())[:4] + list(ENCODINGS.items())[7:19]):
        rows, end = written_rows(texts, "", number), ["\n", "\r\n"][number % 2]
        lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows)
        yield packed(next(names), "".join(line + end for line in lines), encoding, rows)
    texts = WESTERN + JAPANESE + RUSSIAN
    for number, kind in enumerate(
        [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
    ):
        for compression in ("snappy", "zstd", "gzip"):
            rows, target = written_rows(texts, "", number), io.BytesIO()
            columns = [pa.array(column, pa.string()).cast(kind) for column in zip(*rows, strict=True)]
            pq.write_table(
                pa.table(dict(zip(["text", "label"], columns, strict=True))), target, compression=compression
            )
            yield Brought("in.PARQUET" if number % 2 else "in.parquet", target.getvalue(), None, rows)
    for number in range(12):
        rows, target = written_rows(texts, "", number), io.BytesIO()
        book = openpyxl.Workbook(write_only=True)
        for name in ["Notes", "News", "More"][number % 3 :]:
            sheet = book.create_sheet(name)
            for row in [("text", "label"), *rows] if name != "Notes" else []:
                sheet.append(row)
        book.save(target)
        yield Brought("in.XLSX" if number % 2 else "in.xlsx", target.getvalue(), None, rows)


def written_rows(texts: list[str], inside: str, number: int) -> list[tuple[str, str]]:
    """Rows whose texts have quotes, line breaks and, where one is given, the delimiter inside."""
    forms = ["{}", '{} "sic" {}', "{}\n{}", "{}" + inside + " {}", "{}, {}"]
    return [
        (forms[(i + number) % 5].format(texts[i % len(texts)], texts[i * 3 % len(texts)]) + f" {i}", LABELS[i % 3])
        for i in range(ROWS)
    ]


def packed(name: str, text: str, encoding: str, rows: list[tuple[str, str]]) -> Brought:
    marked = encoding == "utf-16-be-marked"
    content = ("\ufeff" + text).encode("utf-16-be") if marked else text.encode(encoding)
    if name.lower().endswith(".gz"):
        content = gzip.compress(content)
    elif name.lower().endswith(".zst"):
        content = pa.compress(content, "zstd", asbytes=True)
    known = marked or encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32")
    return Brought(name, content, None if known else encoding, rows)


def fault_of_file(file: Brought, place: Path) -> tuple[str, str | None]:
    """(what is wrong with how a file is read to train and to label, the encoding that a refusal names).

    The former is empty where every row is read, or the file is refused with a remedy and read right once its encoding
    is stated; the latter is None where it is read without, "" where a refusal names none.
    """
    place.write_bytes(file.content)
    named = None
    for read in (read_to_train, read_to_label):
        try:
            found = read(place, None)
        except UserError as error:
            said = re.search(r"encoding,? ([\w-]+)", str(error))
            if said is None or file.encoding is None:
                return f"{read.__name__}: {error}", None
            named = said[1].replace("NAME", "")
            try:
                found = read(place, file.encoding)
            except UserError as refused:
                return f"{read.__name__}, {file.encoding}: {refused}", named
        if found != file.rows:
            wrong = next((pair for pair in zip(found, file.rows, strict=False) if pair[0] != pair[1]), len(found))
            return f"{read.__name__}: {wrong}", named
    return "", named


def read_to_train(path: Path, encoding: str | None) -> list[tuple[str, str]]:
    with redirect_stdout(io.StringIO()):
        rows, left_out, _ = prepare.read(path, "text", "label", {}, encoding=encoding)
    return [*rows, *left_out.items()]


def read_to_label(path: Path, encoding: str | None) -> list[tuple[str, str]]:
    table = read_table(path, "text", encoding=encoding)
    check_column(table, path, "text", "--text-column {}")
    return [(row.fault or row.text, row.cells and table.value(row, "label")) for row in table.rows()]


def files_people_bring(fault: Fault) -> None:
    """Each read to train and to label, without and with its encoding stated, then labelled."""
    classifier = Classifier.from_pretrained(linear_run())
    folder, refused, right = Path("brought"), 0, 0
    folder.mkdir()
    for number, file in enumerate(brought()):
        place, target = folder / f"{number}-{file.name}", folder / f"{number}-out{file.name[2:]}"
        what, named = fault_of_file(file, place)
        target = target.with_suffix(".csv") if target.suffix.lower() == ".xlsx" else target
        if not what:
            counts = label_file(classifier, linear_run(), place, target, "text", 0.0, "new_", encoding=file.encoding)
            if counts != (ROWS, 0) or read_to_label(target, file.encoding) != file.rows:
                what = f"labelled: {counts}, {target}"
        refused += named is not None
        right += bool(named) and file.rows == read_to_train(place, named)
        fault.record(True, not what, f"{file.name} in {file.encoding}: {what[:300]}")
    fault.measured = f"{refused} refused as long as their encoding was not stated; it was named right to {right}"
