"""Parquet files: read, and written with columns added."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fintune.data.rows import Row
from fintune.errors import UserError


class Parquet:
    """A Parquet file; its columns keep their types."""

    about = ""

    def __init__(self, path: Path, text_column: str, content: bytes | None = None):
        self.path, self.text_column, self._read = path, text_column, 0
        try:
            self._file = pq.ParquetFile(path if content is None else pa.BufferReader(content))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        except pa.ArrowException as error:
            raise UserError(f"{path}: not a complete Parquet file ({error}); fetch it again") from error
        self.columns = self._file.schema_arrow.names
        if self.columns.count(text_column) == 1:
            kind = self._file.schema_arrow.field(text_column).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise UserError(f"{path}: column {text_column!r} holds {kind}, not text; name another column")

    def rows(self) -> Iterator[Row]:
        try:
            for batch in self._file.iter_batches(batch_size=1024):
                texts = batch.column(self.text_column)
                for at in range(len(batch)):
                    self._read += 1
                    row = Row(self._read, batch.slice(at, 1))
                    try:
                        row.text = texts[at].as_py()
                    except UnicodeDecodeError:
                        row.fault = "not UTF-8"
                    yield row
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: damaged after row {self._read} ({error}); fetch it again") from error

    def value(self, row: Row, column: str) -> object:
        return row.cells.column(column)[0].as_py()

    def done(self) -> float:
        """Share of the file's rows that were read."""
        return self._read / max(1, self._file.metadata.num_rows)

    def write(self, path: Path, rows: list[Row], added: list[dict], spreadsheet_safe: bool) -> None:
        table = pa.Table.from_batches([row.cells for row in rows], self._file.schema_arrow)
        for name, kind in self._added.items():
            table = table.append_column(name, pa.array([more[name] for more in added], kind))
        pq.write_table(table.combine_chunks(), path)

    def add_columns(self, names: list[str]) -> None:
        """Label, confidence, probabilities, abstained, rejected.

        Raises:
            UserError: two columns of the file share a name, with which it cannot be written again.
        """
        if repeated := [name for name in self.columns if self.columns.count(name) > 1]:
            raise UserError(f"{self.path}: has {len(repeated)} columns {repeated[0]!r}; rename all but one of them")
        kinds = [pa.string(), *[pa.float64()] * (len(names) - 3), pa.bool_(), pa.string()]
        self._added = dict(zip(names, kinds, strict=True))

    def join(self, parts: list[Path], target: Path) -> None:
        schema = self._file.schema_arrow
        for name, kind in self._added.items():
            schema = schema.append(pa.field(name, kind))
        with pq.ParquetWriter(target, schema) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part, schema=schema))
