"""Parquet, read without trusting it and written as Hugging Face `datasets` reads it. pyarrow is loaded when needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..media import MAX_BYTES
from .bundle import BadData

MAX_ROWS = 20_000_000
ROWS_AT_ONCE = 256
PICTURES_AT_ONCE = 8
GROUP_BYTES = 128 * 2**20  # of pictures, before a row group is closed
COPIED_BYTES = 64 * 2**20  # of rows that are taken out of a block at once
MAX_TEXT_BYTES = 96 * 2**20  # a mask as base64 is as large as a picture


class MissingPackage(RuntimeError):
    """A package that the pack does not ask for, since only some formats need it."""


def arrow() -> tuple[Any, Any]:
    """(pyarrow, pyarrow.parquet). Raises MissingPackage, which says how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackage(
            "Parquet files need the package pyarrow. Install it into ComfyUI's Python: `python -m pip install "
            "pyarrow`, then restart ComfyUI. The formats in ZIP and JSON work without it."
        ) from error
    return pyarrow, pyarrow.parquet


class Table:
    """A Parquet file of which the types were checked; rows come in blocks, pictures when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._pa, parquet = arrow()
        try:
            self._file, self.schema = _opened(parquet, path)
        except (self._pa.ArrowException, OSError, ValueError) as error:
            raise BadData(f"The Parquet file can't be read: {str(error)[:200]}.") from error
        self.rows = self._file.metadata.num_rows
        if self.rows > MAX_ROWS:
            self.close()
            raise BadData(f"The Parquet file has {self.rows} rows; at most {MAX_ROWS} are read. Split the data set.")
        if len(set(self.schema.names)) < len(self.schema.names):
            self.close()
            raise BadData("The Parquet file has two columns of one name.")
        self._cells = _Cells(self)

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file; pictures can't be read after it."""
        self._file.close()

    def __contains__(self, column: str) -> bool:
        return column in self.schema.names

    def note(self) -> dict[str, Any]:
        """What our own export wrote beside the table, {} for a file of others."""
        try:
            found = json.loads((self.schema.metadata or {}).get(b"feedback_loop", b"{}"))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def kind(self, column: str) -> str:
        """text | number | flag | time | picture | list | other"""
        types, kind = self._pa.types, self.schema.field(column).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_string(kind) or types.is_large_string(kind):
            return "text"
        if types.is_integer(kind) or types.is_floating(kind):
            return "number"
        if types.is_boolean(kind):
            return "flag"
        if types.is_timestamp(kind):
            return "time"
        if types.is_list(kind) or types.is_large_list(kind):
            return "list"
        return "picture" if self._holds_pictures(kind) else "other"

    def _holds_pictures(self, kind: Any) -> bool:
        types = self._pa.types
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        return types.is_binary(kind) or types.is_large_binary(kind)

    def need(self, column: str, *kinds: str) -> None:
        """Raises BadData unless the column is there and of one of these kinds."""
        if column not in self:
            has = ", ".join(self.schema.names)[:300]
            raise BadData(f"The Parquet file has no column {column!r}. It has: {has}.")
        if (kind := self.kind(column)) in kinds:
            return
        if "picture" in kinds and kind == "text":
            raise BadData(
                f"The column {column!r} holds text, such as paths or URLs, where pictures are expected. Nothing is "
                "fetched from anywhere: make the file with the pictures inside (`datasets`: embed_table_storage)."
            )
        wants = " or ".join(kinds)
        raise BadData(f"The column {column!r} holds {self.schema.field(column).type}; {wants} is expected there.")

    def read(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Rows with these columns, and under "" the number of the row."""
        row = 0
        for group in range(self._file.num_row_groups):
            for batch in self.blocks(group, ROWS_AT_ONCE, columns):
                batch = self._without_nanoseconds(batch)
                longest = max((self._longest(column) for column in batch.columns), default=0)
                step = max(1, COPIED_BYTES // max(1, longest))  # from here on each row has its own copy
                for start in range(0, len(batch), step):
                    for values in batch.slice(start, step).to_pylist():
                        yield {**values, "": row}
                        row += 1

    def _without_nanoseconds(self, batch: Any) -> Any:
        """Python's times have microseconds; Arrow refuses to cut off what is finer unless it is told to."""
        for index, name in enumerate(batch.schema.names):
            kind = batch.schema.field(index).type
            if self._pa.types.is_timestamp(kind):
                cut = batch.column(index).cast(self._pa.timestamp("us", kind.tz), safe=False)
                batch = batch.set_column(index, name, cut)
        return batch

    def blocks(self, group: int, rows: int, columns: Sequence[str]) -> Iterator[Any]:
        """Record batches of a row group; a cell larger than any that is meant is refused before it is copied."""
        try:
            for batch in self._file.iter_batches(rows, [group], list(columns)):
                longest = max((self._longest(column) for column in batch.columns), default=0)
                if longest > max(MAX_BYTES, MAX_TEXT_BYTES):
                    raise BadData(f"A cell of the Parquet file has {longest} bytes; no picture or text is that large.")
                yield batch
        except (self._pa.ArrowException, OSError) as error:
            raise BadData(f"The Parquet file is damaged: {str(error)[:200]}.") from error

    def _longest(self, column: Any) -> int:
        """Bytes of the largest cell of text or of a picture, however deep it lies."""
        types, kind = self._pa.types, column.type
        if types.is_struct(kind):
            return max((self._longest(column.field(index)) for index in range(kind.num_fields)), default=0)
        if types.is_list(kind) or types.is_large_list(kind):
            return self._longest(column.flatten())
        if types.is_dictionary(kind):
            return self._longest(column.dictionary)
        if not any(
            is_kind(kind)
            for is_kind in (types.is_binary, types.is_string, types.is_large_binary, types.is_large_string)
        ):
            return 0
        from pyarrow.compute import call_function

        return call_function("max", [call_function("binary_length", [column])]).as_py() or 0

    def picture(self, row: int, column: str) -> Callable[[], bytes]:
        """Reads the picture of a row when it is called; cheap in the order of rows."""
        return lambda: self._cells.bytes_of(row, column)

    def group_of(self, row: int) -> tuple[int, int]:
        """(row group, row within it)."""
        for group in range(self._file.num_row_groups):
            if row < (count := self._file.metadata.row_group(group).num_rows):
                return group, row
            row -= count
        raise BadData("The Parquet file has fewer rows than it says.")

    def paths(self, column: str) -> list[str | None]:
        """The file names that stand beside the pictures of an Image feature, None where there are none."""
        kind = self.schema.field(column).type
        if not self._pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
            return [None] * self.rows
        cells = (
            cell
            for group in range(self._file.num_row_groups)
            for batch in self.blocks(group, ROWS_AT_ONCE, [f"{column}.path"])
            for cell in batch.column(0).to_pylist()
        )
        return [cell.get("path") if isinstance(cell, dict) else None for cell in cells]

    def picture_columns(self) -> list[str]:
        """The columns that hold pictures."""
        return [name for name in self.schema.names if self.kind(name) == "picture"]

    def lacking(self, column: str) -> set[int]:
        """The rows of which the picture is not in the file: null, or only its path is there."""
        lacks: set[int] = set()
        first = 0
        for group in range(self._file.num_row_groups):
            if self._complete(group, column):
                first += self._file.metadata.row_group(group).num_rows
                continue
            for batch in self.blocks(group, PICTURES_AT_ONCE, [column]):
                cells = batch.column(0)
                data = cells.field("bytes") if self._pa.types.is_struct(cells.type) else cells
                nulls = [a or b for a, b in zip(cells.is_null().to_pylist(), data.is_null().to_pylist(), strict=True)]
                lacks.update(first + i for i, null in enumerate(nulls) if null)
                first += len(batch)
        return lacks

    def _complete(self, group: int, column: str) -> bool:
        """Whether the file's statistics say that no picture of the row group is missing."""
        part = self._file.metadata.row_group(group)
        chunks = [part.column(index) for index in range(part.num_columns)]
        facts = [chunk.statistics for chunk in chunks if chunk.path_in_schema in (column, f"{column}.bytes")]
        return bool(facts) and all(fact is not None and fact.has_null_count and not fact.null_count for fact in facts)


class _Cells:
    """The block of rows that was read last, so that pictures asked for in order are read once."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._group, self._first, self._block = -1, 0, None
        self._coming: Iterator[Any] = iter(())

    def bytes_of(self, row: int, column: str) -> bytes:
        group, place = self._table.group_of(row)
        if group != self._group or place < self._first:
            self._coming = self._table.blocks(group, PICTURES_AT_ONCE, self._table.picture_columns())
            self._group, self._first, self._block = group, 0, next(self._coming, None)
        while self._block is not None and place >= self._first + len(self._block):
            self._first += len(self._block)
            self._block = next(self._coming, None)
        cell = None if self._block is None else self._block.column(column)[place - self._first].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise BadData(f"The picture in row {row} is not in the Parquet file.")
        return data


def _opened(parquet: Any, path: Path) -> tuple[Any, Any]:
    """The file and its schema.

    Byte columns stay dictionaries, so that a million rows that repeat one large cell take the place of one.
    """
    limits = {"thrift_string_size_limit": 64 * 2**20, "thrift_container_size_limit": 10**6}
    with parquet.ParquetFile(path, **limits) as file:
        leaves, schema = file.metadata.schema, file.schema_arrow
        columns = [leaves.column(i) for i in range(len(leaves))]
        texts = [c.path for c in columns if c.physical_type == "BYTE_ARRAY"]
    return parquet.ParquetFile(path, read_dictionary=texts, **limits), schema


def image_type() -> Any:
    """How `datasets` stores its Image feature."""
    pa, _ = arrow()
    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def image_cell(data: bytes, key: str) -> dict[str, Any]:
    """A picture for a column of `image_type`."""
    return {"bytes": data, "path": f"{key}.png"}


def write(
    path: Path,
    columns: Mapping[str, tuple[Any, dict[str, Any] | None]],
    rows: Iterator[tuple[dict[str, Any], int]],
    note: Mapping[str, Any],
) -> int:
    """Writes rows, each with the bytes it takes, and returns how many.

    columns: name -> (Arrow type, feature of `datasets`, None for what it finds out itself). note: what `Table.note`
    gives back.
    """
    pa, parquet = arrow()
    features = {name: feature for name, (_, feature) in columns.items()}
    metadata = {"feedback_loop": json.dumps(note)}
    if all(feature is not None for feature in features.values()):
        metadata["huggingface"] = json.dumps({"info": {"features": features}})
    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()], metadata=metadata)
    count = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as file:
        for block in _grouped(rows):
            file.write_table(pa.Table.from_pylist(block, schema=schema))
            count += len(block)
    return count


def _grouped(rows: Iterator[tuple[dict[str, Any], int]]) -> Iterator[list[dict[str, Any]]]:
    block: list[dict[str, Any]] = []
    size = 0
    for row, bytes_ in rows:
        block.append(row)
        size += bytes_
        if size >= GROUP_BYTES or len(block) >= 1000:
            yield block
            block, size = [], 0
    if block:
        yield block


def value(dtype: str) -> dict[str, Any]:
    """A feature of `datasets`: a value of that type."""
    return {"dtype": dtype, "_type": "Value"}


IMAGE = {"_type": "Image"}
