"""Columns of item attributes: one array, or few, for all items, so that a filter asks a million of them at once."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

Kind = Literal["string", "number", "boolean", "list"]
Scalar = str | float | bool
Value = str | float | bool | Sequence[str]
Order = Literal["<", "<=", ">", ">="]
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int8] | npt.NDArray[np.int32] | npt.NDArray[np.int64]
"""Numbers that stand for values: two items have the same value if they have the same number; -1 is none."""

_ONE_BY_ONE: Final = 8  # values that are looked for one after the other; from there on a table of all codes is quicker
_BLOCK: Final = 32_768  # rows at a time where several arrays come of each other: they stay in the processor's cache
_HASH_BITS: Final = 14
# Odd, and another one in each process, so that nobody can choose a thousand numbers of one hash.
_HASH_FACTOR: Final = np.uint64(secrets.randbits(64) | 1)

_T = TypeVar("_T", bound=np.generic)


class CodesOfRows(Protocol):
    """Codes of N items where one may have several."""

    def __len__(self) -> int: ...

    def __call__(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """(m,) rows -> (m, G) codes; -1 is none."""
        ...


class Column(Protocol):
    """One attribute of N items, as filters read it. Every answer is a new (N,) array, which the caller may write into."""

    @property
    def kind(self) -> Kind: ...

    def present(self) -> Mask:
        """Which items have a value."""
        ...

    def any_of(self, values: Sequence[Scalar]) -> Mask:
        """Which items have one of these values, or in their list one of these entries."""
        ...

    def groups(self) -> Codes | CodesOfRows:
        """(N,) the items by what they have, each entry of a list for itself; as of now, whatever changes later."""
        ...


class OrderedColumn(Column, Protocol):
    """A column of numbers."""

    def ordered(self, order: Order, bound: float) -> Mask:
        """Which items have a value that is less (and so on) than `bound`."""
        ...


class LookupColumn:
    """Strings that somebody else keeps, another one for each row, with an index from a string to its rows: ids.

    Nothing is stored here, and nothing is scanned: a question costs its values, not the items.
    """

    kind: Final = "string"

    def __init__(self, count: Callable[[], int], rows: Callable[[str], Iterable[int]]) -> None:
        """`count` says how many rows there are."""
        self._count = count
        self._rows = rows

    def present(self) -> Mask:
        return np.ones(self._count(), np.bool_)

    def any_of(self, values: Sequence[Scalar]) -> Mask:
        mask = np.zeros(self._count(), np.bool_)
        for value in values:
            for row in self._rows(cast(str, value)):
                mask[row] = True
        return mask

    def groups(self) -> Codes:
        return np.arange(self._count())


class Cells(Generic[_T]):
    """An array that grows; `used` is the part in use. Room is doubled, and not touched before it is used."""

    def __init__(self, count: int, missing: Any, dtype: type[_T]) -> None:
        """Begin with `count` cells that hold `missing`, as do the new ones later."""
        self._missing = missing
        self._room: npt.NDArray[_T] = np.full(count, missing, dtype)
        self.used = self._room

    def __len__(self) -> int:
        return len(self.used)

    def grow(self, count: int) -> None:
        before = len(self.used)
        if count > len(self._room):
            room = np.empty(max(count, 2 * len(self._room)), self._room.dtype)
            room[:before] = self.used
            self._room = room
        self._room[before:count] = self._missing
        self.used = self._room[:count]

    def keep(self, kept: Mask) -> None:
        """Close up to the cells of a mask."""
        self._room = self.used[kept]
        self.used = self._room


class Vocabulary:
    """Strings by code, each once, with how often it is used; the code of one that nobody uses any more is given out again."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._strings: list[str | None] = []
        self._uses: list[int] = []
        self._free: list[int] = []
        self._bytes = 0  # of the strings themselves

    def __len__(self) -> int:
        """Codes that were ever given out: each is less than this."""
        return len(self._strings)

    @property
    def nbytes(self) -> int:
        return self._bytes + sum(sys.getsizeof(held) for held in (self._codes, self._strings, self._uses, self._free))

    def take(self, string: str) -> int:
        """The code of a string, used once more."""
        code = self._codes.get(string)
        if code is None:
            if self._free:
                code = self._free.pop()
                self._strings[code] = string
            else:
                code = len(self._strings)
                self._strings.append(string)
                self._uses.append(0)
            self._codes[string] = code
            self._bytes += sys.getsizeof(string)
        self._uses[code] += 1
        return code

    def release(self, code: int) -> None:
        """One use less."""
        self._uses[code] -= 1
        if not self._uses[code]:
            string = self.string(code)
            del self._codes[string]
            self._bytes -= sys.getsizeof(string)
            self._strings[code] = None
            self._free.append(code)

    def string(self, code: int) -> str:
        return cast(str, self._strings[code])

    def where(self, values: Sequence[Scalar]) -> Callable[[npt.NDArray[np.int32]], Mask]:
        """A function from codes to whether each is one of these strings; -1, no string, never is."""
        wanted = [code for value in values if (code := self._codes.get(cast(str, value))) is not None]
        if len(wanted) <= _ONE_BY_ONE:
            return lambda codes: one_of(codes, wanted)
        table = np.zeros(len(self) + 1, np.bool_)
        table[wanted] = True
        # Without a sign, -1 is beyond the end, and clipped to the last place, which is free. (Wrapping -1 around to it takes ten
        # times as long where missing values lie scattered.)
        return lambda codes: table.take(codes.view(np.uint32), mode="clip")


