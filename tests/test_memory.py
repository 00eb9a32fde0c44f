"""What is small on the disk and large in memory is read in parts of bounded size, or refused by name."""

import gzip
import io
import os
import subprocess
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fintune.data import csv_file, excel_file, jsonl_file, text_file
from fintune.data.rows import Row, slices
from fintune.data.tables import read_table
from fintune.deploy import label_file, stream
from fintune.errors import UserError

MIB = 2**20
READ = """
import resource, sys
from pathlib import Path
from fintune.data.rows import slices
from fintune.data.tables import check_column, read_table
from fintune.deploy.label_file import SHARD, SHARD_SIZE
from fintune.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
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
print(good, bad, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def read(path, *options) -> tuple[int, int, int, str]:
    """(rows that can be labelled, others, MiB more than before, message) of the first ten shards of a file."""
    done = subprocess.run([sys.executable, "-c", READ, str(path), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return *map(int, done.stdout.split()), done.stderr


def csv_of(line: bytes, times: int):
    return lambda path: path.write_bytes(gzip.compress(b"title\n" + line * times, 9))


TEXT_BOMBS = {  # name -> (suffix, writer, rows that can be labelled, others)
    "long rows": (".csv.gz", csv_of(b"a" * 200_000 + b"\n", 2000), (840, 0)),
    "one line": (".csv.gz", csv_of(b"a" * MIB, 400), (0, 1)),
    "a quote that never ends": (".csv.gz", csv_of(b'"' + b"a" * MIB + b"\n", 100), None),
    "many cells": (".csv.gz", csv_of(b"ab," * 2 * MIB + b"\n", 30), (0, 30)),
    "objects": (".jsonl.gz", lambda path: path.write_bytes(gzip.compress(b'{"title": "%s"}\n' % (b"a" * MIB) * 300)), None),
    "objects in one line": (".jsonl.gz", lambda path: path.write_bytes(gzip.compress(b'{"title": ""},' * 30 * MIB)), None),
}


@pytest.mark.parametrize("name", TEXT_BOMBS)
def test_packed_text_is_read_in_parts(tmp_path, name):
    suffix, write, expected = TEXT_BOMBS[name]
    path = tmp_path / f"in{suffix}"
    write(path)
    assert path.stat().st_size < 2 * MIB
    good, bad, more, said = read(path)
    assert more < 700, said
    assert expected in (None, (good, bad)) and good + bad > 0 or "line 1 is a line of over 16 million" in said
