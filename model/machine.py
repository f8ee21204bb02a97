"""Of what code and on what machine a figure was measured: without both it means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.precision import multiplies_bfloat16

ROOT = Path(__file__).parents[1]
CODE = ("model", "pyproject.toml", "requirements.lock")


def measured() -> dict[str, Any]:
    """When, of what code and on what machine: now, this and here."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": describe_commit(),
        "machine": describe_machine(),
    }


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads in use, memory, GPU if torch sees one, and the versions that figures and times depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "bfloat16": multiplies_bfloat16(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def describe_commit() -> dict[str, Any]:
    """The checkout's commit, and whether the trainer's own files differ from it; null where this is no checkout."""
    commit = _git("rev-parse", "HEAD") if (ROOT / ".git").exists() else ""
    # Results and documents do not count: each run adds to them.
    return {"id": commit or None, "dirty": bool(_git("status", "--porcelain", "--", *CODE)) if commit else None}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))), platform.machine()
    )


def _git(*arguments: str) -> str:
    # Without optional locks: a measurement must not get into the way of a commit.
    command = ["git", "--no-optional-locks", *arguments]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