class StringColumn:
    """A code for each row, -1 where there is no value."""

    kind: ClassVar[Literal["string"]] = "string"

    def __init__(self, count: int) -> None:
        self._codes = Cells(count, -1, np.int32)
        self._vocabulary = Vocabulary()

    @property
    def nbytes(self) -> int:
        return self._codes.used.nbytes + self._vocabulary.nbytes

    def grow(self, count: int) -> None:
        self._codes.grow(count)

    def put(self, row: int, value: Value) -> None:
        code = self._vocabulary.take(cast(str, value))  # before the old one is dropped: it may be the same
        self.drop(row)
        self._codes.used[row] = code

    def drop(self, row: int) -> None:
        code = int(self._codes.used[row])
        if code >= 0:
            self._vocabulary.release(code)
            self._codes.used[row] = -1

    def value(self, row: int) -> str | None:
        code = int(self._codes.used[row])
        return self._vocabulary.string(code) if code >= 0 else None

    def present(self) -> Mask:
        return self._codes.used >= 0

    def any_of(self, values: Sequence[Scalar]) -> Mask:
        return self._vocabulary.where(values)(self._codes.used)

    def groups(self) -> Codes:
        return self._codes.used.copy()


class NumberColumn:
    """A float64 for each row, NaN where there is no value."""

    kind: ClassVar[Literal["number"]] = "number"

    def __init__(self, count: int) -> None:
        self._numbers = Cells(count, np.nan, np.float64)

    @property
    def nbytes(self) -> int:
        return self._numbers.used.nbytes

    def grow(self, count: int) -> None:
        self._numbers.grow(count)

    def put(self, row: int, value: Value) -> None:
        self._numbers.used[row] = float(cast(float, value)) + 0.0  # -0.0 becomes 0.0: they are equal, their bits are not

    def drop(self, row: int) -> None:
        self._numbers.used[row] = np.nan

    def value(self, row: int) -> float | None:
        number = float(self._numbers.used[row])
        return None if number != number else number

    def present(self) -> Mask:
        numbers = self._numbers.used
        present: Mask = numbers == numbers
        return present

    def any_of(self, values: Sequence[Scalar]) -> Mask:
        numbers = self._numbers.used
        if len(values) <= _ONE_BY_ONE:
            return one_of(numbers, values)
        # One value for each hash, against which a row with this hash is compared. Values whose place another one took go next.
        mask = np.zeros(len(numbers), np.bool_)
        rest = np.unique(np.asarray(values, np.float64) + 0.0)
        while len(rest) > _ONE_BY_ONE:
            table = np.full(1 << _HASH_BITS, np.nan)
            hashes = _hashes(rest)
            table[hashes] = rest
            for start in range(0, len(numbers), _BLOCK):
                block = numbers[start : start + _BLOCK]
                mask[start : start + _BLOCK] |= table.take(_hashes(block), mode="wrap") == block
            rest = rest[table[hashes] != rest]
        mask |= one_of(numbers, rest.tolist())
        return mask

    def groups(self) -> Codes:
        """The numbers' bits: none has those of -1, which as a float64 is no number."""
        numbers = self._numbers.used
        return np.where(numbers == numbers, numbers.view(np.int64), -1)

    def ordered(self, order: Order, bound: float) -> Mask:
        numbers = self._numbers.used
        match order:  # with NaN each of them is false
            case "<":
                return numbers < bound
            case "<=":
                return numbers <= bound
            case ">":
                return numbers > bound
            case ">=":
                return numbers >= bound


