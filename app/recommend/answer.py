"""What a recommendation looks like: the answer on the wire, documented for OpenAPI where it is defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app.recommend.experiment import HOLDOUT
from app.recommend.interests import Interest
from app.recommend.ruleset import NO_RULES, RuleSet
from app.state.shown import Showing


@dataclass(frozen=True, slots=True)
class Query:
    """One question: k items for a user ("" for nobody in particular) as of a moment (unix ms), asked from a platform.

    Attributes:
        among: rows that are to be put into order, all of them; None for the whole catalogue without what must not come back.
        exclude: ids of items that must not come back, known or not.
        listed: ids of items that lists before this one have, in the same answer; they must not come back either.
        shown: what the user was shown of late; filled in where the rules have such items sink.
        rules: what else the list must follow; `parameters` and `context` are what its filters read.
        scenario: where (some of) the rules come from.
        experiment: whose list it is.
        unserved: name of the experiment and of the arm whose list it would be, if the arm's model were open here.
        seed: of exploration.
        debug: ids of items of which the answer is to say why they are in the list or not.
        explain: by which account the answer is to say of each item what brought it; None for none.
    """

    tenant: str
    user_id: str
    k: int
    as_of_ms: int
    platform: str | None
    among: tuple[int, ...] | None = None
    exclude: Sequence[str] = ()
    listed: Sequence[str] = ()
    shown: Sequence[Showing] = ()
    rules: RuleSet = NO_RULES
    parameters: Mapping[str, object] | None = None
    context: Mapping[str, object] | None = None
    scenario: ScenarioName | None = None
    experiment: ExperimentArm | None = None
    unserved: tuple[str, str] | None = None
    debug: Sequence[str] = ()
    seed: int = 0
    explain: Literal["quick", "exact"] | None = None

    @property
    def held_out(self) -> bool:
        """Whether the popular items are the answer, whatever the model would say."""
        return self.experiment is not None and self.experiment.arm == HOLDOUT


class ScenarioName(msgspec.Struct, frozen=True):
    """A scenario, as of one of its versions."""

    name: str
    version: int


class ExperimentArm(msgspec.Struct, frozen=True):
    """An arm of an experiment, as of one of its versions."""

    name: Annotated[str, Meta(description="Of the experiment.")]
    version: int
    arm: Annotated[str, Meta(description="`holdout` for who is held out.")]


Reason = Literal["unknown_user", "storage_unavailable", "overloaded", "holdout"]


class PastEvent(msgspec.Struct, frozen=True):
    """Something that the user did, and how much it speaks for an item."""

    type: Annotated[str | None, Meta(description="Null for one that is remembered as the last time the user had the item.")]
    time: datetime
    item_id: str | None
    title: Annotated[str | None, Meta(description="Title of the item, if this model knows it.")]
    text: str | None
    weight: Annotated[
        float,
        Meta(
            description="With `explain=true` its share of all that speaks for the item, at most 1; with `explain=exact` what the "
            "item's score would lose without the event."
        ),
    ]


class Explanation(msgspec.Struct, frozen=True):
    """What brought an item."""

    why: Annotated[
        Literal["events", "together", "earlier", "popular", "pinned"],
        Meta(
            description="`events`: these ones. `together` (of `explain=exact`): none of the events that were looked at by "
            "itself, but all of them. `earlier`: what the user did before those. `popular`: nothing that the user did. "
            "`pinned`: a rule."
        ),
    ]
    text: Annotated[str, Meta(description="A sentence to be shown, without its full stop.", examples=["Because you bought X"])]
    events: Annotated[list[PastEvent], Meta(description="At most 5, the one that speaks most for the item first.")]
    interests: Annotated[list[Interest], Meta(description="Interests of the user that the item is about, strongest first.")]


class RecommendedItem(msgspec.Struct, frozen=True):
    """One item of a list, best first."""

    item_id: str
    score: Annotated[float, Meta(description="Comparable within one list only.")]
    title: str | None
    explanation: Annotated[Explanation | UnsetType, Meta(description="What brought the item, if `explain` was asked for.")] = (
        UNSET
    )


class RuleGaveWay(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule that could not be kept."""

    rule: Annotated[
        Literal["pin", "k", "exclude_had"],
        Meta(
            description="A pin that is not in its place, a list of fewer than k items, or one that may hold what the user had, "
            "since storage is away."
        ),
    ]
    reason: str
    item_id: str | None = None
    position: int | None = None
    caps: tuple[str, ...] = ()
    missing: Annotated[int, Meta(description="Items that the list has less than k.")] = 0


class ExploredItem(msgspec.Struct, frozen=True):
    """An item that stands in the list because it was drawn by chance."""

    item_id: str
    position: int
    propensity: Annotated[float, Meta(description="How likely it was to be drawn, after those before it in the list.")]


