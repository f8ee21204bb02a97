"""Whether a long past costs anything: reads of users with 100,000 events beside reads of users with 10."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import redis

from app.state.embedded import EmbeddedRedis
from app.state.keys import MODEL_KEY, state_key
from loadtests.client import Client, settle
from loadtests.samples import median, over_rounds, parse_server_timing, percentile
from loadtests.servers import Server, serving
from loadtests.stand import Part, Setup
from loadtests.states import TENANT, await_committed
from loadtests.twin import Twins, twins

LONG: Final = 100_000
SHORT: Final = 10

_LONG_USERS: Final = 2
_SHORT_USERS: Final = 10
_BATCH: Final = 1_000
_ROUNDS: Final = 20
_PAIRS: Final = 60  # a round
_COMMITTED_S: Final = 120.0
_WARM_UP: Final = 300


def measure(setup: Setup) -> Part:
    """Alternating reads with the states stored, then while the model is changed; then the first reads after the states are gone
    and the service is new."""
    length = setup.times(LONG, 2 * _BATCH)
    long, short, other = (
        [f"{name}-{number}" for number in range(count)]
        for name, count in (("long", _LONG_USERS), ("short", _SHORT_USERS), ("other", _SHORT_USERS))
    )
    lengths = dict.fromkeys(long, length) | dict.fromkeys([*short, *other], SHORT)
    with _house() as (folder, store, client):
        both = twins(setup.bundle.folder, folder / "bundles")

        @contextmanager
        def service() -> Iterator[Server]:
            options = {"bundles_dir": both.folder}
            with serving(both.first, store.url, [setup.cores.service], folder / "service.log", **options) as server:
                yield server

        with service() as server:
            _give(setup, server, lengths)
            await_committed(client, setup.bundle.model_id, list(lengths), _COMMITTED_S)
            _warm_up(server, other)
            rounds = _alternate(setup, server, long, short, lengths)
            during = _while_swapping(both, server, long, short, lengths)
        client.delete(MODEL_KEY)  # the next service begins with its own bundle again
        client.delete(*(state_key(TENANT, setup.bundle.model_id, user) for user in [*long, *short]))
        with service() as server:
            _warm_up(server, other)
            rebuilds = {user: _first_read(server, user, lengths[user]) for user in [*short, *long]}
    swap_ratio = percentile([ms for ms, _ in during[0]], 50) / percentile([ms for ms, _ in during[1]], 50)
    before = [ms for round_ in rounds for side in round_ for ms, _ in side]
    swapping = [ms for side in during for ms, _ in side]
    slower = {f"p{q}": percentile(swapping, q) / percentile(before, q) for q in (50, 99)}
    made_of = _made_of(rounds) | {
        "long_events": length,
        "short_events": SHORT,
        "rebuild_long_ms": [rebuilds[user] for user in long],
        "rebuild_short_ms": [rebuilds[user] for user in short],
        "ratio_during_swap": swap_ratio,
        "samples_during_swap": len(during[0]),
        "slower_during_swap": slower,
    }
    beside = {
        "history_rebuild_long_ms": median([rebuilds[user] for user in long]),
        "history_rebuild_short_ms": median([rebuilds[user] for user in short]),
        "history_ratio_during_swap": swap_ratio,
        "get_during_swap_ratio": slower,
    }
    return Part({"history_ratio": made_of["ratio_rounds"]["median"]}, {"history_ratio": made_of}, beside)


Sample = tuple[float, float]  # milliseconds as the client sees them, and as the service books them
Round = tuple[list[Sample], list[Sample]]  # long, short


def _made_of(rounds: list[Round]) -> dict[str, Any]:
    """Ratios of medians, by round; the client's is the figure."""

    def p50(samples: list[Sample], side: int) -> float:
        return percentile([sample[side] for sample in samples], 50)

    together = [[sample for round_ in rounds for sample in round_[which]] for which in (0, 1)]
    return {
        "ratio_rounds": over_rounds([p50(long, 0) / p50(short, 0) for long, short in rounds]),
        "service_ratio": median([p50(long, 1) / p50(short, 1) for long, short in rounds]),
        **{
            f"{name}_{whose}_p50_ms": p50(samples, side)
            for name, samples in zip(("long", "short"), together, strict=True)
            for side, whose in enumerate(("client", "service"))
        },
        "samples_each": len(together[0]),
    }


def _alternate(setup: Setup, server: Server, long: list[str], short: list[str], lengths: dict[str, int]) -> list[Round]:
    rounds = []
    with Client(server) as client:
        for number in range(setup.times(_ROUNDS, 2)):
            round_: Round = ([], [])
            for pair in range(_PAIRS):
                turns = [(0, long[pair % len(long)]), (1, short[pair % len(short)])]
                for side, user in turns if (pair + number) % 2 else turns[::-1]:
                    round_[side].append(_read(client, user, lengths[user]))
            rounds.append(round_)
    return rounds


def _while_swapping(both: Twins, server: Server, long: list[str], short: list[str], lengths: dict[str, int]) -> Round:
    """Alternating reads from when a model swap is asked for until it is done, backfill and all."""
    found: Round = ([], [])
    with ThreadPoolExecutor(1) as pool, Client(server) as client:
        swap = pool.submit(both.activate, server)
        pair = 0
        while not swap.done():
            for side, user in enumerate((long[pair % len(long)], short[pair % len(short)])):
                found[side].append(_read(client, user, lengths[user]))
            pair += 1
        swap.result()
    return found


def _read(client: Client, user: str, events: int) -> Sample:
    answer = client.ask(user, events)
    return answer.seconds * 1e3, parse_server_timing(answer.timing)["service"]


def _first_read(server: Server, user: str, events: int) -> float:
    with Client(server) as client:
        client.ask("other-0", SHORT)  # accepting the connection is not what is measured
        seconds = client.ask(user, events).seconds
    settle(server)  # the new state's commit must not meet the next user
    return seconds * 1e3


def _give(setup: Setup, server: Server, lengths: dict[str, int]) -> None:
    """Each user's events, 20 seconds apart, in batches of their own."""
    with Client(server) as client:
        for number, (user, length) in enumerate(lengths.items()):
            traffic = setup.traffic([user], step_ms=20_000, seed=100 + number)
            for start in range(0, length, _BATCH):
                client.tell(traffic.events(min(_BATCH, length - start)))
    settle(server)


def _warm_up(server: Server, users: list[str]) -> None:
    with Client(server) as client:
        for number in range(_WARM_UP):
            client.ask(users[number % len(users)], SHORT)


@contextmanager
def _house() -> Iterator[tuple[Path, EmbeddedRedis, redis.Redis]]:
    """A Redis that outlives the service."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="longwave-bench-")))
        store = stack.enter_context(EmbeddedRedis(folder / "redis"))
        yield folder, store, stack.enter_context(redis.Redis.from_url(store.url))
