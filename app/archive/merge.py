"""Sorted files read as one sorted stream, with a bounded number of rows in memory: however large the files, and the day, are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa

from app.archive.archive import Archive
from app.archive.columns import ORDER, canonical
from app.archive.files import read_batches
from app.archive.manifest import File
from app.errors import ArchiveError

MOST_FILES: Final = 64
"""Files that are read side by side: each is open, and has some rows in memory."""

WINDOW_ROWS: Final = 32_768  # shared out among the files by their rows
_FEWEST_ROWS: Final = 512  # of a file, or all that it has: what is read in smaller portions takes long

_Place = tuple[int, int, int]


def merged(archive: Archive, files: Sequence[File]) -> Iterator[pa.Table]:
    """The rows of up to `MOST_FILES` files, of older versions too, in the archive's order, as tables of this version's columns.

    No more than `WINDOW_ROWS` rows are in memory, and `_FEWEST_ROWS` for each file.

    Raises:
        ArchiveError: a file is missing or damaged, or not in order.
    """
    total = max(sum(file.rows for file in files), 1)
    readers = [_Reader(archive, file, max(_FEWEST_ROWS, WINDOW_ROWS * file.rows // total)) for file in files]
    while True:
        unread = [reader for reader in readers if reader.fill()]
        if not unread:
            return
        # Up to here every file has been read, so nothing that is still to come belongs before it.
        upto = min(reader.last for reader in unread)
        yield pa.concat_tables([reader.take(upto) for reader in unread]).sort_by(ORDER)


class _Reader:
    """Some rows of a file, and then the next ones."""

    def __init__(self, archive: Archive, file: File, rows: int) -> None:
        self._path = archive.folder / file.path
        self._batches = read_batches(archive, file, rows)
        self._table: pa.Table | None = None
        self._places: list[_Place] = []
        self._taken = 0

    def fill(self) -> bool:
        """Read on if all that was read is taken; False at the end of the file."""
        while self._taken == len(self._places):
            before = self._places[-1:]
            batch = next(self._batches, None)
            self._table, self._places, self._taken = None, [], 0
            if batch is None:
                return False
            self._table = canonical([batch])
            self._places = list(zip(*(self._table.column(name).to_pylist() for name, _ in ORDER), strict=True))
            both = before + self._places
            if both != sorted(both):
                raise ArchiveError(f"{self._path}: its rows are not in the order of the log")
        return True

    @property
    def last(self) -> _Place:
        return self._places[-1]

    def take(self, upto: _Place) -> pa.Table:
        """The rows that are there and not taken yet, up to this place and with it."""
        assert self._table is not None
        start, self._taken = self._taken, bisect_right(self._places, upto, lo=self._taken)
        return self._table.slice(start, self._taken - start)
