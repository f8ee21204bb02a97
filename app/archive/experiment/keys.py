"""Ids as numbers of 64 bits: lists, items and users are compared by the millions, and arrays of numbers are small and quick.

Python's own hash of a string (SipHash under a key of this process): two of ten million ids share a key once in 400,000 reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


def keys_of(texts: Iterable[str]) -> Keys:
    return np.fromiter(map(hash, texts), np.int64).view(np.uint64)


def column_keys(column: pa.Array | pa.ChunkedArray, read: Callable[[str], str] | None = None) -> Keys:
    """The keys of a column of texts, 0 for null; each different text is hashed once. `read` makes the id from the text."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = pc.dictionary_encode(array)
    texts = encoded.dictionary.to_pylist()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    keys: Keys = np.append(keys_of(texts if read is None else map(read, texts)), np.uint64(0))[codes]
    return keys


def pair_keys(first: Keys, second: Keys) -> Keys:
    """A key for each pair; the order within the pair matters."""
    mixed = first * np.uint64(0x9E3779B97F4A7C15) + second
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def places_in(known: Keys, asked: Keys) -> NDArray[np.int64]:
    """Where each key stands among `known`, which are sorted and unique; -1 for those that do not."""
    if not len(known):
        return np.full(len(asked), -1, np.int64)
    at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.where(known[at] == asked, at, -1)


class Met:
    """Keys that were met before: sorted runs, merged when they are of a size, 8 bytes a key."""

    def __init__(self) -> None:
        self._runs: list[Keys] = []

    def new(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of these are met for the first time; of several that are the same the first one is."""
        fresh = np.zeros(len(keys), bool)
        fresh[np.unique(keys, return_index=True)[1]] = True
        for run in self._runs:
            fresh &= places_in(run, keys) < 0
        self._runs.append(np.sort(keys[fresh]))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")
        return fresh
