"""`make bench`: the service beside its limits, on one core, and beside the floor on the same core in the same run.

Redis and the load generator share another core. Service and floor take turns, so that what the machine does meanwhile hits both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from app.errors import LongwaveError
from loadtests.busy import Company
from loadtests.errors import BenchError
from loadtests.figures import batches, footprint, freshness, history, recompute, tail, throughput, unloaded
from loadtests.limits import TABLE, missed
from loadtests.machine import choose_cores, describe_commit, describe_machine, load_average
from loadtests.report import document, table, write
from loadtests.servers import end_servers_on_sigterm
from loadtests.stand import Part, Setup, floor_beside, give_histories, stand
from loadtests.world import BUILD, choose_bundle

RESULTS: Final = Path(__file__).parent / "results" / "latest.json"
PARTIAL: Final = BUILD / "partial.json"

_USERS: Final = 500
_MUCH_COMPANY: Final = 0.05  # of the time of both cores
_WIDE: Final = 120  # columns of a terminal from which on the table says what each figure is

ON_THE_STAND: Final = ("unloaded", "throughput", "tail", "freshness", "recompute")
"""Measurements that share one service: what the first ones find, the others need."""

ALONE: Final[dict[str, Callable[[Setup], Part]]] = {
    "batches": batches.measure,
    "history": history.measure,
    "footprint": footprint.measure,
}
"""Measurements with a service of their own."""

PARTS: Final = (*ON_THE_STAND, *ALONE)


@dataclass(frozen=True)
class Progress:
    """Says what is measured, and how long it took."""

    console: Console

    def __call__(self, name: str, measure: Callable[[], Part]) -> Part:
        began = perf_counter()
        part = measure()
        found = "  ".join(f"{key} {value:.4g}" for key, value in part.figures.items() if value is not None)
        self.console.print(f"{name}: {found or 'measured'} ({perf_counter() - began:.0f} s)", highlight=False)
        return part


def measure(setup: Setup, parts: Iterable[str], progress: Progress) -> Part:
    """Everything asked for. Pins this process to the generator's core."""
    os.sched_setaffinity(0, {setup.cores.generator})
    wanted, found = set(parts), Part()
    if wanted & set(ON_THE_STAND):
        found.add(_on_the_stand(setup, wanted, progress))
    for name, part in ALONE.items():
        if name in wanted:
            found.add(progress(name, lambda part=part: part(setup)))
    return found


def _on_the_stand(setup: Setup, wanted: set[str], progress: Progress) -> Part:
    found = Part()
    users = [f"bench-{number}" for number in range(setup.times(_USERS, 20))]
    with stand(setup) as running, floor_beside(running) as floor:
        give_histories(running, users)
        unloaded.warm_up(running, floor, users)
        # These two first: they know how many events each user has, and the loads add more.
        if "recompute" in wanted:
            found.add(progress("recompute", lambda: recompute.measure(running, users)))
        if "unloaded" in wanted:
            found.add(progress("unloaded", lambda: unloaded.measure(running, floor, users)))
        if wanted & {"throughput", "tail", "freshness"}:
            capacity: dict[throughput.Kind, float] = {}
            asked_rps = 0.0

            def ceilings() -> Part:
                nonlocal asked_rps
                part, rps = throughput.measure(running, floor, users)
                capacity.update(rps)
                asked_rps = TABLE[0].must * part.made_of["get_throughput_ratio"]["floor"]["rps"]
                return part

            found.add(progress("throughput", ceilings))
        if "tail" in wanted:
            found.add(progress("tail", lambda: tail.measure(running, floor, users, capacity["get"], asked_rps)))
        if "freshness" in wanted:
            found.add(progress("freshness", lambda: freshness.measure(running, users, capacity["post"])))
    return found


def bench(
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to serve; default: the demo's, or one made from a synthetic world.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the figures go; default: the kept results, if all are measured.", show_default=False),
    ] = None,
    only: Annotated[str, typer.Option(help=f"Some of the measurements, by comma: {', '.join(PARTS)}.")] = "",
    scale: Annotated[float, typer.Option(min=0.001, max=10, help="How long to measure; 1 is about four minutes in all.")] = 1.0,
) -> None:
    """Measure the service beside the floor; exits with 1 if a limit is missed or a figure does not count."""
    console = Console()
    parts = [name.strip() for name in only.split(",")] if only else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        raise typer.BadParameter(f"no such measurement: {', '.join(sorted(unknown))}")
    try:
        setup = Setup(choose_bundle(bundle), choose_cores(), scale)
        console.print(
            f"bundle {setup.bundle.model_id} ({setup.bundle.source}): {setup.bundle.data}, {len(setup.bundle.items):,} items"
        )
        about, began = _about(setup), perf_counter()
        before, company = load_average(), Company(setup.cores)
        found = measure(setup, parts, Progress(console))
    except (BenchError, LongwaveError) as error:
        Console(stderr=True).print("error:", str(error), soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
    others = company.share()
    load = {
        "load_average": {"before": before, "after": load_average()},
        "others_share_of_the_cores": others,
        "seconds": perf_counter() - began,
    }
    whole = document(about | load, found)
    target = out or (RESULTS if set(parts) == set(PARTS) and scale >= 1 else PARTIAL)
    write(whole, target)
    title = f"{len(setup.bundle.items):,} items, one worker on one core; load average before: {before[0]}"
    console.print(table(whole, title, meanings=console.width >= _WIDE))
    console.print(f"-> {os.path.relpath(target)}")
    if others > _MUCH_COMPANY:
        console.print(f"[yellow]something else took {others:.0%} of the cores: what is no ratio is worse than it would be[/]")
    over = missed(whole)
    for line in found.void:
        console.print(f"[red]does not count:[/] {line}")
    if over:
        console.print(f"[red]missed:[/] {', '.join(over)}")
    sys.exit(1 if over or found.void else 0)


def _about(setup: Setup) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "machine": describe_machine() | {"service_core": setup.cores.service, "generator_core": setup.cores.generator},
        "model_id": setup.bundle.model_id,
        "bundle": setup.bundle.source,
        "data": setup.bundle.data,
        "items": len(setup.bundle.items),
        "scale": setup.scale,
    }


if __name__ == "__main__":
    end_servers_on_sigterm()
    typer.run(bench)
