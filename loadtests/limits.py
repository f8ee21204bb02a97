"""The figures that the service is judged by: what each must be, what we aim at, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal


@dataclass(frozen=True)
class Limit:
    """What a figure must be, and what it should be."""

    key: str
    sense: Literal[">=", "<="]
    must: float
    aim: float | None
    meaning: str

    def holds(self, value: float) -> bool:
        return self._within(value, self.must)

    def reaches_aim(self, value: float) -> bool:
        return self.aim is None or self._within(value, self.aim)

    def _within(self, value: float, bound: float) -> bool:
        return value >= bound if self.sense == ">=" else value <= bound

    def describe(self, value: float | None) -> dict[str, Any]:
        """As the results hold it."""
        found: dict[str, Any] = {"must_be": f"{self.sense} {self.must:g}"}
        if self.aim is not None:
            found["aim"] = f"{self.sense} {self.aim:g}"
        if value is None:
            return found | {"met": None}
        return found | {"met": self.holds(value)} | ({} if self.aim is None else {"aim_met": self.reaches_aim(value)})


TABLE: Final = (
    Limit("get_throughput_ratio", ">=", 0.60, 0.75, "GET recommendations: throughput / the floor's"),
    Limit("get_p99_ratio", "<=", 2.5, 1.5, "its p99 at half of its own capacity / the floor's at the same rate"),
    Limit("post_throughput_ratio", ">=", 0.65, 0.80, "POST of one event: throughput / the floor's"),
    Limit("batch_events_per_second", ">=", 10_000, 30_000, "POSTs of 500 events, until every state is folded"),
    Limit("fold_p99_ms", "<=", 20, 5, "from acknowledgement to folded state, p99, at half of the POST capacity"),
    Limit("history_ratio", "<=", 1.10, 1.02, "GET time of a user with 100,000 events / one with 10"),
    Limit("recompute_ratio", ">=", 5, 15, "core time of SASRec over 200 events / of one read"),
    Limit("user_bytes", "<=", 65_536, 32_768, "Redis memory of a user with 1,000 events, two models live"),
)
"""The table of the requirements, in its order."""

ALSO: Final = (
    Limit("get_service_p50_ms", "<=", 5.0, None, "GET recommendations at no load, in the service (Server-Timing)"),
    Limit("state_bytes", "<=", 16_384, None, "the largest stored state, header included"),
)

LIMITS: Final = TABLE + ALSO


def missed(found: Mapping[str, Any]) -> list[str]:
    """The keys of the figures that are there and break their limits."""
    return [limit.key for limit in LIMITS if found.get(limit.key) is not None and not limit.holds(found[limit.key])]
