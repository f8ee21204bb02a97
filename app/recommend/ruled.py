"""Rules put to work for one user: which items are out, what is added to scores, and what the list must be like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.catalogue.catalogue import Bool, Catalogue, Float32
from app.catalogue.fields import ItemFields
from app.catalogue.popularity import LivePopularity
from app.errors import InvalidRequestError
from app.recommend.filters import Masks
from app.recommend.rules import DAY_S, Boost, Cap, Leanings, Pin, Rows, Rules, Shown, additive_bias, prominence_of, youth_of
from app.recommend.ruleset import RuleSet, parse
from app.state.shown import Showing


@dataclass(frozen=True, slots=True)
class Ruled:
    """The rules of one question, as rows.

    Attributes:
        rules: what the list must be like.
        eligible: (N,) what the filters let through; None if that is everything.
        bias: (N,) what is added to scores; None if that is nothing.
    """

    rules: Rules
    eligible: Bool | None
    bias: Float32 | None

    @property
    def added(self) -> Float32 | None:
        """(N,) both in one: -inf where an item is not eligible."""
        if self.eligible is None:
            return self.bias
        bias = np.float32(0) if self.bias is None else self.bias
        return np.where(self.eligible, bias, np.float32(-np.inf))


@dataclass(frozen=True, slots=True)
class Given:
    """What the filters of a request may read beside items: its parameters and context, and the user's attributes; and what the
    user was shown."""

    parameters: Mapping[str, object] = field(default_factory=dict)
    user: Mapping[str, object] = field(default_factory=dict)
    context: Mapping[str, object] = field(default_factory=dict)
    shown: Sequence[Showing] = ()


class RuleBook:
    """Turns rules into rows of one model's catalogue.

    Args:
        spread: standard deviation of a user's scores under the model: the unit of influences.
    """

    def __init__(self, catalogue: Catalogue, popularity: LivePopularity, spread: float) -> None:
        self._catalogue = catalogue
        self._popularity = popularity
        self._fields = ItemFields(catalogue)
        self._masks = Masks(self._fields)
        self._spread = spread

    def resolve(self, asked: RuleSet, given: Given, k: int, as_of_ms: int) -> Ruled:
        """The rules for one user at a moment.

        Raises:
            FilterError: a filter asks for what items do not have, or a parameter is missing.
            InvalidRequestError: a cap on an attribute that no item has.
        """
        eligible = None
        for text in asked.filters:
            mask = self._mask(text, given)
            eligible = mask if eligible is None else eligible & mask
        leanings = Leanings(
            [Boost(self._mask(boost.filter, given), boost.factor) for boost in asked.boosts],
            freshness=asked.freshness or 0.0,
            popularity=asked.popularity or 0.0,
            rotation=asked.rotation or 0.0,
            rotation_half_life_s=float(asked.rotation_half_life_s or DAY_S),
            shown=self._shown(given.shown, as_of_ms) if asked.rotation else (),
        )
        youth = prominence = None
        if leanings.freshness:
            half_life_s = float(asked.freshness_half_life_s or leanings.freshness_half_life_s)
            youth = youth_of(self._catalogue.born_ms, as_of_ms, half_life_s)
        if leanings.popularity:
            longest = int(np.argmax(self._popularity.half_lives_s))
            prominence = prominence_of(self._popularity.at(as_of_ms)[:, longest])
        rules = Rules(
            k,
            [Pin(pin.item_id, self._catalogue.row(pin.item_id), pin.position) for pin in asked.pins],
            [Cap(cap.attribute, cap.most, self._groups(cap.attribute)) for cap in asked.caps],
            asked.diversity or 0.0,
            -np.inf if asked.min_score is None else asked.min_score,
        )
        bias = additive_bias(leanings, len(self._catalogue), self._spread, youth=youth, prominence=prominence)
        return Ruled(rules, eligible, bias)

    def _mask(self, text: str, given: Given) -> Bool:
        return self._masks.of(parse(text).bind(given.parameters, given.user, given.context))

    def _shown(self, showings: Sequence[Showing], as_of_ms: int) -> list[Shown]:
        """The showings of items that are known, as far as they were before that moment."""
        before = [one for one in showings if one.at_s * 1000 <= as_of_ms]
        rows = self._catalogue.rows_of_keys(np.asarray([one.key for one in before], np.int64)).tolist()
        return [Shown(row, 1, as_of_ms / 1000 - one.at_s) for row, one in zip(rows, before, strict=True) if row >= 0]

    def _groups(self, attribute: str) -> _Groups:
        if attribute not in self._fields.kinds():
            names = ", ".join(sorted(self._fields.kinds())[:20])
            message = f"no item has an attribute {attribute!r}; there are {names}"
            raise InvalidRequestError(f"caps: {message}", [{"field": "caps", "message": message}])
        return _Groups(self._fields, attribute)


class _Groups:
    """The values of an attribute as codes, given out as they are met: the same value, the same code, within one list."""

    def __init__(self, fields: ItemFields, attribute: str) -> None:
        self._fields = fields
        self._attribute = attribute
        self._codes: dict[object, int] = {}

    def __call__(self, rows: Rows) -> Rows:
        """(m,) rows -> (m, G) codes, -1 behind the end."""
        found: list[Sequence[int]] = [
            [self._codes.setdefault(value, len(self._codes)) for value in self._fields.values(self._attribute, row)]
            for row in rows.tolist()
        ]
        codes = np.full((len(found), max(map(len, found), default=1) or 1), -1, np.int64)
        for place, of_row in enumerate(found):
            codes[place, : len(of_row)] = of_row
        return codes
