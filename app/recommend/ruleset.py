"""The rules that a request or a scenario names, as JSON: checked here, and put to work in `app.recommend.ruled`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.errors import FilterError, InvalidRequestError
from app.recommend import filters
from app.recommend.filter_text import MAX_COMPARISONS

_TEN_YEARS_S: Final = 315_360_000

Id = Annotated[str, Field(min_length=1, max_length=256)]

_MOST_TEXT: Final = 16_384  # characters of all filters: some 20 ms to read

UNREADABLE: Final = "filter"
"""The type of pydantic's error for a filter that cannot be read; its context has what a FilterError says."""

parse = lru_cache(512)(filters.parse)  # up to 100 KB each
"""`filters.parse`, remembered: the same few filters come again and again."""


def _readable(text: str) -> str:
    try:
        parse(text)
    except FilterError as error:
        said = {"detail": error.detail, "position": error.position, "found": error.found, "expected": error.expected}
        raise PydanticCustomError(UNREADABLE, "{detail}", said) from None
    return text


FilterText = Annotated[str, AfterValidator(_readable), Field(min_length=1, max_length=4_096, description="See docs/filters.md.")]
Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class PinRule(_Strict):
    """An item at a position of the list, the first being 1, whatever its score."""

    item_id: Id
    position: Annotated[int, Field(ge=1, le=1_000)]


class BoostRule(_Strict):
    """The items of a filter are so many times as likely as they would be; below 1 buries them."""

    filter: FilterText
    factor: Annotated[float, Field(ge=1e-6, le=1e6)]


class CapRule(_Strict):
    """At most so many items of each value of an attribute; `categories` and `id` are attributes too."""

    attribute: Annotated[str, Field(min_length=1, max_length=64)]
    most: Annotated[int, Field(ge=0, le=1_000)]


class HadRule(_Strict):
    """No item that the user had: in events of these types (all if not given), within so many seconds (ever if not given)."""

    types: Annotated[list[Id], Field(min_length=1, max_length=32)] | None = None
    within_s: Annotated[int, Field(ge=1, le=_TEN_YEARS_S)] | None = None


class ExploreRule(_Strict):
    """A share of the places goes to items of which little is known, drawn by chance among those that fit the user best."""

    share: Share
    new_for_s: Annotated[int, Field(ge=60, le=_TEN_YEARS_S)] = Field(
        14 * 86_400, description="An item is new for so long after it came (or after `available_from`)."
    )
    used_at_most: Annotated[float, Field(ge=0, le=1e9)] = Field(
        0.0, description="Also items that are used no more than this: their decayed count at the model's longest half-life."
    )


def check_length(some: Sequence[Any]) -> None:
    """Raises PydanticCustomError if the filters of some rules (parsed JSON of any kind) are too long together: to be asked
    before they are read, which is what takes the time."""
    length = 0
    for raw in some:
        if isinstance(raw, dict):
            filters, boosts = (found if isinstance(found := raw.get(name), list) else [] for name in ("filters", "boosts"))
            texts = [*filters, *(boost.get("filter") for boost in boosts if isinstance(boost, dict))]
            length += sum(len(text) for text in texts if isinstance(text, str))
    if length > _MOST_TEXT:
        said = {"length": length, "most": _MOST_TEXT}
        raise PydanticCustomError("filters", "all filters together have {length} characters; at most {most}", said)


class RuleSet(_Strict):
    """What a list must be like. What is left out rules nothing."""

    filters: Annotated[list[FilterText], Field(max_length=16)] = Field(
        [], description="Only items of which all of these are true."
    )
    exclude: Annotated[list[Id], Field(max_length=1_000)] = Field([], description="None of these.")
    exclude_had: Annotated[list[HadRule], Field(max_length=8)] | None = Field(
        None, description="Of what the user had. Not given: as the model's data says, all or nothing; an empty list: nothing."
    )
    boosts: Annotated[list[BoostRule], Field(max_length=32)] = []
    pins: Annotated[list[PinRule], Field(max_length=100)] = []
    caps: Annotated[list[CapRule], Field(max_length=8)] = []
    diversity: Share | None = Field(None, description="From 0, the best by score, to 1, the most different from each other.")
    freshness: Share | None = Field(None, description="How much young items are preferred, 0 to 1.")
    freshness_half_life_s: Annotated[int, Field(ge=60, le=_TEN_YEARS_S)] | None = Field(None, description="A week if not given.")
    popularity: Share | None = Field(None, description="How much popular items are preferred, beyond what the model gives them.")
    explore: ExploreRule | None = Field(None, description="Each answer says what was drawn, how likely it was, and the seed.")
    rotation: Share | None = Field(
        None, description="How far items sink that the user was shown of late (as `/v1/impressions` says), 0 to 1."
    )
    rotation_half_life_s: Annotated[int, Field(ge=60, le=_TEN_YEARS_S)] | None = Field(
        None, description="After which a showing counts half; a day if not given."
    )
    min_score: float | None = Field(None, description="No item below it. Scores are logits of the model.")

    @model_validator(mode="before")
    @classmethod
    def _not_too_long(cls, raw: Any) -> Any:
        check_length([raw])
        return raw

    @model_validator(mode="after")
    def _not_too_much(self) -> RuleSet:
        if self.comparisons > MAX_COMPARISONS:
            said = {"found": self.comparisons, "most": MAX_COMPARISONS}
            raise PydanticCustomError("filters", "filters and boosts make {found} comparisons together; at most {most}", said)
        return self

    @property
    def comparisons(self) -> int:
        """Of all filters, those of boosts among them."""
        return sum(parse(text).comparisons for text in self._texts())

    @property
    def read_user(self) -> bool:
        """Whether a filter, also one of a boost, reads an attribute of the user."""
        return any(map(reads_user, self._texts()))

    def _texts(self) -> list[str]:
        return [*self.filters, *(boost.filter for boost in self.boosts)]

    def under(self, scenario: RuleSet) -> RuleSet:
        """These rules of a request together with those of its scenario: both hold; where there can be one only, the request's.

        Raises:
            InvalidRequestError: that would be too many comparisons.
        """
        both: dict[str, Any] = {
            name: getattr(self, name) if name in self.model_fields_set else getattr(scenario, name) for name in _ONE
        }
        both |= {name: [*getattr(self, name), *getattr(scenario, name)] for name in _MANY}
        joined = RuleSet.model_construct(**both)
        if joined.comparisons > MAX_COMPARISONS:
            message = (
                f"filters and boosts make {joined.comparisons} comparisons together with those of the scenario; "
                f"at most {MAX_COMPARISONS}"
            )
            raise InvalidRequestError(f"rules: {message}", [{"field": "rules", "message": message}])
        return joined


_ONE: Final = (
    "exclude_had",
    "diversity",
    "freshness",
    "freshness_half_life_s",
    "popularity",
    "rotation",
    "rotation_half_life_s",
    "explore",
    "min_score",
)
_MANY: Final = ("filters", "exclude", "boosts", "pins", "caps")
NO_RULES: Final = RuleSet.model_validate({})


def rules_of(asked: RuleSet | None) -> RuleSet:
    """The rules of a request: `NO_RULES` itself, which cost nothing, where it says none."""
    return asked if asked is not None and asked.model_fields_set else NO_RULES


def reads_user(text: str) -> bool:
    """Whether a filter reads an attribute of the user."""
    return any(field.startswith("user.") for field in parse(text).fields)


def filtered_by(text: str) -> RuleSet:
    """A filter and nothing else. Raises FilterError."""
    parse(text)
    return NO_RULES.model_copy(update={"filters": [text]})
