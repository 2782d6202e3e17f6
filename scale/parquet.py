"""Prompt files in Parquet, read batch by batch through pyarrow, which only the command asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from .formats import Entry, setting_of
from .rows import SETTINGS, BadRow, Row, rows_of

SUFFIX = ".parquet"
BATCH_ROWS = 1024


def read_parquet(path: str | Path, nvlabs_tags: bool = False) -> Iterator[Row | BadRow]:
    """Rows of a Parquet file as `read_rows` gives those of others: a column for each setting, the rest unread.

    Raises ValueError without pyarrow, for a file that is no Parquet, or one without a prompt column.
    """
    return rows_of(_entries(Path(path)), nvlabs_tags)


def _entries(path: Path) -> Iterator[Entry]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(
            f"{path.name} needs pyarrow: pip install pyarrow into this environment, or run the command by "
            "python -m tools.scale_environment."
        ) from None
    number = 0
    with open(path, "rb") as source:
        try:
            # Not prefetched, and buffered: else a whole row group of compressed columns is held at once.
            file = parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
        except (ArrowException, OSError):
            raise ValueError(f"{path.name} is no Parquet file: write it again.") from None
        columns = [name for name in file.schema_arrow.names if setting_of(name) in SETTINGS]
        if "prompt" not in map(setting_of, columns):
            raise ValueError(f'{path.name} has no column "prompt": name a column so.')
        batches = file.iter_batches(BATCH_ROWS, columns=columns)
        while True:
            try:
                batch = next(batches, None)
            except (ArrowException, OSError):
                yield f"row {number + 1}", "cannot be read, nor anything after it: write the file again"
                return
            if batch is None:
                return
            for fields in _rows(batch):
                number += 1
                yield f"row {number}", fields


def _rows(batch) -> list[dict | str]:
    """Fields of the rows of a batch; the reason for one whose text is none."""
    try:
        columns = [column.to_pylist() for column in batch.columns]
        return [dict(zip(batch.schema.names, map(_plain, values))) for values in zip(*columns)]
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return ["holds bytes that are not UTF-8"]
        return [row for at in range(batch.num_rows) for row in _rows(batch.slice(at, 1))]


def _plain(value: object) -> object:
    """None for what is no number, as pandas writes it; text where a column was written as bytes."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if value.is_integer() else float(f"{value:.7g}")  # 4.3 of 32 bits is 4.300000190734863
    return value.decode() if isinstance(value, bytes) else value
