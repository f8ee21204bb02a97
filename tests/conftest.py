"""What tests of every kind share."""

from __future__ import annotations

import fcntl
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from tiny_run import TinyRun

# Tests run side by side, and the nets are tiny: threads that wait for each other would take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
CHECKOUT = Path(__file__).parents[1]
DATA_DIR = os.environ.get("LONGWAVE_DATA_DIR")

# A service under test must not pick up the developer's settings.
for name in [name for name in os.environ if name.startswith("LONGWAVE_")]:
    del os.environ[name]
# Nor may a test note its looks at test parts in the developer's ledger.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="longwave-state-")


@pytest.fixture(autouse=True)
def logs_go_nowhere_else() -> Iterator[None]:
    """A command that a test calls sends this process's logs to where its own output goes, which is closed behind it."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """A function from the name of a folder of real data to its path; skips the test where that data is not at hand."""
    base = Path(DATA_DIR) if DATA_DIR else CHECKOUT.parent / "shared" / "data"

    def folder(name: str) -> Path:
        if not (base / name).is_dir():
            pytest.skip(f"no real data: {name} is neither in LONGWAVE_DATA_DIR nor in ../shared/data")
        return base / name

    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified bundle of a small untrained net. Do not write into it; copy it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of the exporter that we use on purpose
        from tiny_bundle import write_tiny_bundle  # imports torch, which most tests do without

        return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A prepared data set and a run trained on it. Do not write into it; copy it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of transformers' and tensorboard's own making
        from tiny_run import tiny_run, write_tiny_run

        return tiny_run(_made_once(tmp_path_factory, "tiny-run", write_tiny_run))


@pytest.fixture(scope="session")
def trained_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_run: TinyRun) -> Path:
    """The verified bundle of `tiny_run`. Do not write into it; copy it."""
    from model.publish import publish

    def write(folder: Path) -> None:
        publish(tiny_run.run, tiny_run.data, folder)

    return (_made_once(tmp_path_factory, "trained-bundle", write) / "current").resolve()


@pytest.fixture(scope="session")
def pictured_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` of items that differ by their pictures alone, a `run` trained on it, and its bundle in `bundles`. Do
    not write into it; copy it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from pictured_shop import write_shop

        return _made_once(tmp_path_factory, "pictured-shop", write_shop)


def _made_once(tmp_path_factory: pytest.TempPathFactory, name: str, write: Callable[[Path], None]) -> Path:
    """A folder that the first worker to need it writes, while the others wait."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / f"{name}.done").exists():
            write(folder)
            (base / f"{name}.done").touch()
    return folder
