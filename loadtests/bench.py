"""`make bench`: what one service on one core takes, beside the floor on the same core in the same minute.

The service's core is its own; Redis and the load generator share another. Service and floor take turns, so that what the machine
does meanwhile hits both. Everything is measured one request at a time, except the closed loops at the end of a round.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import redis
import typer
from rich.console import Console
from rich.progress import track

from app.errors import LongwaveError
from app.state.embedded import EmbeddedRedis
from loadtests.connection import Answer, Connection, get, post, saturate
from loadtests.errors import BenchError
from loadtests.floor import PATH as FLOOR_PATH
from loadtests.machine import Cores, choose_cores, cpu_seconds, describe_commit, describe_machine, load_average
from loadtests.report import Load, Round, Samples, Timed, figures, missed, parse_server_timing, table, write
from loadtests.servers import Server, floor, serving
from loadtests.world import Measured, choose_bundle

RESULTS: Final = Path(__file__).parent / "results" / "latest.json"

_USERS: Final = 200
_HISTORY: Final = 50  # events of each before the measurement
_TURNS: Final = 10  # a round: so often service and floor take turns, so that a burst of other work cannot hit one alone
_GETS: Final = 50  # a turn
_POSTS: Final = 60  # a round
_WARM_UP: Final = 200
_CONNECTIONS: Final = 32
_LOAD_S: Final = 1.0
_SETTLE_S: Final = 0.03  # after a POST: the background fold and its commit, 5 ms late each, must not meet the next request
_FOLDED_S: Final = 30.0
_SEED: Final = 0
_WIDE: Final = 120  # columns of a terminal from which on the table says what each figure is


class Bench:
    """A service and a floor that run, and the users that are asked about."""

    def __init__(self, bundle: Measured, service: Server, floor_server: Server, store: EmbeddedRedis) -> None:
        self._bundle = bundle
        self._service = service
        self._floor = floor_server
        self._store = store
        self._random = random.Random(_SEED)
        self._events = {f"bench-{number}": 0 for number in range(_USERS)}

    def warm_up(self) -> None:
        """Give every user a history and wait until the states are stored; run every path once over."""
        now_ms = time.time_ns() // 1_000_000
        with Connection(self._service.port) as connection:
            for user in self._events:
                events = [self._event(user, timestamp=now_ms - 3_600_000 * (_HISTORY - n)) for n in range(_HISTORY)]
                _expect(connection.ask(post("/v1/events", json.dumps(events).encode())))
                self._events[user] += _HISTORY
            for user in self._events:
                self._await_folded(connection, user)
        self.no_load_gets(Round(), _WARM_UP)
        self.no_load_floor(Round(), _WARM_UP)
        self.posts(Round(), _WARM_UP // 10)

    def no_load_gets(self, round_: Round, number: int) -> None:
        """GETs of users whose stored states are current, one after another on one connection."""
        with Connection(self._service.port) as connection:
            first, *users = self._some(number + 1)
            self._ask(connection, first)  # accepting the connection is not what is measured
            round_.get.extend(self._ask(connection, user) for user in users)

    def no_load_floor(self, round_: Round, number: int) -> None:
        """The same of the floor."""
        request = get(FLOOR_PATH)
        with Connection(self._floor.port) as connection:
            _expect(connection.ask(request))
            round_.floor.extend(_expect(connection.ask(request)).seconds for _ in range(number))

    def posts(self, round_: Round, number: int) -> None:
        """POSTs of one event, each with a GET at its heels."""
        with Connection(self._service.port) as connection:
            for user in self._some(number):
                event = self._event(user, event_id=f"{self._random.getrandbits(64):016x}")
                round_.post.append(_expect(connection.ask(post("/v1/events", json.dumps(event).encode()))).seconds)
                self._events[user] += 1
                round_.get_after_post.append(self._ask(connection, user))
                time.sleep(_SETTLE_S)

    def loads(self, samples: Samples, seconds: float) -> None:
        """Both servers as fast as they go."""
        requests = [get(_recommendations(user)) for user in self._events]
        self._saturate(self._service, requests, samples.get_load, seconds)
        self._saturate(self._floor, [get(FLOOR_PATH)], samples.floor_load, seconds)

    def state_bytes(self) -> int:
        """The largest of the stored states, as Redis holds it."""
        with redis.Redis.from_url(self._store.url) as client:
            sizes = [client.strlen(key) for key in client.scan_iter("lw:*:state:*", count=1_000)]
        if not sizes:
            raise BenchError("the service stored no state")
        return max(sizes)

    def _saturate(self, server: Server, requests: list[bytes], load: Load, seconds: float) -> None:
        server_s, generator_s = cpu_seconds(server.pid), self._generator_s()
        answers, wall_s = saturate(server.port, requests, _CONNECTIONS, seconds)
        load.answers += answers
        load.wall_s += wall_s
        load.server_s += cpu_seconds(server.pid) - server_s
        load.generator_s += self._generator_s() - generator_s

    def _generator_s(self) -> float:
        return time.process_time() + cpu_seconds(self._store.pid)

    def _some(self, number: int) -> list[str]:
        return self._random.choices(list(self._events), k=number)

    def _event(self, user: str, **fields: Any) -> dict[str, Any]:
        return {"user_id": user, "item_id": self._random.choice(self._bundle.items), "type": self._bundle.event_type} | fields

    def _ask(self, connection: Connection, user: str) -> Timed:
        answer = _expect(connection.ask(get(_recommendations(user))))
        said = json.loads(answer.body)
        if said["source"] != "model" or said["applied_events"] != self._events[user]:
            raise BenchError(f"expected a list that reflects {self._events[user]} events, got {said}")
        return Timed(answer.seconds, parse_server_timing(answer.timing))

    def _await_folded(self, connection: Connection, user: str) -> None:
        deadline = time.monotonic() + _FOLDED_S
        while json.loads(_expect(connection.ask(get(f"/v1/users/{user}"))).body)["folded_events"] != self._events[user]:
            if time.monotonic() > deadline:
                raise BenchError(f"the events of {user} were not folded within {_FOLDED_S:g} s")
            time.sleep(_SETTLE_S)


def measure(bundle: Measured, cores: Cores, rounds: int, console: Console) -> Samples:
    """Start everything, measure, stop everything; about 5 s a round. Pins this process to the generator's core."""
    os.sched_setaffinity(0, {cores.generator})
    samples = Samples()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="longwave-bench-")))
        store = stack.enter_context(EmbeddedRedis(folder / "redis"))
        service = stack.enter_context(serving(bundle.folder, store.url, cores.service, folder / "service.log"))
        body_bytes = _body_bytes(service, bundle)
        floor_server = stack.enter_context(floor(store.url, body_bytes, cores.service, folder / "floor.log"))
        bench = Bench(bundle, service, floor_server, store)
        bench.warm_up()
        for _ in track(range(rounds), "measuring", console=console):
            round_ = Round()
            for _ in range(_TURNS):
                bench.no_load_gets(round_, _GETS)
                bench.no_load_floor(round_, _GETS)
            bench.posts(round_, _POSTS)
            bench.loads(samples, _LOAD_S)
            samples.rounds.append(round_)
        samples.state_bytes = bench.state_bytes()
    return samples


