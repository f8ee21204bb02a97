"""The filter language as text: what it says, as a tree, or where it stops making sense and what could have stood there.

    either     = both ("or" both)*
    both       = negation ("and" negation)*
    negation   = "not" negation | "(" either ")" | comparison
    comparison = ["item" "."] name operator value  |  name "contains" value  |  name "in" (list | reference)
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">="
    list       = "(" [value ("," value)*] ")"  |  "[" ... "]"
    value      = string | number | "true" | "false" | reference
    reference  = "$"name | "user" "." name | "context" "." name

By hand, not with a parser generator: what was expected must be said in a caller's words, and the bounds kept while reading; with
`lark` the same tables of words would stand beside its grammar, as long as this file and a dependency more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, NamedTuple, NoReturn, TypeAlias, TypeVar, cast

from app.catalogue.columns import Kind, Scalar
from app.errors import FilterError

MAX_LENGTH: Final = 4_096  # characters of an expression
MAX_NESTING: Final = 32  # parentheses and `not`s within one another
MAX_VALUES: Final = 1_000  # of a list
MAX_COMPARISONS: Final = 200

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "in", "contains"]
Source = Literal["$", "user.", "context."]
Leaf = TypeVar("Leaf")


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that stands in the text."""

    value: Scalar
    position: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Reference:
    """A value that comes with each request."""

    source: Source
    name: str
    position: int = field(compare=False)

    def __str__(self) -> str:
        return f"`{self.source}{self.name}`"


@dataclass(frozen=True, slots=True)
class Comparison:
    """An attribute against a value, against a list, or (`in` alone) against a reference to one."""

    name: str
    operator: Operator
    operand: Constant | Reference | tuple[Constant | Reference, ...]
    position: int = field(compare=False)
    operator_position: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Not(Generic[Leaf]):
    part: Leaf | Not[Leaf] | Junction[Leaf]


@dataclass(frozen=True, slots=True)
class Junction(Generic[Leaf]):
    """Parts of which all must hold (`and`), or at least one (`or`)."""

    word: Literal["and", "or"]
    parts: tuple[Leaf | Not[Leaf] | Junction[Leaf], ...]


Tree: TypeAlias = "Leaf | Not[Leaf] | Junction[Leaf]"
Node: TypeAlias = "Tree[Comparison]"


def parse(text: str) -> Node:
    """The tree of an expression.

    Raises:
        FilterError: it is none, or out of bounds. Nothing else, whatever the text.
    """
    if len(text) > MAX_LENGTH:
        raise FilterError(MAX_LENGTH + 1, f"more ({len(text):,} characters)", f"at most {MAX_LENGTH:,} characters")
    return _Parser(text).whole()


class _Token(NamedTuple):
    kind: str
    text: str
    position: int  # from 0


