"""Items by row: ids, 64-bit keys, vectors, titles, when they are available. Rows are one model's; ids and keys are for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from app.catalogue.attributes import Attributes
from app.catalogue.categories import Categories
from app.catalogue.growing import Growing, Mostly
from app.catalogue.names import Ids, Titles
from app.errors import BundleError, ConflictError
from app.packed import Groups, Texts, pack_groups, pack_texts

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

ALWAYS: Final = np.iinfo(np.int64).min
NEVER: Final = np.iinfo(np.int64).max


def item_key(item_id: str) -> int:
    """The signed 64-bit key of an item id, the same in the trainer; never 0, which means "no item"."""
    key = int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "little", signed=True)
    return key or 1


class Catalogue:
    """N items: those of a bundle, and those that were added since. A row that has been given stays its item's.

    One thread, that of the event loop, makes changes (`put`, `close`, `as_in_bundle`, `teach`), some at a time, and ends them
    with `settle` before it does anything else; others may read meanwhile. An array that was taken is as it was then, but for the
    vectors, of which a row may be renewed.

    Attributes:
        version: of the live items that are in here, kept in the header of every user state; 0 is the bundle alone.
        changes: grows with everything that changes here.
        ids: N item ids by row; titles, categories likewise, those of the bundle packed.
        bundle_rows: so many items, the first ones, come from the bundle.
        attributes: what was said of items beside that.
    """

    def __init__(
        self,
        ids: Texts | Iterable[str],
        titles: Texts | Iterable[str | None],
        categories: Groups | Iterable[Sequence[str]],
        vectors: Float32,
        bias: Float32,
    ) -> None:
        """Take the items of a bundle: vectors (N, D), bias (N,).

        Raises:
            BundleError: two items share an id or a 64-bit key.
        """
        self.version = 0
        self.changes = 0
        packed = ids if isinstance(ids, Texts) else pack_texts(ids)
        self.ids = Ids(packed)
        self.titles = Titles(titles if isinstance(titles, Texts) else pack_texts(titles))
        self.categories = Categories(categories if isinstance(categories, Groups) else pack_groups(categories))
        self.bundle_rows = n = len(self.ids)
        self._vectors = Growing(vectors)
        self._bias = Growing(bias)
        self._keys = Growing(np.fromiter((item_key(item_id) for item_id in packed if item_id is not None), np.int64, n))
        self._known = Growing(np.ones(n, np.bool_))
        self._opens_ms, self._closes_ms = Mostly(ALWAYS, n), Mostly(NEVER, n)
        self._new: dict[int, int] = {}  # key -> row, not among the sorted ones yet
        self._born_ms = Mostly(-1, n)
        self._renewed = Mostly(0, n)  # `changes` after which each row has its vector
        self.attributes = Attributes(n)
        self._arrivals = Growing(np.empty((0, 2), np.int64))  # version, and `unknown_bits` of the item
        self._moments: list[tuple[int, int, tuple[Bool, Float32]]] = []  # from, until, what is open then
        order = np.argsort(self.keys, kind="stable")
        ascending = self.keys[order]
        # Keys and rows, of one moment, also for who searches in another thread; behind them what a search never goes beyond.
        self._sorted = (np.append(ascending, np.iinfo(np.int64).max), np.append(order, -1))
        for position in np.flatnonzero(ascending[1:] == ascending[:-1])[:1]:
            first, second = (self.ids[order[position + side]] for side in (0, 1))
            what = "appears twice" if first == second else f"and {second!r} have the same 64-bit key; rename one"
            raise BundleError(f"item ids: {first!r} {what}")

    def __len__(self) -> int:
        return len(self._known.rows)

    @property
    def vectors(self) -> Float32:
        """(N, D); zeros for an item that is not `known`."""
        return self._vectors.rows

    @property
    def bias(self) -> Float32:
        """(N,)"""
        return self._bias.rows

    @property
    def keys(self) -> Int64:
        """(N,) 64-bit key of each row."""
        return self._keys.rows

    @property
    def known(self) -> Bool:
        """(N,) whether the model has a vector of the item; the others are in no list of the model and not understood in
        events."""
        return self._known.rows

    @property
    def born_ms(self) -> Int64:
        """(N,) since when each item has been there, unix ms; -1 where nobody knows."""
        return self._born_ms.rows

    def row(self, item_id: str) -> int | None:
        """Row of an item, or None if it is not in the catalogue."""
        return self.ids.row(item_id)

    def rows(self, item_ids: Sequence[str | None]) -> list[int]:
        """Rows of items; -1 where one is None or not in the catalogue."""
        return self.ids.rows(item_ids)

    def knows(self, item_id: str) -> bool:
        """Whether the model has a vector of the item."""
        row = self.ids.row(item_id)
        return row is not None and bool(self._known.rows[row])

    def title(self, item_id: str | None) -> str | None:
        row = self.ids.row(item_id) if item_id is not None else None
        return None if row is None else self.titles[row]

    def rows_of_keys(self, keys: Int64) -> Int64:
        """Rows of item keys of any shape but (), in that shape; -1 where the key is 0 or not of this catalogue."""
        sorted_keys, sorted_rows = self._sorted
        places = sorted_keys.searchsorted(keys)
        rows: Int64 = sorted_rows.take(places)
        rows[sorted_keys.take(places) != keys] = -1
        return rows

    def open_at(self, as_of_ms: int) -> Bool:
        """(N,) which items are available at a moment (unix ms), whether the model knows them or not. Do not write into it."""
        return self._at(as_of_ms)[0]

    def bias_at(self, as_of_ms: int) -> Float32:
        """(N,) the items' bias, -inf where an item is not available at a moment or not known. The same array until that
        changes."""
        return self._at(as_of_ms)[1]

    def _at(self, as_of_ms: int) -> tuple[Bool, Float32]:
        for since_ms, until_ms, found in self._moments:
            if since_ms <= as_of_ms < until_ms:
                return found
        opens_ms, closes_ms = self._opens_ms.rows, self._closes_ms.rows
        opened = (opens_ms <= as_of_ms) & (as_of_ms < closes_ms)
        eligible = opened & self.known
        found = (opened, self.bias if eligible.all() else np.where(eligible, self.bias, np.float32(-np.inf)))
        # The same until anything else opens or closes.
        since_ms, until_ms = ALWAYS, NEVER
        for edges in (opens_ms, closes_ms):
            past = edges <= as_of_ms
            since_ms = max(since_ms, int(edges.max(initial=ALWAYS, where=past)))
            until_ms = min(until_ms, int(edges.min(initial=NEVER, where=~past)))
        if len(self._moments) >= _MOST_MOMENTS:
            self._moments.clear()
        self._moments.append((since_ms, until_ms, found))
        return found

    def put(
        self,
        item_id: str,
        title: str | None,
        categories: Sequence[str] | None,
        opens_ms: int = ALWAYS,
        closes_ms: int = NEVER,
        born_ms: int = -1,
    ) -> int:
        """Say of an item, an old one or a new one, what it is called and when it is available: [opens_ms, closes_ms), and since
        when it has been there (-1: nobody knows).

        What is None of an item of the bundle is as it says there. Returns the item's row; a new one is not known to the model
        until `teach`.

        Raises:
            ConflictError: it has the 64-bit key of another item.
        """
        row = self.ids.row(item_id)
        if row is None:
            row = self._append(item_id)
        in_bundle = row < self.bundle_rows
        if title is None and in_bundle:
            self.titles.put_back(row)
        else:
            self.titles.put(row, title)
        if categories is None and in_bundle:
            self.categories.put_back(row)
        else:
            self.categories.put(row, tuple(categories or ()))
        self._opens_ms.put(row, opens_ms)
        self._closes_ms.put(row, closes_ms)
        self._born_ms.put(row, born_ms)
        return row

    def close(self, row: int) -> None:
        """An item is gone: it is in no list any more, and what people did with it stays understood."""
        self.put(self.ids[row], self.titles[row], self.categories[row], NEVER, NEVER)

    def as_in_bundle(self, row: int) -> None:
        """Forget what was said of an item since the bundle."""
        self.attributes.clear(row)
        if row >= self.bundle_rows:
            self.close(row)
        else:
            self.put(self.ids[row], None, None)

    def teach(self, row: int, vector: Float32, bias: float, version: int) -> None:
        """Give an item its vector (D,), as of a version of the live items."""
        arrives = not self.known[row]
        self._vectors.put(row, vector)
        self._bias.put(row, bias)
        self._renewed.put(row, self.changes + 1)
        if arrives:
            self._known.put(row, True)
            self._arrivals.put(len(self._arrivals.rows), (version, unknown_bits(int(self.keys[row]))))

    def forget_attributes(self) -> None:
        """No item has any attribute, and no name has a type."""
        self.attributes = Attributes(len(self))

    def unteach(self, row: int) -> None:
        """An item has no vector any more: there is nothing that one could be made of."""
        self._vectors.put(row, 0.0)
        self._bias.put(row, 0.0)
        self._known.put(row, False)
        self._renewed.put(row, self.changes + 1)

    def settle(self, version: int) -> None:
        """End some changes, which were those up to a version of the live items."""
        if self._new:
            keys, rows = (np.fromiter(some, np.int64, len(self._new)) for some in (self._new.keys(), self._new.values()))
            order = np.argsort(keys)
            places = self._sorted[0].searchsorted(keys[order])
            self._sorted = (np.insert(self._sorted[0], places, keys[order]), np.insert(self._sorted[1], places, rows[order]))
            self._new.clear()
        self.version = version
        self.changes += 1
        self._moments = []

    def arrived(self, bits: int, version: int) -> bool:
        """Whether an item that was not known at `version` is now, and may be among those whose `unknown_bits` are in `bits`."""
        versions, of_items = self._arrivals.rows.T
        return bool(((versions > version) & (of_items & bits == of_items)).any())

    def renewed_since(self, changes: int) -> Int64:
        """Rows that came, or whose vector or bias changed, after so many `changes`."""
        return np.flatnonzero(self._renewed.rows > changes)

    def check(self, item_id: str) -> int:
        """The 64-bit key of an item that is here or could be put here. Raises ConflictError if it has that of another item."""
        key = item_key(item_id)
        there = self._new.get(key, int(self.rows_of_keys(np.asarray([key]))[0]))
        if there >= 0 and self.ids[there] != item_id:
            raise ConflictError(f"item ids: {item_id!r} and {self.ids[there]!r} have the same 64-bit key; rename one")
        return key

    def _append(self, item_id: str) -> int:
        key = self.check(item_id)
        row = len(self)
        self.titles.put(row, None)
        self.categories.put(row, ())
        self._vectors.put(row, 0.0)
        self._bias.put(row, 0.0)
        self._keys.put(row, key)
        self._opens_ms.put(row, ALWAYS)
        self._closes_ms.put(row, NEVER)
        self._born_ms.put(row, -1)
        self._renewed.put(row, self.changes + 1)
        self._known.put(row, False)
        self.attributes.grow(row + 1)
        self._new[key] = row
        self.ids.append(item_id)  # last: a thread that folds finds the row from here on, and reads all of the above
        return row


_MOST_MOMENTS: Final = 16


def unknown_bits(key: int) -> int:
    """Two of 32 bits that stand for an item: those of several items are put together, and may then hold others by chance."""
    return 1 << (key & 31) | 1 << (key >> 5 & 31)
