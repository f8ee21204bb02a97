"""Half an hour of mixed load at half capacity: does any process grow? Exits with 1 if one does, by more than 5%.

    python -m loadtests.soak --bundle .demo/bundles/current            # 30 minutes; --minutes 2 for a look
    python -m loadtests.soak --swap-minutes 1                          # and another model each minute

What users have in Redis is at its bound before the clock starts (bounded sequences, all states stored), and the archiver takes
the log, so that nothing has a reason to grow: memory that does is lost. Compaction runs in processes that come and go; what they
take at most is told apart. Where the model changes, two of them are in memory for a moment, so what counts is the memory just
before each change.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from app.errors import LongwaveError
from app.state.embedded import EmbeddedRedis
from loadtests.busy import family
from loadtests.client import Client, settle
from loadtests.connection import post
from loadtests.errors import BenchError
from loadtests.loop import Loop
from loadtests.machine import choose_cores, describe_commit, describe_machine, load_average
from loadtests.pace import Flow, saturate
from loadtests.report import write
from loadtests.samples import latencies_ms, median, rounded
from loadtests.servers import Server, end_servers_on_sigterm, serving
from loadtests.stand import Setup
from loadtests.traffic import Traffic
from loadtests.twin import twins
from loadtests.world import choose_bundle

RESULTS: Final = Path(__file__).parent / "results" / "soak.json"
LIMIT: Final = 0.05
"""How far a process's memory may be from its middle value, after the warm-up."""

_USERS: Final = 1_000
_SEQUENCE: Final = 100  # events kept of each, and had by each before the clock starts
_ARCHIVED_S: Final = 10.0  # that is how long an event stays in the log, before the archiver takes it
_CACHE_MB: Final = 8  # so that states leave a worker's memory too: half of the users fit
_BATCH: Final = _SEQUENCE  # the window of event ids is no larger, and must hold a request
_READS: Final = 2  # for each write
_CONNECTIONS: Final = 128
_CAPACITY_S: Final = 5.0
_SAMPLE_S: Final = 10.0
_LOOK_S: Final = 0.25
_WARM_UP: Final = 0.2  # of the time, but at least one sample
_SHARE: Final = 0.5
_DRAIN_S: Final = 60.0


@dataclass
class Memory:
    """Resident bytes of the same processes, again and again."""

    processes: dict[str, int]
    at_s: list[float] = field(default_factory=list)
    samples: dict[str, list[int]] = field(default_factory=dict)

    def sample(self, at_s: float) -> None:
        self.at_s.append(at_s)
        for name, pid in self.processes.items():
            self.samples.setdefault(name, []).append(resident_bytes(pid))


@dataclass
class Passing:
    """The children of a process that come and go: the most that each had in memory, by process id."""

    parent: int
    peaks_mib: dict[int, float] = field(default_factory=dict)

    def look(self) -> None:
        for child in family(self.parent)[1:]:
            try:
                status = Path(f"/proc/{child}/status").read_text(encoding="ascii")
            except OSError:
                continue  # gone since
            if "VmHWM:" in status:  # it has ended where that is missing
                self.peaks_mib[child] = int(status.split("VmHWM:")[1].split()[0]) / 1024


