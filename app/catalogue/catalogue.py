"""Items by row: ids, 64-bit keys, vectors, titles. Rows belong to one model; ids and keys are for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from app.errors import BundleError

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


def item_key(item_id: str) -> int:
    """The signed 64-bit key of an item id, the same in the trainer; never 0, which means "no item"."""
    key = int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "little", signed=True)
    return key or 1


class Catalogue:
    """N items, fixed while the service runs; nothing here is written after construction, so any thread may read.

    Attributes:
        version: number of the catalogue's state, kept in the header of every user state; 0 is the bundle's own.
        ids: N item ids by row; titles, categories likewise.
        vectors: (N, D) float32; bias: (N,) float32.
        keys: (N,) int64 key of each row.
    """

    version = 0

    def __init__(
        self,
        ids: Sequence[str],
        titles: Sequence[str | None],
        categories: Sequence[Sequence[str]],
        vectors: Float32,
        bias: Float32,
    ) -> None:
        """Take the items of a bundle.

        Raises:
            BundleError: two items share an id or a 64-bit key.
        """
        self.ids = list(ids)
        self.titles = list(titles)
        self.categories = [tuple(names) for names in categories]
        self.vectors = vectors
        self.bias = bias
        self.keys: Int64 = np.fromiter((item_key(item_id) for item_id in self.ids), np.int64, len(self.ids))
        self._rows = {item_id: row for row, item_id in enumerate(self.ids)}
        order = np.argsort(self.keys, kind="stable")
        self._sorted_keys, self._sorted_rows = self.keys[order], order
        for position in np.flatnonzero(self._sorted_keys[1:] == self._sorted_keys[:-1])[:1]:
            first, second = (self.ids[order[position + side]] for side in (0, 1))
            what = "appears twice" if first == second else f"and {second!r} have the same 64-bit key; rename one"
            raise BundleError(f"item ids: {first!r} {what}")

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, item_id: str) -> int | None:
        """Row of an item, or None if this model does not know it."""
        return self._rows.get(item_id)

    def title(self, item_id: str | None) -> str | None:
        row = self._rows.get(item_id) if item_id is not None else None
        return None if row is None else self.titles[row]

    def rows_of_keys(self, keys: Int64) -> Int64:
        """Rows of item keys of any shape, in that shape; -1 where the key is 0 or not of this catalogue."""
        places = np.minimum(self._sorted_keys.searchsorted(keys), len(self.ids) - 1)
        rows: Int64 = np.where(self._sorted_keys[places] == keys, self._sorted_rows[places], -1)
        return rows
