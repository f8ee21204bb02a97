"""What is known of items, in a table beside the events: .parquet, .jsonl, .csv or .tsv (`longwave-train prepare --items FILE`).

One row per item: `item_id`, and any of `title`, `categories` (a list; in text "a|b"), numbers in columns `feature_*`, and vectors
(of an image, a sound) in columns `vector_*`: lists of numbers, as many for every item ("[0.1, 0.2]" or "0.1 0.2" in text); empty
where an item has none. Other columns are left out.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from model.data.build import Dataset, with_events
from model.data.dense import with_vectors
from model.data.errors import UNREADABLE, DataError, first_line
from model.data.schema import FEATURE_PREFIX, ITEM_COLUMNS, VECTOR_PREFIX

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")


def read_items(path: Path) -> pl.DataFrame:
    """The table, its columns as the canonical data set has them.

    Raises:
        DataError: no such file, of another kind or damaged, no column item_id or none beside it, an item that is missing or there
            twice, or a cell that is not what its column holds; names file, column and row.
    """
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise DataError(f"{path}: expected a file of items, {', '.join(SUFFIXES)}")
    try:
        rows = _read(path)
    except UNREADABLE as error:
        raise DataError(f"{path}: damaged, not {path.suffix[1:]}: {first_line(error)}") from error
    taken = [name for name in rows.columns if name in ITEM_COLUMNS or name.startswith((FEATURE_PREFIX, VECTOR_PREFIX))]
    if "item_id" not in taken or len(taken) < 2:
        raise DataError(
            f"{path}: needs the column item_id and one of title, categories, {FEATURE_PREFIX}*, {VECTOR_PREFIX}*; "
            f"it has {', '.join(rows.columns)}"
        )
    rows = rows.select(taken)
    rows = rows.with_columns(_as(rows, name, path) for name in taken)
    for bad, what in ((rows["item_id"].is_null(), "is empty"), (~rows["item_id"].is_first_distinct(), "is there a second time")):
        if bad.any():
            row = int(bad.arg_true()[0])
            raise DataError(f"{path}: column 'item_id', row {row + 1}: {rows['item_id'][row]!r} {what}")
    return with_vectors(rows, str(path))[0]


def with_items(dataset: Dataset, items: pl.DataFrame) -> Dataset:
    """A data set whose items have what a table says of them, and otherwise what they had. Items without an event stay out.

    Raises:
        DataError: the table's vectors have another length than those that items have already.
    """
    both = dataset.items.join(items, on="item_id", how="left", suffix="_given", maintain_order="left")
    again = [name for name in items.columns if name != "item_id" and name in dataset.items.columns]
    both = both.with_columns(pl.coalesce(f"{name}_given", name).alias(name) for name in again)
    return with_events(dataset, dataset.events, both.drop(f"{name}_given" for name in again))


def _read(path: Path) -> pl.DataFrame:
    if path.suffix.lower() == ".parquet":
        return pl.read_parquet(path)
    if path.suffix.lower() == ".jsonl":
        return pl.read_ndjson(path, infer_schema_length=None)
    return pl.read_csv(path, infer_schema=False, separator="\t" if path.suffix.lower() == ".tsv" else ",")


def _as(rows: pl.DataFrame, name: str, path: Path) -> pl.Series:
    """A column as the canonical data set has it; of a vector that is no list of numbers, at least as a list with gaps.

    Raises:
        DataError: it is of another kind, or a number is infinite as float32.
    """
    cells = rows.get_column(name)
    dtype = ITEM_COLUMNS.get(name, pl.List(pl.Float32()) if name.startswith(VECTOR_PREFIX) else pl.Float32())
    if cells.dtype == pl.String and isinstance(dtype, pl.List):
        cells = cells.replace("", None)
        words = cells.str.replace_all(r"[\[\],\s]+", " ").str.strip_chars().str.split(" ")
        cells = words if name != "categories" else cells.str.split("|")
    try:
        found = cells.cast(dtype, strict=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: column {name!r} is {cells.dtype}, expected {dtype}: {first_line(error)}") from error
    lost = cells.is_not_null() & found.is_null() & (cells.cast(pl.String) != "" if cells.dtype == pl.String else True)
    if lost.any():
        row = int(lost.arg_true()[0])
        raise DataError(f"{path}: column {name!r}, row {row + 1}: {cells[row]!r} is no {dtype}")
    endless = found.is_infinite() if found.dtype == pl.Float32 else pl.Series([False])
    if endless.any():
        row = int(endless.arg_true()[0])
        raise DataError(f"{path}: column {name!r}, row {row + 1} (item {rows['item_id'][row]!r}): {cells[row]!r} is not finite")
    return found
