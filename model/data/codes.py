"""Names to numbers, a column at a time."""

from __future__ import annotations

import numpy as np
import polars as pl

from model.data.errors import DataError
from model.data.sequences import Int32, Int64, item_key


def row_numbers(cells: pl.Series, names: list[str]) -> Int32:
    """The place of each cell in `names`; -1 for null and for what is not there."""
    table = pl.DataFrame(
        {"cell": names, "row": np.arange(len(names), dtype=np.int32)}, schema={"cell": pl.String, "row": pl.Int32}
    )
    joined = cells.alias("cell").to_frame().join(table, on="cell", how="left", maintain_order="left")
    return joined.get_column("row").fill_null(-1).to_numpy().astype(np.int32)


def item_keys(item_ids: pl.Series) -> Int64:
    distinct = item_ids.drop_nulls().unique().to_list()
    keys: Int64 = np.array([*(item_key(item_id) for item_id in distinct), 0], dtype=np.int64)  # the last, at -1, is for "no item"
    if len(np.unique(keys)) != len(keys):
        raise DataError("two items of the data set have the same 64-bit key; rename one of them")
    return keys[row_numbers(item_ids, distinct)]


def basket_numbers(events: pl.DataFrame, offsets: Int64) -> Int32:
    """(E,) 0, 1, ... within each user."""
    basket = pl.col("basket_id")
    same = (basket == basket.shift(1)).fill_null(False)  # null is never the same as null
    starts = ~events.select(same).to_series().to_numpy()
    starts[offsets[:-1]] = True
    running = np.cumsum(starts)
    first = running[offsets[:-1]]
    numbers: Int32 = (running - np.repeat(first, np.diff(offsets))).astype(np.int32)
    return numbers
