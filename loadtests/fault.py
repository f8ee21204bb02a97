"""Faults under load: clients that retry, while workers, the whole service and its Redis are killed and started again.

    python -m loadtests.fault --minutes 10

Afterwards every acknowledged event must be there once, and every state must be the fold of its sequence. Redis loses at
each of its crashes what it had not synced (tests/crashing_redis.py): with `--fsync everysec` events are lost, with `always` none.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import redis
import typer

from app.runtime.bundle import read_bundle
from loadtests.errors import BenchError
from loadtests.fault_check import ask_all, check_events, check_states, compare_answers, delete_states
from loadtests.fault_kills import CALM_S, KINDS, WEIGHTS, Kills, Kind, Service
from loadtests.fault_load import Client, Told
from loadtests.machine import ROOT, describe_commit, describe_machine
from loadtests.servers import end_servers_on_sigterm
from loadtests.world import choose_bundle

if TYPE_CHECKING:
    from crashing_redis import CrashingRedis

Fsync = Literal["always", "everysec"]

RESULTS: Final = Path(__file__).parent / "results" / "fault.json"
LOST: Final = ("lost", "lost_from_log")
WRONG: Final = (
    "doubled",
    "doubled_in_log",
    "unknown",
    "reordered",
    "miscounted",
    "stale",
    "states_foreign",
    "states_ahead",
    "states_wrong",
)
"""Figures that must be 0; and so must LOST be, unless Redis loses what was acknowledged."""

_CLIENTS: Final = 8
_JOIN_S: Final = 30.0
_SETTINGS: Final = {
    "LONGWAVE_REDIS_TIMEOUT_MS": "700",
    "LONGWAVE_COMMIT_EVENTS": "4",  # states of short histories are stored too, and compared
}


def run_faults(
    bundle: Path,
    folder: Path,
    kinds: Iterable[Kind],
    *,
    fsync: Fsync = "always",
    workers: int = 2,
    clients: int = _CLIENTS,
    seed: int = 0,
    calm_s: tuple[float, float] = CALM_S,
    settings: dict[str, str] | None = None,
    afterwards: Callable[[redis.Redis], None] | None = None,
) -> dict[str, Any]:
    """Do these faults to a service under load, in an empty folder, and return the figures; nothing is judged.

    `afterwards` may change what is stored before it is looked at: a check that finds nothing then checks nothing.

    Raises:
        BenchError: the service did not recover, or did not end as it should.
        CannotCutError: this machine cannot tell what Redis has synced.
    """
    types, items = _vocabulary(bundle)
    environment = _SETTINGS | (settings or {})
    began_s = time.monotonic()
    with ExitStack() as stack:
        store = stack.enter_context(_crashing_redis(folder / "redis", fsync))
        service = stack.enter_context(Service(bundle, store.url, folder / "service.log", workers, environment))
        stopping = threading.Event()
        threads = [Client(number, service.port, items, types, stopping) for number in range(clients)]
        kills = Kills(service, store, lambda: sum(len(client.told.acknowledged) for client in threads), seed, calm_s)
        service.await_ready()
        try:
            for client in threads:
                client.start()
            kills.run(kinds)
        finally:
            stopping.set()
            for client in threads:
                client.join(_JOIN_S)
        service.stop()
        if afterwards is not None:
            with store.client() as client:
                afterwards(client)
        told = [client.told for client in threads]
        figures = _sent(told) | {"kills": dict(kills.done), "bytes_cut": kills.bytes_cut, "fsync": fsync, "workers": workers}
        figures |= _found(bundle, folder, store, told, environment)
    return figures | {"seconds": round(time.monotonic() - began_s, 1)}


def _found(bundle: Path, folder: Path, store: CrashingRedis, told: Sequence[Told], environment: dict[str, str]) -> dict[str, Any]:
    """Compare what is stored, and what is served from it, with what the clients were told and with a fold from the beginning."""
    users = sorted({user for one in told for user in one.events.values()})
    with store.client() as client:
        events = check_events(client, told)
        states, headers = check_states(client, users)
    copy = folder / "copy"
    copy.mkdir()
    for file in (folder / "redis").rglob("*.aof*"):  # from Redis 7 on several, in a folder of their own
        target = copy / file.relative_to(folder / "redis")
        target.parent.mkdir(exist_ok=True)
        shutil.copy(file, target)
    with ExitStack() as stack:
        other = stack.enter_context(_crashing_redis(copy, "everysec"))
        with other.client() as client:
            deleted = delete_states(client)
        served_by = stack.enter_context(Service(bundle, store.url, folder / "served.log", 1, environment))
        rebuilt_by = stack.enter_context(Service(bundle, other.url, folder / "rebuilt.log", 1, environment))
        served_by.await_ready()
        rebuilt_by.await_ready()
        served, rebuilt = ask_all(served_by.port, users), ask_all(rebuilt_by.port, users)
    answers = compare_answers(served, rebuilt)
    counts = dict.fromkeys((*LOST, *WRONG), 0) | {"stale": sum(len(one.stale) for one in told)} | dict(events.counts)
    counts |= {f"states_{name}": count for name, count in (headers.counts + answers.counts).items()}
    examples = events.examples | headers.examples | answers.examples
    if stale := [words for one in told for words in one.stale]:
        examples["stale"] = stale[:5]
    return counts | {"users": len(users), "states_stored": states, "states_compared": deleted, "examples": dict(examples)}


def _sent(told: Sequence[Told]) -> dict[str, Any]:
    refusals = sum((one.refusals for one in told), Counter[str]())
    unexpected = {status: words for one in told for status, words in one.unexpected.items()}
    events, acknowledged = sum(len(one.events) for one in told), sum(len(one.acknowledged) for one in told)
    return {
        "events": events,
        "acknowledged": acknowledged,
        "unacknowledged": events - acknowledged,
        "requests": sum(one.requests for one in told),
        "retries": sum(one.retries for one in told),
        "answers": sum(one.answers for one in told),
        "degraded": sum(one.degraded for one in told),
        "refusals": dict(refusals),
        "unexpected": unexpected,
    }


def _vocabulary(bundle: Path) -> tuple[list[str], list[str]]:
    """Event types and item ids."""
    opened = read_bundle(bundle)
    return [kind.name for kind in opened.manifest.event_types], [item.id for item in opened.items]


def _crashing_redis(folder: Path, fsync: Fsync) -> CrashingRedis:
    if (tests := str(ROOT / "tests")) not in sys.path:
        sys.path.insert(0, tests)
    from crashing_redis import CrashingRedis

    folder.mkdir(exist_ok=True)
    return CrashingRedis(folder, fsync=fsync)


def _for_minutes(minutes: float, seed: int) -> Iterator[Kind]:
    """Random faults until the time is up."""
    chance, end = random.Random(seed), time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        yield chance.choices(KINDS, WEIGHTS)[0]


def main(
    minutes: Annotated[float, typer.Option(help="How long things are killed.")] = 10.0,
    fsync: Annotated[Fsync, typer.Option(help="When Redis syncs; everysec must lose something.")] = "always",
    workers: Annotated[int, typer.Option(help="Processes of the service.")] = 2,
    clients: Annotated[int, typer.Option(help="Clients, each on one connection.")] = _CLIENTS,
    seed: Annotated[int, typer.Option(help="Of what is killed when.")] = 0,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to serve; default: as the bench chooses.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULTS,
) -> None:
    """Kill a service under load for some minutes and write down what became of the events."""
    try:
        chosen = choose_bundle(bundle)
        with tempfile.TemporaryDirectory(prefix="longwave-fault-") as folder:
            kinds = _for_minutes(minutes, seed)
            figures = run_faults(chosen.folder, Path(folder), kinds, fsync=fsync, workers=workers, clients=clients, seed=seed)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe_machine(), "commit": describe_commit()}
    report = figures | {"seed": seed, "clients": clients, "model": chosen.model_id} | about
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    lost = sum(figures[name] for name in LOST)
    if (lost == 0) != (fsync == "always") or any(figures[name] for name in WRONG) or figures["unexpected"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    end_servers_on_sigterm()
    typer.run(main)
