"""How busy processes and cores are: a throughput is a ceiling only where the server's core was full and the generator's not."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

from loadtests.machine import Cores

FULL: Final = 0.95
"""From here on a core counts as busy all the time."""

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_IDLE: Final = (3, 4)  # columns of /proc/stat: idle, iowait
_COLUMNS: Final = 8  # user nice system idle iowait irq softirq steal; guest time is counted in user already


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, all its threads, to the nanosecond: Linux has a clock for each process.

    Raises OSError if there is no such process.
    """
    return time.clock_gettime((~pid << 3) | 2)


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text(encoding="ascii").split():
            found += family(int(child))
    return found


def core_seconds(core: int) -> float:
    """Seconds that a core has worked so far, for whomever; in hundredths."""
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *columns = line.split()
        if name == f"cpu{core}":
            return sum(int(ticks) for at, ticks in enumerate(columns[:_COLUMNS]) if at not in _IDLE) / _TICKS_PER_S
    raise OSError(f"/proc/stat knows no core {core}")


class Company:
    """Whether something else runs on our cores; begins when it is made.

    What we start counts when it has ended and was waited for.
    """

    def __init__(self, cores: Cores) -> None:
        self._cores = {cores.service, cores.generator}
        self._began = (time.perf_counter(), self._busy(), self._ours())

    def share(self) -> float:
        """Of our cores' time so far, what others took."""
        wall_s, busy_s, ours_s = (
            now - then for now, then in zip((time.perf_counter(), self._busy(), self._ours()), self._began, strict=True)
        )
        return max(0.0, busy_s - ours_s) / (wall_s * len(self._cores))

    def _busy(self) -> float:
        return sum(map(core_seconds, self._cores))

    @staticmethod
    def _ours() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@dataclass
class Busy:
    """Processor seconds in some wall time; as properties, their shares of it.

    Attributes:
        server_s: processor time of the server alone; what else ran on its core took the rest.
        generator_core_s: of everything on the generator's core: generator, Redis, and whatever else.
        generator_s: of generator and Redis alone.
    """

    wall_s: float = 0.0
    server_s: float = 0.0
    generator_core_s: float = 0.0
    generator_s: float = 0.0

    @property
    def server(self) -> float:
        return self.server_s / self.wall_s

    @property
    def generator_core(self) -> float:
        return self.generator_core_s / self.wall_s

    @property
    def generator(self) -> float:
        return self.generator_s / self.wall_s

    @property
    def is_ceiling(self) -> bool:
        """Whether what was measured is all that the server can do."""
        return self.server >= FULL > self.generator_core

    def __add__(self, other: Busy) -> Busy:
        mine, others = astuple(self), astuple(other)
        return Busy(*(one + more for one, more in zip(mine, others, strict=True)))

    def report(self) -> dict[str, float]:
        return {"server_busy": self.server, "generator_busy": self.generator, "generator_core_busy": self.generator_core}


class Meter:
    """What happens while it is open: `with Meter(...) as busy:`; the numbers are there when it closes.

    Args:
        servers: processes that are the server.
        generators: processes that are generator and Redis.
    """

    def __init__(self, servers: Sequence[int], generators: Sequence[int], cores: Cores) -> None:
        self._servers = servers
        self._generators = generators
        self._core = cores.generator
        self._before = Busy()
        self._busy = Busy()

    def __enter__(self) -> Busy:
        self._before = self._now()
        return self._busy

    def __exit__(self, *_: object) -> None:
        now = self._now()
        for one in fields(Busy):
            setattr(self._busy, one.name, getattr(now, one.name) - getattr(self._before, one.name))

    def _now(self) -> Busy:
        servers, generators = (sum(map(cpu_seconds, pids)) for pids in (self._servers, self._generators))
        return Busy(time.perf_counter(), servers, core_seconds(self._core), generators)
