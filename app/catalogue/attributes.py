"""The attributes that callers give their items, as typed columns over the catalogue's rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, cast

from app.catalogue.columns import BooleanColumn, Column, Kind, NumberColumn, StringColumn, Value
from app.catalogue.lists import ListColumn
from app.errors import InvalidRequestError

MAX_ATTRIBUTES: Final = 64  # of one item
MAX_NAMES: Final = 256  # of all items together: each costs 1 to 8 bytes an item, whoever has it (a list: up to 17)
MAX_NAME: Final = 64  # characters
MAX_STRING: Final = 256  # characters, of a string and of each entry of a list
MAX_ENTRIES: Final = 64  # of a list
# What every item has besides; a caller's attribute of this name could not be told from it.
BUILT_IN: Final = ("categories", "id", "title")

_Stored = StringColumn | NumberColumn | BooleanColumn | ListColumn
_COLUMNS: Final[Mapping[Kind, type[_Stored]]] = {
    "string": StringColumn,
    "number": NumberColumn,
    "boolean": BooleanColumn,
    "list": ListColumn,
}


class Attributes:
    """Named values of each row. A name has the type of the first value that it ever had, and keeps it.

    A number is a float64: whole numbers are exact up to 2^53. Meant for one thread; a mask that a column gave is its
    receiver's own.

    Attributes:
        version: grows with every change, also of the number of rows.
    """

    def __init__(self, rows: int = 0, kinds: Mapping[str, Kind] | None = None) -> None:
        """Begin with rows that have no attributes, and with names whose type is known from before."""
        self.version = 0
        self._rows = rows
        self._columns: dict[str, _Stored] = {name: _COLUMNS[kind](rows) for name, kind in (kinds or {}).items()}

    def __len__(self) -> int:
        """Rows."""
        return self._rows

    @property
    def nbytes(self) -> int:
        """Memory of all columns, less the room in which they can grow, which is not touched yet."""
        return sum(column.nbytes for column in self._columns.values())

    def kinds(self) -> Mapping[str, Kind]:
        """The type of each name."""
        return {name: column.kind for name, column in self._columns.items()}

    def declare(self, kinds: Mapping[str, str]) -> None:
        """Give names their types, as far as these are known here; those that have one keep it."""
        for name, kind in kinds.items():
            for known, column in _COLUMNS.items():
                if kind == known and name not in self._columns:
                    self._columns[name] = column(self._rows)
                    self.version += 1

    def column(self, name: str) -> Column | None:
        """The column of a name, None if no item ever had it."""
        return self._columns.get(name)

    def value(self, row: int, name: str) -> Value | None:
        """What a row has under a name, None if nothing; numbers come back as floats."""
        column = self._columns.get(name)
        return column.value(row) if column is not None else None

    def grow(self, rows: int) -> None:
        """Have at least so many rows; new ones have no attributes."""
        if rows <= self._rows:
            return
        for column in self._columns.values():
            column.grow(rows)
        self._rows = rows
        self.version += 1

    def set(self, row: int, attributes: Mapping[str, Value]) -> None:
        """Replace all attributes of a row, which may lie behind the last one.

        Raises:
            InvalidRequestError: as `check`; nothing has changed then.
        """
        assert row >= 0
        self.check(attributes)
        self.grow(row + 1)
        for name, column in self._columns.items():
            if name not in attributes:
                column.drop(row)
        for name, value in attributes.items():
            if name not in self._columns:
                self._columns[name] = _COLUMNS[_kind(value)](self._rows)
            self._columns[name].put(row, value)
        self.version += 1

    def clear(self, row: int) -> None:
        """Take all attributes of a row away."""
        self.set(row, {})

    def check(self, attributes: Mapping[str, Value]) -> None:
        """Do nothing if `set` would take these.

        Raises:
            InvalidRequestError: a name or a value is out of bounds, or a value is of another type than its name. Every such
                attribute is among the errors.
        """
        errors = {name: message for name, value in attributes.items() if (message := self._wrong(name, value)) is not None}
        if len(attributes) > MAX_ATTRIBUTES:
            errors[""] = f"an item has at most {MAX_ATTRIBUTES} attributes; these are {len(attributes)}"
        new = [name for name in attributes if name not in self._columns and name not in errors]
        if len(self._columns) + len(new) > MAX_NAMES:
            for name in new[max(0, MAX_NAMES - len(self._columns)) :]:
                errors[name] = f"there are {MAX_NAMES} different names of attributes already, and this is one more"
        if errors:
            fields = [(_field(name), message) for name, message in list(errors.items())[:MAX_ATTRIBUTES]]
            detail = "; ".join(f"{field}: {message}" for field, message in fields[:3])
            raise InvalidRequestError(detail, [{"field": field, "message": message} for field, message in fields])

    def _wrong(self, name: str, value: Value) -> str | None:
        """What is wrong with an attribute."""
        if name in BUILT_IN:
            return f"the name is taken: every item has its {_list(BUILT_IN)}"
        if not is_name(name):
            return f"a name has 1 to {MAX_NAME} printable characters, no backtick, and no space at an end"
        kind = _kind_or_none(value)
        if kind is None:
            return f"must be a string, a number, true, false or a list of strings, not {_what(value)}"
        column = self._columns.get(name)
        if column is not None and column.kind != kind:
            return f"`{name}` is {_AS_WORDS[column.kind]} for every item; this value is {_AS_WORDS[kind]}"
        if kind == "number" and not _is_finite(cast(float, value)):
            return "must be a finite number"
        if kind == "string" and len(cast(str, value)) > MAX_STRING:
            return f"a string has at most {MAX_STRING} characters; this one has {len(cast(str, value))}"
        if kind == "list":
            entries = cast("list[str]", value)
            if len(entries) > MAX_ENTRIES:
                return f"a list has at most {MAX_ENTRIES} entries; this one has {len(entries)}"
            longest = max(map(len, entries), default=0)
            if longest > MAX_STRING:
                return f"an entry of a list has at most {MAX_STRING} characters; one here has {longest}"
        return None


def kinds_of(attributes: Mapping[str, Value]) -> dict[str, Kind]:
    """The types that values would give their names; they must have passed `check`."""
    return {name: _kind(value) for name, value in attributes.items()}


def is_name(name: str) -> bool:
    """Whether an attribute can be called that; a filter can then name it, in backticks if not without."""
    return 1 <= len(name) <= MAX_NAME and name.isprintable() and "`" not in name and name == name.strip()


_AS_WORDS: Final[Mapping[Kind, str]] = {"string": "a string", "number": "a number", "boolean": "true or false", "list": "a list"}


def _kind_or_none(value: object) -> Kind | None:
    match value:
        case bool():  # before the numbers, of which Python thinks it is one
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list() | tuple() if all(isinstance(entry, str) for entry in value):
            return "list"
    return None


def _kind(value: Value) -> Kind:
    kind = _kind_or_none(value)
    assert kind is not None
    return kind


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _what(value: object) -> str:
    if value is None:
        return "null"
    return "a list with other entries" if isinstance(value, list | tuple) else "an object"


def _field(name: str) -> str:
    return f"attributes.{name[:MAX_NAME]}" if name else "attributes"


def _list(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}"
