"""What is said of items in numbers: features, a number each, and vectors (of an image, a sound), many numbers under one name.

A model reads them as one row of F numbers: the features in the order of their names' list, then the vectors in that of theirs.
What an item does not have is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from model.data.errors import DataError, first_line
from model.data.schema import MOST_VECTOR_NAME, MOST_VECTOR_NUMBERS, MOST_VECTORS, VECTOR_PREFIX

TAIL = 0.01
LEAST = 1 / float(np.finfo(np.float32).max)
"""Of a smaller deviation the inverse is no float32."""


def with_vectors(items: pl.DataFrame, where: str) -> tuple[pl.DataFrame, dict[str, int]]:
    """Items whose columns `vector_*` are lists of float32, each column's of one length; and these lengths, by name.

    A column in which no item has anything is left out.

    Args:
        items: with item_id, and columns `vector_*` of lists or arrays of numbers. where: what an error calls the table.

    Raises:
        DataError: a column is of something else, or its lists differ in length, or a number is missing or not finite, or there
            are too many; names column and row (from 1) and item.
    """
    columns = sorted(column for column in items.columns if column.startswith(VECTOR_PREFIX))
    if len(columns) > MOST_VECTORS:
        raise DataError(f"{where}: has {len(columns)} columns {VECTOR_PREFIX}*; at most {MOST_VECTORS} are taken")
    widths: dict[str, int] = {}
    for column in columns:
        here = f"{where}: column {column!r}"
        if not 1 <= len(column) - len(VECTOR_PREFIX) <= MOST_VECTOR_NAME:
            raise DataError(f"{here}: its name has 1 to {MOST_VECTOR_NAME} characters behind {VECTOR_PREFIX}")
        try:
            cells = items.get_column(column).cast(pl.List(pl.Float32))
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{here} is {items.schema[column]}, expected lists of numbers: {first_line(error)}") from error
        lengths = cells.list.len()
        first = lengths.drop_nulls()
        if first.is_empty():
            items = items.drop(column)
            continue
        width = int(first[0])
        if not 1 <= width <= MOST_VECTOR_NUMBERS:
            raise DataError(f"{here}: has vectors of {width} numbers; 1 to {MOST_VECTOR_NUMBERS} are taken")
        others = (lengths != width).fill_null(False).arg_true()
        if len(others):
            row = int(others[0])
            raise DataError(f"{here}, {_row(items, row)}: has {lengths[row]} numbers; the first one has {width}")
        strange = ~cells.drop_nulls().list.explode().is_finite().fill_null(False)
        if strange.any():
            row = int(cells.is_not_null().arg_true()[int(strange.arg_true()[0]) // width])
            raise DataError(f"{here}, {_row(items, row)}: a number is missing or not finite")
        items = items.with_columns(cells)
        widths[column.removeprefix(VECTOR_PREFIX)] = width
    return items, widths


def dense_matrix(items: pl.DataFrame, features: Sequence[str], vectors: Mapping[str, int]) -> npt.NDArray[np.float32] | None:
    """(N, F) what a model reads of items, None where it reads nothing.

    Args:
        features: names of columns. vectors: how long each is, by name; the columns are canonical, or nulls alone.

    Raises:
        KeyError: an item's vector has another length; says which.
    """
    width = len(features) + sum(vectors.values())
    if not width:
        return None
    matrix = np.zeros((items.height, width), np.float32)
    for at, name in enumerate(features):
        matrix[:, at] = items.get_column(name).fill_null(0.0).to_numpy()
    at = len(features)
    for name, length in vectors.items():
        cells = items.get_column(VECTOR_PREFIX + name)
        there = cells.drop_nulls()
        if len(there):
            matrix[cells.is_not_null().to_numpy(), at : at + length] = there.list.to_array(length).to_numpy()
        at += length
    return matrix


def number_scales(items: pl.DataFrame, features: Sequence[str]) -> tuple[tuple[float, float], ...]:
    """Of each feature the mean over the items that have it, and what a distance from it is multiplied with: 1 / its deviation.

    The lowest and the highest hundredth, one item at least, count as the next ones: a price of 1e9 would make all others equal.
    Where that leaves one value alone (a flag that few items have, or that is there or not), all items count, with the 0 that a
    model reads where there is none. A column that is constant even so gives (0, 0): nothing.
    """
    scales = []
    for name in features:
        column = items.get_column(name).cast(pl.Float64)
        values = column.drop_nulls().sort().to_numpy()
        if len(values):
            low, high = np.quantile(values, TAIL, method="higher"), np.quantile(values, 1 - TAIL, method="lower")
            values = np.clip(values, low, high)
        if len(np.unique(values)) < 2:
            values = column.fill_null(0.0).to_numpy()
        constant = len(np.unique(values)) < 2
        scales.append((0.0, 0.0) if constant else (float(values.mean()), 1 / max(float(values.std()), LEAST)))
    return tuple(scales)


def _row(items: pl.DataFrame, row: int) -> str:
    return f"row {row + 1} (item {items.get_column('item_id')[row]!r})"
