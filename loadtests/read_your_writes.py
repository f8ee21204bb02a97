"""Read your writes, by content: every list against an offline fold of what its client had sent. Exits with 1 if one is wrong.

    python -m loadtests.read_your_writes --bundle .demo/bundles/current
    python -m loadtests.read_your_writes --bundle .demo/bundles/current --port 8080     # of a balancer, or a service

Many clients, several workers, with and without the background fold, and two services on one Redis, among which the clients'
connections are dealt out as by a balancer. What `applied_events` says is checked too, but would not do:
a service may say that it has applied an event and have scored an older state.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from app.errors import LongwaveError
from app.state.embedded import EmbeddedRedis
from loadtests.busy import cpu_seconds, family
from loadtests.errors import BenchError
from loadtests.loop import Loop
from loadtests.machine import describe_commit, describe_machine, load_average
from loadtests.offline import Offline, State, difference, problem
from loadtests.report import write
from loadtests.samples import rounded
from loadtests.servers import end_servers_on_sigterm, serving
from loadtests.shoppers import K, Read, Shop, Shopper, beginning_ms
from loadtests.world import Measured, choose_bundle

RESULTS: Final = Path(__file__).parent / "results" / "read_your_writes.json"

_VISITS: Final = 30
_BATCH: Final = 128  # users folded offline at once
_MARGIN: Final = 80  # items offline beyond those asked for
_LIMIT_S: Final = 1_800.0
_EXAMPLES: Final = 5


@dataclass
class Verdict:
    """What the comparison found.

    Attributes:
        stale: lists that reflect fewer events than were acknowledged, by their own words.
        wrong: lists that are not those of the offline fold.
        blind: pairs that prove nothing: without the last event the list would have been the same.
    """

    pairs: int = 0
    stale: int = 0
    wrong: int = 0
    blind: int = 0
    largest_difference: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.pairs > 0 and not self.stale and not self.wrong


def judge(offline: Offline, shoppers: Sequence[Shopper]) -> Verdict:
    """Fold what each shopper sent, and compare every list at its place."""
    verdict = Verdict()
    for start in range(0, len(shoppers), _BATCH):
        _judge(offline, shoppers[start : start + _BATCH], verdict)
    return verdict


def _judge(offline: Offline, shoppers: Sequence[Shopper], verdict: Verdict) -> None:
    state = offline.initial(len(shoppers))
    for index in range(max(len(shopper.events) for shopper in shoppers)):
        rows = [row for row, shopper in enumerate(shoppers) if index < len(shopper.events)]
        before = _take(state, rows)
        after = offline.step(before, [shoppers[row].events[index] for row in rows])
        for name, array in after.items():
            state[name][rows] = array
        asked = [(place, row, read) for place, row in enumerate(rows) for read in shoppers[row].reads if read.sent == index + 1]
        if asked:
            _compare(offline, before, after, shoppers, asked, verdict)


def _compare(
    offline: Offline,
    before: State,
    after: State,
    shoppers: Sequence[Shopper],
    asked: Sequence[tuple[int, int, Read]],
    verdict: Verdict,
) -> None:
    """Lists of one length of history: against the state after it, and against the one that lacks the last event."""
    places = [place for place, _, _ in asked]
    moments = [read.as_of_ms for _, _, read in asked]
    had, less = (
        [{event["item_id"] for event in shoppers[row].events[: read.sent - short]} for _, row, read in asked] for short in (0, 1)
    )
    now = offline.best(_take(after, places), moments, K + _MARGIN, had)
    then = offline.best(_take(before, places), moments, K + _MARGIN, less)
    for (_, row, read), best, stale in zip(asked, now, then, strict=True):
        verdict.pairs += 1
        verdict.stale += read.applied != read.sent
        verdict.largest_difference = max(verdict.largest_difference, difference(read.answer, best))
        verdict.blind += problem(read.answer, stale, K) is None
        if why := problem(read.answer, best, K):
            verdict.wrong += 1
            if len(verdict.examples) < _EXAMPLES:
                verdict.examples.append(f"{shoppers[row].user_id} after {read.sent} events: {why}")


def _take(state: State, rows: Sequence[int]) -> State:
    return {name: array[list(rows)] for name, array in state.items()}


def run(bundle: Measured, pairs: int, clients: int, workers: int, *, background_fold: bool, services: int = 1) -> dict[str, Any]:
    """So many services on one Redis, so many pairs, one verdict."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="longwave-ryw-")))
        store = stack.enter_context(EmbeddedRedis(folder / "redis"))
        settings = {"workers": workers, "background_fold": background_fold}
        cores = os.sched_getaffinity(0)
        servers = [
            stack.enter_context(
                serving(
                    bundle.folder, store.url, cores, folder / f"{host}.log", storage_dir=folder / f"storage-{host}", **settings
                )
            )
            for host in range(services)
        ]
        found = run_at([server.port for server in servers], bundle, pairs, clients)
        worked = [round(cpu_seconds(pid), 2) for server in servers for pid in family(server.pid)]
    said = {"workers": workers, "processor_seconds_by_process": worked}
    return {"background_fold": background_fold, "services": services} | found | said


