"""The load tests are part of the checkout, not of the package: they are found from its root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="module")
def service_port(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of `longwave serve` on the tiny bundle."""
    from app.state.embedded import EmbeddedRedis
    from loadtests.servers import serving

    core, folder = min(os.sched_getaffinity(0)), tmp_path_factory.mktemp("service")
    with ExitStack() as stack:
        store = stack.enter_context(EmbeddedRedis(folder / "redis", fsync="no"))
        yield stack.enter_context(serving(tiny_bundle, store.url, [core], folder / "service.log")).port


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run this interpreter from the checkout's root. Locust patches the process that imports it, and the bench pins it."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
        )

    return run
