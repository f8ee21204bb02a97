"""Where and of what a measurement was taken: a figure means nothing without it."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loadtests.errors import BenchError

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Cores:
    """Which core the service has to itself, and which one everything else shares."""

    service: int
    generator: int


def choose_cores() -> Cores:
    """The first and the last core that this process may use. Raises BenchError where there is only one, or no way to pin."""
    if not hasattr(os, "sched_getaffinity"):
        raise BenchError("processes can be pinned to cores on Linux only")
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise BenchError("two cores are needed: one for the service, one for the load generator and Redis")
    return Cores(usable[0], usable[-1])


def describe_machine() -> dict[str, Any]:
    """Processor, memory, NVIDIA's GPU if there is one, and the versions that the figures depend on."""
    import onnxruntime  # which of two that are installed runs is not told by what is installed

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": _gpu_model(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "uvicorn": version("uvicorn"),
        "fastapi": version("fastapi"),
    }


def describe_commit() -> dict[str, Any]:
    """The checkout's commit, and whether files differ from it; null where this is no checkout."""
    commit = _git("rev-parse", "HEAD")
    return {"id": commit or None, "dirty": bool(_git("status", "--porcelain")) if commit else None}


def load_average() -> list[float]:
    """Processes that wanted to run, over the last 1, 5 and 15 minutes: on a busy machine the figures are too high."""
    return [round(value, 2) for value in os.getloadavg()]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpu_model() -> str | None:
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model"):
                return line.partition(":")[2].strip()
    return None


def _git(*arguments: str) -> str:
    # Without optional locks: a measurement must not get into the way of a commit.
    command = ["git", "--no-optional-locks", *arguments]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
