"""Parquet files: read, and written with columns added."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fintune.data.rows import CELL, Row
from fintune.data.text_file import LINE_CHARACTERS
from fintune.errors import UserError

BATCH_ROWS = 1024  # decoded at once, or fewer where by their mean they have over BATCH_BYTES
BATCH_BYTES = 2**24
UNPACKED = (2**28, 100)  # bytes of a column in a row group, and how many to one packed: beyond both it is refused
TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


class Parquet:
    """A Parquet file; its columns keep their types.

    Texts are read as dictionaries, so that one which stands in a million rows is held once, as in the file.
    """

    about = ""

    def __init__(self, path: Path, text_column: str, content: bytes | None = None):
        self.path, self.text_column, self._read = path, text_column, 0
        source = path if content is None else pa.BufferReader(content)
        try:
            with pq.ParquetFile(source) as plain:
                self._schema, metadata, texts = plain.schema_arrow, plain.metadata, texts_of(plain)
            self._file = pq.ParquetFile(source, metadata=metadata, read_dictionary=texts, buffer_size=2**20)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        except pa.ArrowException as error:
            raise UserError(f"{path}: not a complete Parquet file ({error}); fetch it again") from error
        self.columns = self._schema.names
        if self.columns.count(text_column) == 1:
            kind = self._schema.field(text_column).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise UserError(f"{path}: column {text_column!r} holds {kind}, not text; name another column")
        self._batches = [self._batch_rows(group) for group in range(self._file.num_row_groups)]

    def _batch_rows(self, group: int) -> int:
        """How many rows of a row group are decoded at once.

        Raises:
            UserError: a column is made to fill the memory.
        """
        metadata = self._file.metadata.row_group(group)
        total = 0
        for number in range(metadata.num_columns):
            column = metadata.column(number)
            unpacked, values = column.total_uncompressed_size, column.num_values
            width = max(8, self._file.schema.column(number).length)  # of a value of fixed length
            most, ratio = UNPACKED
            if max(unpacked, width * values / max(1, metadata.num_rows)) > most and (
                max(unpacked, values) > ratio * column.total_compressed_size
            ):
                raise UserError(
                    f"{self.path}: column {column.path_in_schema!r} takes over {most >> 20} MiB at once when row "
                    f"group {group} is unpacked; write it again with smaller row groups"
                )
            total += max(unpacked, width * values)
        return max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // max(1, total)))

    def rows(self) -> Iterator[Row]:
        try:
            for group, size in enumerate(self._batches):
                # threads would save no time, and now and then hold a batch more
                for batch in self._file.iter_batches(batch_size=size, row_groups=[group], use_threads=False):
                    yield from self._rows_of(batch)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: damaged after row {self._read} ({error}); fetch it again") from error

    def _rows_of(self, batch: pa.RecordBatch) -> Iterator[Row]:
        texts = batch.column(self.text_column)
        lengths, sizes = bytes_of(texts), sum(map(bytes_of, batch.columns))
        for at in range(len(batch)):
            self._read += 1
            row = Row(self._read, batch.slice(at, 1), size=int(sizes[at] + lengths[at]) + CELL * len(self.columns))
            try:
                if lengths[at] > LINE_CHARACTERS:
                    row.fault = f"a text of over {LINE_CHARACTERS >> 20} MiB"
                else:
                    row.text = texts[at].as_py()
            except UnicodeDecodeError:
                row.fault = "not UTF-8"
            yield row

    def value(self, row: Row, column: str) -> object:
        """Raises UnicodeDecodeError for what is no UTF-8, in a column of bytes too."""
        value = row.cells.column(column)[0].as_py()
        return value.decode() if isinstance(value, bytes) else value

    def done(self) -> float:
        """Share of the file's rows that were read."""
        return self._read / max(1, self._file.metadata.num_rows)

    def write(self, path: Path, rows: list[Row], added: list[dict]) -> None:
        table = pa.Table.from_batches([row.cells for row in rows], self._file.schema_arrow).cast(self._schema)
        for name, kind in self._added.items():
            table = table.append_column(name, pa.array([more[name] for more in added], kind))
        pq.write_table(table.combine_chunks(), path)

    def add_columns(self, names: list[str]) -> None:
        """Label, confidence, probabilities, abstained, of a cascade the stage, truncated, rejected.

        Raises:
            UserError: two columns of the file share a name, with which it cannot be written again.
        """
        if repeated := [name for name in self.columns if self.columns.count(name) > 1]:
            raise UserError(f"{self.path}: has {len(repeated)} columns {repeated[0]!r}; rename all but one of them")
        stage = [] if names[-3].endswith("abstained") else [pa.string()]
        last = [pa.bool_(), *stage, pa.bool_(), pa.string()]
        kinds = [pa.string(), *[pa.float64()] * (len(names) - 1 - len(last)), *last]
        self._added = dict(zip(names, kinds, strict=True))

    def join(self, parts: list[Path], target: Path) -> int:
        """Returns how many rows the parts hold."""
        schema = self._schema
        for name, kind in self._added.items():
            schema = schema.append(pa.field(name, kind))
        with pq.ParquetWriter(target, schema) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part, schema=schema))
        return pq.read_metadata(target).num_rows


def texts_of(file: pq.ParquetFile) -> list[str]:
    """Paths of what holds texts or bytes, in lists and structs too, without what pyarrow makes no views of."""
    views = tuple(f"{field.name}." for field in file.schema_arrow if "_view" in str(field.type))
    leaves = [file.schema.column(number) for number in range(len(file.schema.names))]
    return [
        leaf.path
        for leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY"
        and leaf.logical_type.type != "DECIMAL"
        and not f"{leaf.path}.".startswith(views)
    ]


def bytes_of(array: pa.Array) -> np.ndarray:
    """(rows,) bytes of each value, those of a dictionary's as if each were stored in its place."""
    if pa.types.is_dictionary(array.type):
        used, places = np.unique(array.indices.fill_null(-1), return_inverse=True)
        return bytes_of(array.dictionary.take(pa.array(used, mask=used < 0)))[places]
    if any(is_kind(array.type) for is_kind in TEXT):
        return pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_struct(array.type):
        return sum(map(bytes_of, array.flatten()), np.zeros(len(array), int))
    if isinstance(array, pa.ListArray | pa.LargeListArray):  # a map too
        parts = [array.keys, array.items] if isinstance(array, pa.MapArray) else [array.values]
        before, ends = np.cumsum([0, *sum(map(bytes_of, parts))]), array.offsets.to_numpy()
        return before[ends[1:]] - before[ends[:-1]]
    if pa.types.is_nested(array.type):
        return np.array([array.slice(at, 1).nbytes for at in range(len(array))])
    return np.full(len(array), array.type.byte_width if pa.types.is_fixed_size_binary(array.type) else 8)
