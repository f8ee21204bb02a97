"""Filters over item attributes: a text is parsed once, bound to a request's values, and asked for all items in one go.

docs/filters.md describes the language. A missing value makes every comparison false, also `!=`; `not` turns a result around,
whatever it came from.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Final, NoReturn, Protocol, cast

import numpy as np

from app.catalogue.columns import Column, Kind, Mask, OrderedColumn, Scalar
from app.errors import FilterError
from app.recommend import filter_text
from app.recommend.filter_text import (
    AS_WORDS,
    MAX_VALUES,
    Constant,
    Junction,
    Leaf,
    Node,
    Not,
    Operator,
    Reference,
    Tree,
    kind_of,
    shown,
    words,
)

_OPERATORS: Final[Mapping[Kind, tuple[Operator, ...]]] = {
    "string": ("=", "!=", "in"),
    "number": ("=", "!=", "<", "<=", ">", ">=", "in"),
    "boolean": ("=", "!=", "in"),
    "list": ("contains", "in"),
}
_MOST_NAMED: Final = 20  # attributes that an error lists
_CONDITION_BYTES: Final = 500  # about what one takes in memory, its values not counted

Fields = Mapping[str, object]  # of a user, of a request's context, or its parameters: parsed JSON


class Columns(Protocol):
    """The attributes of N items by name, the built-in ones (`id`, `categories`, `title`) among them; every column has N rows.

    `version` is another one whenever any answer may be.
    """

    @property
    def version(self) -> int: ...

    def __len__(self) -> int: ...

    def kinds(self) -> Mapping[str, Kind]: ...

    def column(self, name: str) -> Column | None: ...


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter as written.

    Attributes:
        names: attributes that it compares.
        parameters: names that must be among the parameters of a request.
        fields: fields of the user and of the context that it reads, such as "user.age".
        comparisons: how many there are.
    """

    text: str
    root: Node
    names: frozenset[str]
    parameters: frozenset[str]
    fields: frozenset[str]
    comparisons: int

    def bind(self, parameters: Fields, user: Fields, context: Fields) -> BoundFilter:
        """The filter with the values of one request in it.

        Raises:
            FilterError: a parameter is not there, or a value cannot stand where it is used.
        """
        values: Mapping[str, Fields] = {"$": parameters, "user.": user, "context.": context}
        return BoundFilter(_bound(self.root, values))


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison with its values: one, or several for `in`; None if they are missing. `kind` is None if there are none.

    Where it stands in the text plays no part in whether two are equal.
    """

    name: str
    operator: Operator
    kind: Kind | None  # True == 1 == 1.0, but they are not the same condition
    values: tuple[Scalar, ...] | None
    position: int = field(compare=False)
    operator_position: int = field(compare=False)
    value_position: int = field(compare=False)
    value_as_written: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class BoundFilter:
    """A filter that asks for the same items whenever it is equal, and the attributes are."""

    root: Tree[Condition]

    @property
    def nbytes(self) -> int:
        """Memory, roughly."""
        conditions = list(_leaves(self.root))
        return _CONDITION_BYTES * len(conditions) + sum(
            sys.getsizeof(value) for condition in conditions for value in condition.values or ()
        )

    def check(self, columns: Columns) -> None:
        """Do nothing if the items can answer.

        Raises:
            FilterError: there is no such attribute, or it is of a type that cannot be compared like that.
        """
        for condition in _leaves(self.root):
            _check(condition, columns)

    def mask(self, columns: Columns) -> Mask:
        """(N,) which items pass. Raises FilterError as `check`."""
        self.check(columns)
        return _mask(self.root, columns)


class Masks:
    """The masks of the filters that were asked for last, as long as the attributes do not change."""

    def __init__(self, columns: Columns, limit_bytes: int = 64 * 2**20) -> None:
        self._columns = columns
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[BoundFilter, tuple[int, Mask, int]] = OrderedDict()  # version, mask, bytes of both
        self.nbytes = 0

    def of(self, bound: BoundFilter) -> Mask:
        """(N,) which items pass; not to be written into. Raises FilterError as `BoundFilter.mask`."""
        version = self._columns.version
        held = self._held.get(bound)
        if held is not None and held[0] == version:
            self._held.move_to_end(bound)
            return held[1]
        mask = bound.mask(self._columns)
        mask.flags.writeable = False
        if held is not None:
            self.nbytes -= self._held.pop(bound)[2]
        size = mask.nbytes + bound.nbytes
        self._held[bound] = (version, mask, size)
        self.nbytes += size
        while self.nbytes > self._limit_bytes:
            _, (_, _, freed) = self._held.popitem(last=False)
            self.nbytes -= freed
        return mask


def parse(text: str) -> Filter:
    """A filter from its text.

    Raises:
        FilterError: where it stops making sense, and what could have stood there.
    """
    root = filter_text.parse(text)
    comparisons = list(_leaves(root))
    references = [
        operand
        for comparison in comparisons
        for operand in (comparison.operand if isinstance(comparison.operand, tuple) else (comparison.operand,))
        if isinstance(operand, Reference)
    ]
    return Filter(
        text,
        root,
        frozenset(comparison.name for comparison in comparisons),
        frozenset(reference.name for reference in references if reference.source == "$"),
        frozenset(reference.source + reference.name for reference in references if reference.source != "$"),
        len(comparisons),
    )


def _leaves(tree: Tree[Leaf]) -> Iterator[Leaf]:
    if isinstance(tree, Junction):
        for part in tree.parts:
            yield from _leaves(part)
    elif isinstance(tree, Not):
        yield from _leaves(tree.part)
    else:
        yield tree


def _bound(tree: Node, fields: Mapping[str, Fields]) -> Tree[Condition]:
    if isinstance(tree, Junction):
        return Junction(tree.word, tuple(_bound(part, fields) for part in tree.parts))
    if isinstance(tree, Not):
        return Not(_bound(tree.part, fields))
    operand = tree.operand
    kind: Kind | None = None
    values: tuple[Scalar, ...] | None = None
    position, written = tree.operator_position, "()"
    if isinstance(operand, tuple):
        found = [(one, value) for one in operand if (value := _value(one, fields)) is not None]
        if found:
            position, written = found[0][0].position, _as_written(found[0][0])
            kind = kind_of(found[0][1])
            for one, value in found:
                if kind_of(value) != kind:
                    _no_mixture(one.position, f"{AS_WORDS[kind_of(value)]} in {_as_written(one)}", kind)
        values = tuple(dict.fromkeys(value for _, value in found))
    else:
        position, written = operand.position, _as_written(operand)
        if tree.operator == "in":
            values = _list(cast(Reference, operand), fields)
            kind = kind_of(values[0]) if values else None
        elif (value := _value(operand, fields)) is not None:
            values, kind = (value,), kind_of(value)
    return Condition(tree.name, tree.operator, kind, values, tree.position, tree.operator_position, position, written)


def _value(operand: Constant | Reference, fields: Mapping[str, Fields]) -> Scalar | None:
    """One value, None if a field is missing."""
    if isinstance(operand, Constant):
        return operand.value
    raw = _raw(operand, fields)
    if isinstance(raw, list | tuple):
        raise FilterError(operand.position, f"{operand}, which is a list", "one value; a list can stand behind `in` alone")
    return None if raw is None else _scalar(raw, operand)


def _list(reference: Reference, fields: Mapping[str, Fields]) -> tuple[Scalar, ...] | None:
    """Values of one type, None if a field is missing."""
    raw = _raw(reference, fields)
    if raw is None:
        return None
    if not isinstance(raw, list | tuple):
        raise FilterError(
            reference.position, f"{reference}, which is no list", "a list behind `in`; one value stands in parentheses"
        )
    if len(raw) > MAX_VALUES:
        raise FilterError(reference.position, f"{reference}, a list of {len(raw):,}", f"at most {MAX_VALUES:,} values in a list")
    if {str}.issuperset(map(type, raw)):  # ids, mostly, and many of them
        return tuple(dict.fromkeys(raw))
    values = [_scalar(value, reference) for value in raw]
    for value in values:
        if kind_of(value) != kind_of(values[0]):
            _no_mixture(reference.position, f"{AS_WORDS[kind_of(value)]} in {reference}", kind_of(values[0]))
    return tuple(dict.fromkeys(values))


def _raw(reference: Reference, fields: Mapping[str, Fields]) -> object:
    raw = fields[reference.source].get(reference.name)
    if raw is None and reference.source == "$":
        raise FilterError(reference.position, f"{reference}, which was not given", f"`{reference.name}` among the parameters")
    return raw


def _scalar(raw: object, reference: Reference) -> Scalar:
    match raw:
        case bool() | str():
            return raw
        case int() | float() if abs(raw) <= sys.float_info.max:  # also false for NaN
            return float(raw)
    wrong = "null" if raw is None else "a number out of bounds" if isinstance(raw, int | float) else "a list or an object"
    raise FilterError(reference.position, f"{wrong} in {reference}", "a string, a finite number, `true` or `false`")


def _no_mixture(position: int, found: str, kind: Kind) -> NoReturn:
    raise FilterError(position, found, f"{AS_WORDS[kind]}, as the values before: a list has values of one type")


def _as_written(operand: Constant | Reference) -> str:
    if isinstance(operand, Reference):
        return str(operand)
    match operand.value:
        case bool():
            return f"`{str(operand.value).lower()}`"
        case str():
            return f"the string `{shown(operand.value)}`"
    return f"the number `{operand.value:.17g}`"


def _check(condition: Condition, columns: Columns) -> Column:
    column = columns.column(condition.name)
    if column is None:
        _unknown(condition, columns)
    name = f"`{shown(condition.name)}`"
    if condition.operator not in _OPERATORS[column.kind]:
        found = f"`{condition.operator}` behind {name}, which is {AS_WORDS[column.kind]}"
        raise FilterError(condition.operator_position, found, words(_OPERATORS[column.kind]))
    kind = "string" if column.kind == "list" else column.kind
    if condition.kind not in (None, kind):
        found = condition.value_as_written
        if condition.kind is not None and found.startswith(("`$", "`user.", "`context.")):
            found += f", which is {AS_WORDS[condition.kind]}"
        what = "a list of strings" if column.kind == "list" else AS_WORDS[kind]
        raise FilterError(condition.value_position, found, f"{AS_WORDS[kind]}, since {name} is {what}")
    return column


def _unknown(condition: Condition, columns: Columns) -> NoReturn:
    wanted = condition.name[:64].casefold()

    def distance(name: str) -> tuple[float, str]:
        return -SequenceMatcher(None, name.casefold(), wanted).ratio(), name

    names = sorted(columns.kinds(), key=distance)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    known = ", ".join(f"`{name}`" for name in names[:_MOST_NAMED]) + more if names else "none yet"
    raise FilterError(condition.position, f"`{shown(condition.name)}`", f"an attribute that items have: {known}")


def _mask(tree: Tree[Condition], columns: Columns) -> Mask:
    if isinstance(tree, Not):
        mask = _mask(tree.part, columns)
        return np.logical_not(mask, out=mask)
    if isinstance(tree, Junction):
        mask = _mask(tree.parts[0], columns)
        join = np.logical_and if tree.word == "and" else np.logical_or
        for part in tree.parts[1:]:
            join(mask, _mask(part, columns), out=mask)
        return mask
    if not tree.values:
        return np.zeros(len(columns), np.bool_)
    column = columns.column(tree.name)
    assert column is not None
    match tree.operator:
        case "=" | "in" | "contains":
            return column.any_of(tree.values)
        case "!=":
            mask = column.present()
            mask &= ~column.any_of(tree.values)
            return mask
        case order:
            return cast(OrderedColumn, column).ordered(order, cast(float, tree.values[0]))