_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string>'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")
      | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
      | (?P<quoted>`[^`]*`)
      | (?P<word>[^\W\d]\w*)
      | (?P<sign><=|>=|!=|[=<>(),.$]|\[|\])
      | (?P<end>\Z)
      | (?P<none>))""",  # matches always
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "t": "\t", "'": "'", '"': '"', "\\": "\\"}

_KEYWORDS: Final = frozenset(("and", "or", "not", "in", "contains", "true", "false"))
_END: Final = "end"
_LONGEST_ECHO: Final = 40  # characters of the caller's own words that an error repeats

_A_NAME: Final = "the name of an attribute (in backticks if it is a keyword or holds other characters)"
_A_CONDITION: Final = f"{_A_NAME}, `not` or `(`"
_AN_OPERATOR: Final = "`=`, `!=`, `<`, `<=`, `>`, `>=`, `in` or `contains`"
_A_REFERENCE: Final = "`$parameter`, `user.field` or `context.field`"
_A_VALUE: Final = f"a string in quotes, a number, `true`, `false`, {_A_REFERENCE}"


class _Parser:
    """Reads token by token, so that an error is the first thing that is wrong."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._nesting = 0
        self._comparisons = 0
        self._token = _Token(_END, "", 0)
        self._advance()

    def whole(self) -> Node:
        node = self._junction("or")
        if self._token.kind != _END:
            self._wrong("`and`, `or` or the end")
        return node

    def _advance(self) -> _Token:
        """Go on to the next token; the one before is returned."""
        before = self._token
        match = _TOKEN.match(self._text, before.position + len(before.text))
        assert match is not None
        kind = cast(str, match.lastgroup)
        text, start = match[kind], match.start(kind)
        if kind == "sign":
            kind = text
        elif kind == "word" and text.lower() in _KEYWORDS:
            kind = text.lower()
        elif kind == "none":
            text = self._text[start]
        self._token = _Token(kind, text, start)
        return before

    def _wrong(self, expected: str, token: _Token | None = None) -> NoReturn:
        token = token or self._token
        raise FilterError(token.position + 1, _found(token), expected)

    def _nest(self) -> None:
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise FilterError(
                self._token.position + 1, "one more", f"at most {MAX_NESTING} parentheses and `not`s within one another"
            )

    def _junction(self, word: Literal["and", "or"]) -> Node:
        parts = []
        while True:
            parts.append(self._junction("and") if word == "or" else self._negation())
            if self._token.kind != word:
                return Junction(word, tuple(parts)) if len(parts) > 1 else parts[0]
            self._advance()

    def _negation(self) -> Node:
        node: Node
        if self._token.kind == "not":
            self._nest()
            self._advance()
            node = Not(self._negation())
        elif self._token.kind == "(":
            self._nest()
            self._advance()
            node = self._junction("or")
            if self._token.kind != ")":
                self._wrong("`and`, `or` or `)`")
            self._advance()
        else:
            return self._comparison()
        self._nesting -= 1
        return node

    def _comparison(self) -> Comparison:
        position = self._token.position + 1
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise FilterError(position, "one more", f"at most {MAX_COMPARISONS} comparisons; one with many values is `in`")
        name = self._attribute()
        token = self._advance()
        if token.kind not in ("=", "!=", "<", "<=", ">", ">=", "in", "contains"):
            # Other languages have it, and there it is false for a missing value, where `not (a in b)` is true.
            hint = f"; a negation stands in front: `not {name[:_LONGEST_ECHO]} in (...)`" if token.kind == "not" else ""
            self._wrong(_AN_OPERATOR + hint, token)
        operator = cast(Operator, token.kind)
        operand = self._operand() if operator == "in" else self._value()
        return Comparison(name, operator, operand, position, token.position + 1)

    def _attribute(self) -> str:
        if self._token.kind not in ("word", "quoted"):
            self._wrong(_A_CONDITION)
        first = self._advance()
        if first.kind == "word" and self._token.kind == ".":
            if first.text in ("user", "context"):
                self._wrong(f"{_A_CONDITION}; the fields of {first.text} stand on the right of a comparison", first)
            if first.text != "item":
                self._wrong(f"{_AN_OPERATOR}; a name with a dot in it stands in backticks")
            self._advance()
            return self._name(_A_NAME)
        return _name(first)

    def _name(self, expected: str) -> str:
        if self._token.kind not in ("word", "quoted"):
            self._wrong(expected)
        return _name(self._advance())

    def _operand(self) -> Reference | tuple[Constant | Reference, ...]:
        """What stands behind `in`."""
        if self._token.kind not in ("(", "["):
            return self._reference() or self._wrong(f"a list, as `(1, 2)` or `['a', 'b']`, {_A_REFERENCE}")
        end = ")" if self._advance().kind == "(" else "]"
        values: list[Constant | Reference] = []
        if self._token.kind == end:
            self._advance()
            return ()
        kind: Kind | None = None
        while True:
            token = self._token
            if len(values) == MAX_VALUES:
                self._wrong(f"at most {MAX_VALUES:,} values in a list")
            value = self._value(f" or `{end}`" if not values else "")
            if isinstance(value, Constant):
                kind = kind or kind_of(value.value)
                if kind_of(value.value) != kind:
                    self._wrong(f"{AS_WORDS[kind]}, as the values before: a list has values of one type", token)
            values.append(value)
            if self._token.kind not in (",", end):
                self._wrong(f"`,` or `{end}`")
            if self._advance().kind == end:
                return tuple(values)

    def _value(self, instead: str = "") -> Constant | Reference:
        token, position = self._token, self._token.position + 1
        match token.kind:
            case "string":
                self._advance()
                return Constant(_unescaped(token), position)
            case "number":
                self._advance()
                number = float(token.text)
                if number in (float("inf"), float("-inf")):
                    self._wrong("a number below 1.8e308", token)
                return Constant(number, position)
            case "true" | "false":
                self._advance()
                return Constant(token.kind == "true", position)
        expected = _or(_A_VALUE, instead)
        if token.text in ("'", '"'):
            raise FilterError(position, "a string without an end", f"a closing {token.text} behind it")
        return self._reference() or self._wrong(expected)

    def _reference(self) -> Reference | None:
        """A reference, None if there is nothing like one."""
        start = self._token
        if start.kind == "$":
            self._advance()
            if self._token.position != start.position + 1 or self._token.kind not in ("word", *_KEYWORDS):
                self._wrong("the name of a parameter, right behind `$`")
            return Reference("$", self._advance().text, start.position + 1)
        if start.kind == "word" and start.text in ("user", "context"):
            self._advance()
            if self._token.kind != ".":
                self._wrong(f"`.` and the name of a field of {start.text}")
            self._advance()
            name = self._name(f"the name of a field of {start.text} (in backticks if it is a keyword or holds other characters)")
            return Reference("user." if start.text == "user" else "context.", name, start.position + 1)
        return None


AS_WORDS: Final = {"string": "a string", "number": "a number", "boolean": "`true` or `false`", "list": "a list"}


def kind_of(value: Scalar) -> Kind:
    match value:
        case bool():
            return "boolean"
        case str():
            return "string"
    return "number"


def shown(text: str) -> str:
    """A caller's own words, as far as an error repeats them, and as Unicode that can be sent."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= _LONGEST_ECHO else f"{text[: _LONGEST_ECHO - 3]}..."


def words(some: Sequence[str]) -> str:
    """`a`, `b` or `c`."""
    quoted = [f"`{word}`" for word in some]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _or(expected: str, more: str) -> str:
    return expected.replace(" or ", ", ") + more if more else expected


def _found(token: _Token) -> str:
    if token.kind == _END:
        return "the end"
    if token.text == "`":
        return "a backtick that no other one closes"
    return shown(token.text) if token.kind in ("string", "quoted") else f"`{shown(token.text)}`"


def _name(token: _Token) -> str:
    if token.kind == "word":
        return token.text
    if token.text == "``":
        raise FilterError(token.position + 1, "an empty name", _A_NAME)
    return token.text[1:-1]


def _unescaped(token: _Token) -> str:
    def replaced(match: re.Match[str]) -> str:
        code, character = match.groups()
        if code is not None and not 0xD800 <= int(code, 16) < 0xE000:  # half a character; whole ones need no escape
            return chr(int(code, 16))
        if character not in _ESCAPED:
            escapes = r"`\'`, `\"`, `\\`, `\n`, `\t` or `\u` with the four hexadecimal digits of a character"
            raise FilterError(token.position + 2 + match.start(), f"`{shown(match.group())}`", escapes)
        return _ESCAPED[character]

    return _ESCAPE.sub(replaced, token.text[1:-1])
