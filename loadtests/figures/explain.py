"""What explanations cost: lists with and without them, taking turns."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Final

from loadtests.busy import cpu_seconds, family
from loadtests.client import Client
from loadtests.connection import Answer, get
from loadtests.errors import BenchError
from loadtests.samples import percentile
from loadtests.stand import Part, Stand
from loadtests.traffic import recommendations

_TURNS: Final = 30
_GETS: Final = 20  # a turn, of each kind
_EXACT: Final = 5  # a turn
_WARM_UP: Final = 50
_EVENTS: Final = 20  # that the exact account leaves out one by one; `users` have as many at least


def measure(stand: Stand, users: Sequence[str]) -> Part:
    """One request at a time for 20 items, of users whose stored states are current and who have 20 events or more.

    `explain_ratio` is the median of `explain=true` as the client sees it over that of the plain request, `explain_exact_ms` the
    median of `explain=exact`.
    """
    setup, chance = stand.setup, random.Random(0)
    seconds: dict[str, list[float]] = {"": [], "true": [], "exact": []}
    core_s = dict.fromkeys(seconds, 0.0)
    with Client(stand.service) as client:
        for user in chance.choices(users, k=setup.times(_WARM_UP, 5)):
            for explain in seconds:
                _ask(client, user, explain)
        for _ in range(setup.times(_TURNS)):
            for explain, number in (("", _GETS), ("true", _GETS), ("exact", _EXACT)):
                before = _core_s(stand)
                seconds[explain] += [_ask(client, user, explain).seconds for user in chance.choices(users, k=number)]
                core_s[explain] += _core_s(stand) - before
    core_ms = {explain: core_s[explain] / len(seconds[explain]) * 1e3 for explain in seconds}
    plain, quick, exact = (percentile(seconds[explain], 50) * 1e3 for explain in ("", "true", "exact"))
    return Part(
        figures={"explain_ratio": quick / plain, "explain_exact_ms": exact},
        made_of={
            "explain_ratio": {
                "plain_p50_ms": plain,
                "explained_p50_ms": quick,
                "plain_core_ms": core_ms[""],
                "explained_core_ms": core_ms["true"],
                "samples": len(seconds["true"]),
            },
            "explain_exact_ms": {
                "p90_ms": percentile(seconds["exact"], 90) * 1e3,
                "core_ms": core_ms["exact"],
                "samples": len(seconds["exact"]),
            },
        },
    )


def _core_s(stand: Stand) -> float:
    return sum(map(cpu_seconds, family(stand.service.pid)))


def _ask(client: Client, user: str, explain: str) -> Answer:
    answer = client.answer(get(recommendations(user) + (f"?explain={explain}" if explain else "")))
    said = json.loads(answer.body)
    explained = [item for item in said["items"] if "explanation" in item]
    if said["source"] != "model" or len(explained) != (len(said["items"]) if explain else 0):
        raise BenchError(f"expected {'explanations' if explain else 'a list of the model'}, got {said}")
    if explain == "exact" and said["applied_events"] < _EVENTS:
        raise BenchError(f"{user} has {said['applied_events']} events; the exact account is measured with {_EVENTS}")
    return answer