def run_at(ports: Sequence[int], bundle: Measured, pairs: int, clients: int) -> dict[str, Any]:
    """So many pairs sent to what answers on some ports of this machine, and the verdict.

    They must serve `bundle` on a Redis that no others have told of later events, or popularity is not the bundle's.
    """
    offline = Offline(bundle.folder)
    began_ms = beginning_ms(offline.manifest)
    visits = min(_VISITS, pairs)
    name = f"shopper-{token_hex(4)}"  # new ones each time: the Redis behind a port may know those of the last
    shoppers = [Shopper(f"{name}-{number}", began_ms) for number in range(-(-pairs // visits))]
    began = perf_counter()
    with Loop() as loop:
        shop = Shop(loop, ports, offline.manifest, bundle.items, 2 * clients)
        shop.run(shoppers, clients, visits, _LIMIT_S)
    seconds = perf_counter() - began
    verdict = judge(offline, shoppers)
    return {
        "pairs": verdict.pairs,
        "stale": verdict.stale,
        "wrong": verdict.wrong,
        "same_without_the_last_event": verdict.blind,
        "largest_score_difference": verdict.largest_difference,
        "events": sum(len(shopper.events) for shopper in shoppers),
        "users": len(shoppers),
        "clients": clients,
        "seconds": seconds,
        "examples": verdict.examples,
        "good": verdict.good,
    }


def read_your_writes(
    bundle: Annotated[Path | None, typer.Option(help="Bundle to serve; default: as for the bench.")] = None,
    pairs: Annotated[
        int, typer.Option(min=1, help="Pairs of write and read: with the background fold, without, and with two services.")
    ] = 12_000,
    clients: Annotated[int, typer.Option(min=1, help="Users at work at the same time.")] = 32,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the service.")] = 2,
    port: Annotated[
        int | None,
        typer.Option(min=1, help="Start nothing: a service or a balancer answers on this port of 127.0.0.1.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the result goes.", show_default=False)] = None,
) -> None:
    """Compare the content of every list with an offline fold of what its client had sent."""
    console = Console()
    try:
        measured = choose_bundle(bundle)
        if port is not None:
            runs = [run_at([port], measured, pairs, clients)]
        else:
            runs = [run(measured, pairs, clients, workers, background_fold=on) for on in (True, False)]
            runs.append(run(measured, pairs, clients, workers, background_fold=True, services=2))
    except (BenchError, LongwaveError) as error:
        Console(stderr=True).print("error:", str(error), soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "load_average": load_average(),
        "model_id": measured.model_id,
        "data": measured.data,
    }
    totals = {key: sum(one[key] for one in runs) for key in ("pairs", "stale", "wrong")}
    if out is None and port is None:
        out = RESULTS
    if out is not None:
        write(about | totals | {"runs": rounded(runs)}, out)
    for one in runs:
        served = f"port {port}" if port is not None else _said(one)
        console.print(
            f"{served}: {one['pairs']:,} pairs, {one['stale']} stale, {one['wrong']} wrong, largest score difference "
            f"{one['largest_score_difference']:.1e}, {one['same_without_the_last_event']} prove nothing, {one['seconds']:.0f} s",
            highlight=False,
        )
        for example in one["examples"]:
            console.print(" ", example, markup=False, highlight=False)
    sys.exit(0 if all(one["good"] for one in runs) else 1)


def _said(one: dict[str, Any]) -> str:
    return f"fold {'on' if one['background_fold'] else 'off'}" + (f", {one['services']} services" if one["services"] > 1 else "")


if __name__ == "__main__":
    end_servers_on_sigterm()
    typer.run(read_your_writes)