class BooleanColumn:
    """0 or 1 for each row, -1 where there is no value."""

    kind: ClassVar[Literal["boolean"]] = "boolean"

    def __init__(self, count: int) -> None:
        self._flags = Cells(count, -1, np.int8)

    @property
    def nbytes(self) -> int:
        return self._flags.used.nbytes

    def grow(self, count: int) -> None:
        self._flags.grow(count)

    def put(self, row: int, value: Value) -> None:
        self._flags.used[row] = bool(value)

    def drop(self, row: int) -> None:
        self._flags.used[row] = -1

    def value(self, row: int) -> bool | None:
        flag = int(self._flags.used[row])
        return bool(flag) if flag >= 0 else None

    def present(self) -> Mask:
        return self._flags.used >= 0

    def any_of(self, values: Sequence[Scalar]) -> Mask:
        return one_of(self._flags.used, [int(cast(bool, value)) for value in dict.fromkeys(values)])

    def groups(self) -> Codes:
        return self._flags.used.copy()


@dataclass(frozen=True, slots=True)
class ListCodes:
    """The codes of the entries of N lists, as they were at one moment.

    Attributes:
        lengths: (N,); -1: no list.
        slots: (N,) each, the first entries. starts: (N,) where those behind them begin in `more`.
    """

    lengths: npt.NDArray[np.int8] | npt.NDArray[np.int32]
    slots: Sequence[npt.NDArray[np.int32]]
    starts: npt.NDArray[np.int32] | None
    more: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths)

    def __call__(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """(m,) rows -> (m, G) codes, -1 behind the end of a list, and for a row that came later."""
        there = rows < len(self)
        rows = np.where(there, rows, 0)
        lengths = np.where(there, self.lengths[rows] if len(self) else -1, -1)
        codes = np.full((len(rows), max(int(lengths.max(initial=0)), 1)), -1, np.int32)
        for place, slot in enumerate(self.slots[: codes.shape[1]]):
            codes[:, place] = np.where(there, slot[rows], -1)
        if self.starts is not None:
            for place in range(len(self.slots), codes.shape[1]):
                long = lengths > place
                codes[long, place] = self.more[self.starts[rows[long]] + place - len(self.slots)]
        return codes


def one_of(array: npt.NDArray[Any], values: Sequence[Any]) -> Mask:
    """Where a cell equals one of few values."""
    if not values:
        return np.zeros(len(array), np.bool_)
    mask: Mask = array == values[0]
    for value in values[1:]:
        mask |= array == value
    return mask


def _hashes(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    hashes: npt.NDArray[np.int64] = ((numbers.view(np.uint64) * _HASH_FACTOR) >> np.uint64(64 - _HASH_BITS)).view(np.int64)
    return hashes
