"""What a report has: rates of arms, comparisons with the control, checks, and what a reader must know beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from app.archive.experiment.statistics import Difference, Estimate

MISMATCH: Final = 0.001
"""Below this p-value of the sample-ratio check no comparison counts."""

MEASURES: Final = {
    "lists": "share of the shown lists of which at least one item led to it",
    "per_user": "items that led to it, per user",
    "users": "share of the users with at least one",
}
"""What is compared."""


@dataclass(frozen=True, slots=True)
class ArmReport:
    """An arm. All but `lists_without_user` and `events` is of the users of this arm alone.

    Attributes:
        lists_without_user: were shown to nobody who was named, and count for nothing.
        events: how many events name a list of the arm, by what became of them: one of `FATES`.
        counts: by metric, `lists` and `items` that led to it.
        rates: by metric, `MEASURES` and `items`, the share of the shown items.
    """

    name: str
    users: int
    lists: int
    items: int
    lists_without_user: int
    events: dict[str, int]
    counts: dict[str, dict[str, int]]
    rates: dict[str, dict[str, Estimate]]


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """An arm against the control; `p_holm` holds for all comparisons of the report together."""

    arm: str
    metric: str
    measure: str
    control: float | None
    value: float | None
    against: Difference
    p_holm: float | None


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Users by arm against their shares; `mismatch`: they do not fit, so that no comparison counts."""

    origin: str
    expected: dict[str, float]
    observed: dict[str, int]
    chi_square: float
    degrees: int
    p: float
    mismatch: bool


@dataclass(frozen=True, slots=True)
class OffPolicy:
    """What the click-through per shown item would be under a policy, of an arm's lists that came with propensities.

    Attributes:
        policy: `greedy`, without exploration, or `target`, the policy of the file.
        logged: as it was. ips, clipped_ips, snips: as it would be; `greedy` clips nothing.
        mean_weight: near 1 where whatever the target shows could have been shown; for `greedy` the share of places not explored.
        effective_items: so many equally weighted items would tell as much.
    """

    arm: str
    policy: str
    metric: str
    users: int
    lists: int
    items: int
    drawn: int
    logged: Estimate
    ips: Estimate
    clipped_ips: Estimate | None
    snips: Estimate
    mean_weight: Estimate
    effective_items: float


@dataclass(slots=True)
class Report:
    """All that there is to say; times in unix ms.

    Attributes:
        all_versions: those in the archive; `versions` are in the report.
        control_from: why this arm is the control.
        users_of_other_arms_before: are compared, and saw lists of another arm under a version that is not in the report.
    """

    experiment: str
    versions: list[int]
    all_versions: list[int]
    since_ms: int | None
    until_ms: int | None
    window_ms: int
    clip: float
    metrics: list[str]
    control: str
    control_from: str
    sample_ratio: SampleRatio | None
    users_in_several_arms: int
    lists_of_users_in_several_arms: int
    users_of_other_arms_before: int
    repeated_impressions: int
    repeated_events: int
    lists_outside_time: int
    events_by_type: dict[str, int]
    arms: list[ArmReport]
    comparisons: list[ComparisonReport]
    off_policy: list[OffPolicy]
    notes: list[str] = field(default_factory=list)