def _body_bytes(service: Server, bundle: Measured) -> int:
    """Size of a list that the model made."""
    event = {"user_id": "first", "item_id": bundle.items[0], "type": bundle.event_type}
    with Connection(service.port) as connection:
        _expect(connection.ask(post("/v1/events", json.dumps(event).encode())))
        return len(_expect(connection.ask(get(_recommendations("first")))).body)


def _recommendations(user: str) -> str:
    return f"/v1/users/{user}/recommendations"


def _expect(answer: Answer) -> Answer:
    if answer.status != 200:
        raise BenchError(f"the server answered {answer.status}: {answer.body[:300].decode('utf-8', 'replace')}")
    return answer


def bench(
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to serve; default: the demo's, or one made from a synthetic world.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the figures go.", show_default=False)] = RESULTS,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of about 5 s.")] = 10,
) -> None:
    """Measure the service beside the floor; exits with 1 if a limit is missed."""
    console = Console()
    try:
        cores = choose_cores()
        measured = choose_bundle(bundle)
        console.print(f"bundle {measured.model_id} ({measured.source}): {measured.data}, {len(measured.items):,} items")
        machine, commit, before = describe_machine(), describe_commit(), load_average()
        found = figures(measure(measured, cores, rounds, console))
    except (BenchError, LongwaveError) as error:
        Console(stderr=True).print("error:", str(error), soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": machine | {"service_core": cores.service, "generator_core": cores.generator},
        "load_average": {"before": before, "after": load_average()},
        "model_id": measured.model_id,
        "bundle": measured.source,
        "data": measured.data,
        "items": len(measured.items),
        "rounds": rounds,
        **found,
    }
    write(document, out)
    title = f"{len(measured.items):,} items, one worker on one core; load average before: {before[0]}"
    console.print(table(found, title, meanings=console.width >= _WIDE))
    console.print(f"-> {os.path.relpath(out)}")
    over = missed(found)
    if over:
        console.print(f"[red]missed:[/] {', '.join(over)}")
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    typer.run(bench)
