"""Rules put to work for one user: which items are out, what is added to scores, and what the list must be like."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from app.catalogue.catalogue import Bool, Catalogue, Float32
from app.catalogue.fields import ItemFields
from app.catalogue.popularity import LivePopularity
from app.errors import FilterError, InvalidRequestError
from app.recommend.explore import Exploration, places_of
from app.recommend.filters import Masks
from app.recommend.rules import (
    DAY_S,
    Boost,
    Cap,
    Groups,
    Leanings,
    Pin,
    Rules,
    Shown,
    additive_bias,
    prominence_of,
    youth_of,
)
from app.recommend.ruleset import ExploreRule, RuleSet, parse
from app.state.shown import Showing

_LARGEST_SCORE: Final = float(np.finfo(np.float32).max)
_QUOTED: Final = 200  # characters of a filter
_MOST_GROUPS: Final = 16  # attributes under caps whose groups are held: up to 21 bytes an item each


@dataclass(frozen=True, slots=True)
class Ruled:
    """The rules of one question, as rows.

    Attributes:
        rules: what the list must be like.
        eligible: (N,) what the filters let through; None if that is everything.
        bias: (N,) what is added to scores; None if that is nothing.
        count: N, as of when the rules were resolved.
        exploration: what places of the list go to items of which little is known; None if none do.
    """

    rules: Rules
    eligible: Bool | None
    bias: Float32 | None
    count: int
    exploration: Exploration | None = None


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
        event_types: that the model knows.
    """

    def __init__(self, catalogue: Catalogue, popularity: LivePopularity, spread: float, event_types: Sequence[str]) -> None:
        self._catalogue = catalogue
        self._popularity = popularity
        self._fields = ItemFields(catalogue)
        self._masks = Masks(self._fields)
        self._spread = spread
        self._event_types = event_types
        self._young: tuple[object, Float32] = (None, np.empty(0, np.float32))
        self._prominent: tuple[object, Float32] = (None, np.empty(0, np.float32))
        self._little: tuple[object, object, Bool] = (None, None, np.empty(0, np.bool_))
        self._held: OrderedDict[str, tuple[int, Groups]] = OrderedDict()  # groups by attribute, and `changes` that they are of

    def resolve(self, asked: RuleSet, given: Given, k: int, as_of_ms: int, seed: int = 0) -> Ruled:
        """The rules for one user at a moment; `seed` is that of exploration.

        Raises:
            FilterError: a filter asks for what items do not have, or a parameter is missing.
            InvalidRequestError: a cap on an attribute that no item has, or an event type that the model does not know.
        """
        for had in asked.exclude_had or ():
            self._check_types(had.types or ())
        eligible = None
        for text in asked.filters:
            mask = self._mask(text, given, "rules.filters")
            eligible = mask if eligible is None else eligible & mask
        leanings = Leanings(
            [Boost(self._mask(boost.filter, given, "rules.boosts"), boost.factor) for boost in asked.boosts],
            freshness=asked.freshness or 0.0,
            popularity=asked.popularity or 0.0,
            rotation=asked.rotation or 0.0,
            rotation_half_life_s=float(asked.rotation_half_life_s or DAY_S),
            shown=self._shown(given.shown, as_of_ms) if asked.rotation else (),
        )
        half_life_s = float(asked.freshness_half_life_s or leanings.freshness_half_life_s)
        youth = self._youth(as_of_ms, half_life_s) if leanings.freshness else None
        prominence = self._prominence(as_of_ms) if leanings.popularity else None
        rules = Rules(
            k,
            [Pin(pin.item_id, self._catalogue.row(pin.item_id), pin.position) for pin in asked.pins],
            [Cap(cap.attribute, cap.most, self._groups(cap.attribute)) for cap in asked.caps],
            asked.diversity or 0.0,
            -np.inf if asked.min_score is None else float(np.clip(asked.min_score, -_LARGEST_SCORE, _LARGEST_SCORE)),
        )
        bias = additive_bias(leanings, len(self._catalogue), self._spread, youth=youth, prominence=prominence)
        exploration = self._exploration(asked.explore, k, as_of_ms, seed)
        return Ruled(rules, eligible, bias, len(self._catalogue), exploration)

    def _exploration(self, asked: ExploreRule | None, k: int, as_of_ms: int, seed: int) -> Exploration | None:
        places = places_of(asked.share, k) if asked is not None else 0
        if asked is None or not places:
            return None
        return Exploration(self._known_little(asked, as_of_ms), places, k, seed)

    def _known_little(self, asked: ExploreRule, as_of_ms: int) -> Bool:
        """(N,) what is new or hardly used, as of the second."""
        table = self._popularity.at(as_of_ms)
        key = (asked.new_for_s, asked.used_at_most, self._catalogue.changes)
        if self._little[0] is not table or self._little[1] != key:
            born_ms, longest = self._catalogue.born_ms, int(np.argmax(self._popularity.half_lives_s))
            second_ms = as_of_ms - as_of_ms % 1000
            known_little = (born_ms >= 0) & (born_ms < second_ms + 1000) & (born_ms > second_ms - asked.new_for_s * 1000)
            known_little |= table[:, longest] <= asked.used_at_most
            self._little = (table, key, known_little)
        return self._little[2]

    def _youth(self, as_of_ms: int, half_life_s: float) -> Float32:
        """As of the second, like popularity: the requests of one second share it."""
        second_ms = as_of_ms - as_of_ms % 1000
        key = (second_ms, half_life_s, self._catalogue.changes)
        if self._young[0] != key:
            self._young = (key, youth_of(self._catalogue.born_ms, second_ms, half_life_s))
        return self._young[1]

    def _prominence(self, as_of_ms: int) -> Float32:
        table = self._popularity.at(as_of_ms)  # the same array for all requests of a second
        if self._prominent[0] is not table:
            longest = int(np.argmax(self._popularity.half_lives_s))
            self._prominent = (table, prominence_of(table[:, longest]))
        return self._prominent[1]

    def _mask(self, text: str, given: Given, field: str) -> Bool:
        try:
            return self._masks.of(parse(text).bind(given.parameters, given.user, given.context))
        except FilterError as error:
            # Which one it is, its text says: it may be the scenario's, and have no place in the request.
            short = text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."
            error.errors = [{"field": field, "message": f"{error.detail} The filter is: {short}"}]
            raise

    def _check_types(self, types: Sequence[str]) -> None:
        for name in types:
            if name not in self._event_types:
                message = f"there is no event type {name!r}; the model knows {', '.join(self._event_types)}"
                raise InvalidRequestError(f"exclude_had: {message}", [{"field": "rules.exclude_had", "message": message}])

    def _shown(self, showings: Sequence[Showing], as_of_ms: int) -> list[Shown]:
        """The showings of items that are known, as far as they were before that moment."""
        before = [one for one in showings if one.at_s * 1000 <= as_of_ms]
        rows = self._catalogue.rows_of_keys(np.asarray([one.key for one in before], np.int64)).tolist()
        return [Shown(row, 1, as_of_ms / 1000 - one.at_s) for row, one in zip(rows, before, strict=True) if row >= 0]

    def _groups(self, attribute: str) -> Groups:
        if attribute not in self._fields.kinds():
            names = ", ".join(sorted(self._fields.kinds())[:20])
            message = f"no item has an attribute {attribute!r}; there are {names}"
            raise InvalidRequestError(f"caps: {message}", [{"field": "rules.caps", "message": message}])
        held, changes = self._held.pop(attribute, None), self._catalogue.changes
        if held is None or held[0] != changes:
            column = self._fields.column(attribute)
            assert column is not None
            held = (changes, column.groups())
        self._held[attribute] = held
        if len(self._held) > _MOST_GROUPS:
            self._held.popitem(last=False)
        return held[1]
