"""Many small values in few arrays: a million Python strings take several times what their letters do."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

_NONE: Final = b"\xff"  # a byte that is in no UTF-8


@dataclass(frozen=True, eq=False)
class Texts:
    """N texts, some of them perhaps None, each read when it is asked for.

    Attributes:
        data: UTF-8 of one behind the other. starts: (N + 1,) where each begins, and where the last one ends.
    """

    data: bytes
    starts: memoryview  # a single number of an array takes three times as long to read

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> str | None:
        """The text of a row from 0 to N - 1."""
        raw = self.data[self.starts[row] : self.starts[row + 1]]
        return None if raw == _NONE else raw.decode()

    def __iter__(self) -> Iterator[str | None]:
        return map(self.__getitem__, range(len(self)))

    @property
    def nbytes(self) -> int:
        return len(self.data) + self.starts.nbytes


class TextPacking:
    """Takes texts one after the other."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._starts = array("Q", [0])

    def add(self, text: str | None) -> None:
        self._data += _NONE if text is None else text.encode()
        self._starts.append(len(self._data))

    def packed(self) -> Texts:
        small = len(self._data) <= np.iinfo(np.uint32).max
        starts = np.array(self._starts, np.uint32 if small else np.uint64)
        return Texts(bytes(self._data), memoryview(starts))  # type: ignore[arg-type]  # numpy's arrays are buffers


def pack_texts(texts: Iterable[str | None]) -> Texts:
    packing = TextPacking()
    for text in texts:
        packing.add(text)
    return packing.packed()


Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Groups:
    """N lists of names, of which many are alike.

    Attributes:
        lists: each list once. codes: (N,), which of them each row has; read-only.
    """

    lists: Sequence[Names]
    codes: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> Names:
        return self.lists[int(self.codes[row])]

    def __iter__(self) -> Iterator[Names]:
        return map(self.lists.__getitem__, self.codes.tolist())


class GroupPacking:
    """Takes lists of names one after the other."""

    def __init__(self) -> None:
        self._codes_of: dict[Names, int] = {}
        self._codes = array("i")

    def add(self, names: Sequence[str]) -> None:
        self._codes.append(self._codes_of.setdefault(tuple(names), len(self._codes_of)))

    def packed(self) -> Groups:
        codes = np.array(self._codes, np.int32)
        codes.flags.writeable = False
        return Groups(list(self._codes_of), codes)


def pack_groups(lists: Iterable[Sequence[str]]) -> Groups:
    packing = GroupPacking()
    for names in lists:
        packing.add(names)
    return packing.packed()