def resident_bytes(pid: int) -> int:
    """What a process has in memory now. Raises BenchError if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        raise BenchError(f"process {pid} has ended") from None
    return pages * os.sysconf("SC_PAGE_SIZE")


def trend(at_s: Sequence[float], values: Sequence[int], warm_up_s: float) -> dict[str, float]:
    """What memory did after the warm-up: the straight line of least squares, and the largest distance from the median.

    Raises BenchError if nothing is of after it.
    """
    kept = [(at, value) for at, value in zip(at_s, values, strict=True) if at >= warm_up_s]
    if not kept:
        raise BenchError(
            "nothing was measured after the warm-up: give it more minutes, or more of them to each change of the model"
        )
    middle = median([value for _, value in kept])
    mean_at, mean = (sum(column) / len(kept) for column in zip(*kept, strict=True))
    spread = sum((at - mean_at) ** 2 for at, _ in kept)
    slope = sum((at - mean_at) * (value - mean) for at, value in kept) / spread if spread else 0.0
    return {
        "median_mib": middle / 2**20,
        "slope_mib_per_hour": slope * 3_600 / 2**20,
        "slope_percent_per_hour": 100 * slope * 3_600 / middle,
        "max_deviation": max(abs(value - middle) for _, value in kept) / middle,
        "samples": len(kept),
    }


@dataclass
class Swaps:
    """Changes between two models, back and forth; what is asked for in a thread, as an answer takes as long as the change.

    Attributes:
        models: the one that is served first, and the other.
        resting: the memory at the moments before each change.
    """

    server: Server
    models: tuple[str, str]
    resting: Memory
    pool: ThreadPoolExecutor
    asked: list[Future[None]] = field(default_factory=list)

    def swap(self, at_s: float) -> None:
        """Ask for the next one, unless the last change is under way still. Raises BenchError where that failed."""
        if self.asked and not self.asked[-1].done():
            return
        self.check()
        self.resting.sample(at_s)
        self.asked.append(self.pool.submit(self._activate, self.models[(len(self.asked) + 1) % 2]))

    def check(self) -> None:
        """Raises BenchError where a change failed; waits for the one that is under way."""
        for one in self.asked[-1:]:
            one.result()

    def _activate(self, model: str) -> None:
        with Client(self.server) as client:
            client.answer(post(f"/v1/models/{model}/activate", b""))


def soak(setup: Setup, minutes: float, workers: int, swap_minutes: float, console: Console) -> dict[str, Any]:
    """Fill, find the capacity, load at half of it, watch."""
    seconds = minutes * 60
    os.sched_setaffinity(0, {setup.cores.generator})
    users = [f"soaked-{number}" for number in range(_USERS)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="longwave-soak-")))
        store = stack.enter_context(EmbeddedRedis(folder / "redis"))
        settings = {
            "workers": workers,
            "max_sequence": _SEQUENCE,
            "dedupe_window": _SEQUENCE,
            "max_batch_events": _BATCH,
            "state_cache_mb": _CACHE_MB,
            "archive": "inside",
            "archive_dir": folder / "archive",
            "archive_interval_s": _ARCHIVED_S,
        }
        core, bundle, other = [setup.cores.service], setup.bundle.folder, ""
        if swap_minutes:
            both = twins(bundle, folder / "bundles")
            bundle, other, settings["bundles_dir"] = both.first, both.other, both.folder
        server = stack.enter_context(serving(bundle, store.url, core, folder / "service.log", **settings))
        traffic = setup.traffic(users, exponent=1.05, step_ms=1, seed=10)
        _fill(server, traffic, users)
        ceiling = saturate(server.port, mixed(traffic.questions(), traffic.singles()), _CONNECTIONS, _CAPACITY_S)
        settle(server)
        # Of the mix, and not made of the capacities of its parts: a read after a write takes longer than one that has its state.
        rate = _SHARE * ceiling.answers / ceiling.seconds
        console.print(f"{rate:.0f} requests a second for {minutes:g} minutes", highlight=False)
        names = _names(server)
        watched = names | {"redis": store.pid}
        memory, compactions = Memory(watched), Passing(names["archiver 1"])
        # Entered last, so left first: the change under way ends before the service does.
        swapper = stack.enter_context(ThreadPoolExecutor(1))
        swaps = Swaps(server, (setup.bundle.model_id, other), Memory(watched), swapper)
        began, flows = perf_counter(), {}
        with Loop() as loop:
            for name, share, requests in (
                ("get", _READS / (1 + _READS), traffic.questions()),
                ("post", 1 / (1 + _READS), traffic.singles()),
            ):
                flows[name] = Flow(loop, server.port, requests, share * rate, _CONNECTIONS)
                flows[name].warm_up()
            for flow in flows.values():
                flow.start()
            _every(loop, _LOOK_S, compactions.look)
            _every(loop, _SAMPLE_S if seconds >= 10 * _SAMPLE_S else seconds / 10, lambda: memory.sample(perf_counter() - began))
            if swap_minutes:
                _every(loop, 60 * swap_minutes, lambda: swaps.swap(perf_counter() - began))
            loop.at(perf_counter() + seconds, loop.stop)
            loop.run(seconds + _DRAIN_S)
            for flow in flows.values():
                flow.finish()
                loop.run(_DRAIN_S)
        swaps.check()
    warm_up_s = _WARM_UP * seconds
    judged = swaps.resting if swap_minutes else memory
    found = {name: trend(judged.at_s, values, warm_up_s) for name, values in judged.samples.items()}
    return {
        "minutes": minutes,
        "warm_up_s": warm_up_s,
        "workers": workers,
        "swaps": len(swaps.asked),
        "users": _USERS,
        "requests_per_second": rate,
        "requests": sum(len(flow.found.latencies) for flow in flows.values()),
        "latency": {name: latencies_ms(flow.found.latencies) for name, flow in flows.items()},
        "limit": LIMIT,
        "compactions": {"seen": len(compactions.peaks_mib), "peak_mib": max(compactions.peaks_mib.values(), default=0.0)},
        "processes": found,
        "max_deviation": max(one["max_deviation"] for one in found.values()),
        "samples_at_s": [round(at) for at in memory.at_s],
        "samples_mib": {name: [value / 2**20 for value in values] for name, values in memory.samples.items()},
    }


def mixed(reads: Iterator[bytes], writes: Iterator[bytes]) -> Iterator[bytes]:
    """So many reads, then one write, and again."""
    while True:
        yield from islice(reads, _READS)
        yield next(writes)


def _fill(server: Server, traffic: Traffic, users: Sequence[str]) -> None:
    """As many events to each user as are kept of it."""
    events = [event for _ in range(_SEQUENCE) for event in traffic.events_of(users)]
    with Client(server) as client:
        for start in range(0, len(events), _BATCH):
            client.tell(events[start : start + _BATCH])
    settle(server)


def _names(server: Server) -> dict[str, int]:
    """The processes of the service by what they are."""
    first, *others = family(server.pid)
    names = {"service": first}
    for pid in others:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"app.archive.rewriting" in command:
            continue  # ends by itself
        kind = "archiver" if b"archive" in command else "worker" if b"spawn_main" in command else "helper"
        names[f"{kind} {sum(name.startswith(kind) for name in names) + 1}"] = pid
    return names


def _every(loop: Loop, period_s: float, action: Callable[[], None]) -> None:
    """Do something now and after each period, as long as the loop runs."""

    def again() -> None:
        action()
        loop.at(perf_counter() + period_s, again)

    again()


def main(
    bundle: Annotated[Path | None, typer.Option(help="Bundle to serve; default: as for the bench.")] = None,
    minutes: Annotated[float, typer.Option(min=0.05, help="How long, warm-up included.")] = 30.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the service.")] = 1,
    swap_minutes: Annotated[float, typer.Option(min=0, help="Change the model each so many minutes; 0: never.")] = 0.0,
    out: Annotated[Path, typer.Option(help="Where the result goes.", show_default=False)] = RESULTS,
) -> None:
    """Load the service for long at half of its capacity and watch the memory of every process."""
    console = Console()
    try:
        setup = Setup(choose_bundle(bundle), choose_cores())
        found = soak(setup, minutes, workers, swap_minutes, console)
    except (BenchError, LongwaveError) as error:
        Console(stderr=True).print("error:", str(error), soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "load_average": load_average(),
        "model_id": setup.bundle.model_id,
        "data": setup.bundle.data,
    }
    write(about | rounded(found), out)
    for name, one in found["processes"].items():
        console.print(
            f"{name}: {one['median_mib']:.1f} MiB, {one['slope_percent_per_hour']:+.2f}% an hour, "
            f"at most {one['max_deviation']:.2%} from the middle",
            highlight=False,
        )
    sys.exit(0 if found["max_deviation"] <= LIMIT else 1)


if __name__ == "__main__":
    end_servers_on_sigterm()
    typer.run(main)