class Explored(msgspec.Struct, frozen=True):
    """What exploration did to a list; with the same `seed` it does the same again."""

    seed: int
    items: list[ExploredItem]


class ItemDebug(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an item is in the list, or is not."""

    item_id: str
    what: Annotated[
        str,
        Meta(
            description="In the list: `pinned` or `chosen`. Not in it: `unknown`, `unavailable`, `without_vector` (the model "
            "does not know it yet), `excluded`, `listed` (in a list before this one), `had`, `filtered`, `capped`, `diversity`, "
            "`below_min_score`, `behind` or `not_reached` (enough others are better), `not_eligible`."
        ),
    ]
    position: int | None = None
    rank: Annotated[int | None, Meta(description="Among all that may be in the list, by score.")] = None
    score: float | None = None
    cap: str | None = None


class Recommendations(msgspec.Struct, frozen=True):
    """The items that a user would want next, best first."""

    recommendation_id: Annotated[str, Meta(description="Send it with the events that this list leads to.")]
    user_id: Annotated[str | None, Meta(description="Null for a list from the events of the request alone.")]
    model_id: str
    source: Annotated[
        Literal["model", "fallback"],
        Meta(description="`fallback` is recent popularity, where something is known of the context (`fallback_context`) there."),
    ]
    reason: Annotated[Reason | None, Meta(description="Why the model was not asked; null if it was.")]
    degraded: Annotated[bool, Meta(description="True if the service could not do its best, such as while its storage is away.")]
    applied_events: Annotated[int, Meta(description="Events of the user that this list reflects.")]
    last_event_time: Annotated[datetime | None, Meta(description="Time of the latest of them.")]
    as_of: Annotated[datetime, Meta(description="The moment the question was asked for.")]
    items: list[RecommendedItem]
    scenario: Annotated[ScenarioName | UnsetType, Meta(description="Of a list under one.")] = UNSET
    experiment: Annotated[ExperimentArm | UnsetType, Meta(description="Whose list it is.")] = UNSET
    gave_way: Annotated[list[RuleGaveWay] | UnsetType, Meta(description="Rules that could not be kept.")] = UNSET
    explored: Annotated[Explored | UnsetType, Meta(description="Of a list under a rule of exploration.")] = UNSET
    debug: Annotated[list[ItemDebug] | UnsetType, Meta(description="Of the items that `debug` named.")] = UNSET
    fallback_context: Annotated[
        dict[str, str] | UnsetType,
        Meta(description="What popularity was asked for: `platform`, `country`, `category`, those of which something is known."),
    ] = UNSET


class NamedList(msgspec.Struct, frozen=True):
    """One of several lists."""

    name: str
    recommendation_id: Annotated[str, Meta(description="Send it with the events that this list leads to.")]
    items: list[RecommendedItem]
    scenario: ScenarioName | UnsetType = UNSET
    gave_way: list[RuleGaveWay] | UnsetType = UNSET
    explored: Explored | UnsetType = UNSET
    debug: list[ItemDebug] | UnsetType = UNSET


class SeveralLists(msgspec.Struct, frozen=True):
    """Lists for one user at one moment, in the order in which they were asked for; no item is in two of them. The fields beside
    `lists` are those of a single list, and true of each."""

    user_id: str | None
    model_id: str
    source: Literal["model", "fallback"]
    reason: Reason | None
    degraded: bool
    applied_events: int
    last_event_time: datetime | None
    as_of: datetime
    lists: list[NamedList]
    experiment: ExperimentArm | UnsetType = UNSET
    fallback_context: dict[str, str] | UnsetType = UNSET


class Ranking(Recommendations, frozen=True, kw_only=True):
    """The caller's items, the one that the user would want most first."""

    unknown_items: Annotated[list[str], Meta(description="Ids that this model does not know, or that are not available then.")]


class SimilarItem(msgspec.Struct, frozen=True):
    """An item that is like another one."""

    item_id: str
    similarity: Annotated[float, Meta(description="Cosine of the two items' vectors, at most 1.")]
    title: str | None


class Similar(msgspec.Struct, frozen=True):
    """The items that are most like one item, best first."""

    item_id: str
    title: str | None
    model_id: str
    items: list[SimilarItem]


def moment(unix_ms: int) -> datetime:
    """Unix milliseconds as UTC; what lies outside the years 1 to 9999 is brought to their edge."""
    return datetime.fromtimestamp(min(max(unix_ms, _FIRST_MS), _LAST_MS) / 1000, UTC)


_FIRST_MS = -62_135_596_800_000
_LAST_MS = 253_402_300_799_000
