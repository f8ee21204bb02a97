"""What is measured: a bundle of about 4,000 items, made here if there is none.

`python -m loadtests.world DIR` writes the data that it is then made from.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.runtime.bundle import read_bundle
from loadtests.errors import BenchError
from loadtests.machine import ROOT

DEMO_BUNDLE: Final = ROOT / ".demo" / "bundles" / "current"
BUILD: Final = ROOT / "build" / "bench"

_CONFIG: Final = Path(__file__).with_name("quick.toml")


@dataclass(frozen=True)
class Measured:
    """A bundle as the measurement needs it.

    Attributes:
        source: where it comes from, for the report.
        categories: of each of the items.
        event_type: a positive one.
    """

    folder: Path
    source: str
    model_id: str
    data: str
    items: list[str]
    categories: list[Sequence[str]]
    event_type: str


def choose_bundle(given: Path | None) -> Measured:
    """The given bundle, else the demo's, else one of a synthetic world that is trained here (about a minute, once).

    Raises:
        BundleError: it is missing or damaged.
        BenchError: it cannot be measured, or the trainer failed.
    """
    if given is not None:
        return _read(given, "given by --bundle")
    if DEMO_BUNDLE.is_dir():
        return _read(DEMO_BUNDLE, "the demo's")
    bundle = BUILD / "bundles" / "current"
    if not _is_current(bundle):
        _make()
    return _read(bundle, "made from a synthetic world, hardly trained")


def _read(folder: Path, source: str) -> Measured:
    bundle = read_bundle(folder)
    manifest = bundle.manifest
    positive = [kind.name for kind in manifest.event_types if kind.polarity == "positive"]
    if not positive:
        raise BenchError(f"{folder}: has no positive event type to post")
    items = [item.id for item in bundle.items]
    categories = [item.categories for item in bundle.items]
    return Measured(folder, source, manifest.model_id, manifest.data_name, items, categories, positive[0])


def _is_current(bundle: Path) -> bool:
    """Whether it was made after the last change of anything that makes it."""
    manifest = bundle / "manifest.json"
    makers = [Path(__file__), _CONFIG, *(ROOT / "model").rglob("*.py")]
    return manifest.exists() and manifest.stat().st_mtime > max(maker.stat().st_mtime for maker in makers)


def _make() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)  # an older run is not gone on with
    data, run, bundles = str(BUILD / "data"), str(BUILD / "run"), str(BUILD / "bundles")
    trainer = ["-m", "model.cli"]
    _run("-m", "loadtests.world", data)
    _run(*trainer, "train", data, "--out", run, "--config", str(_CONFIG))
    _run(*trainer, "export", run, "--data", data, "--out", bundles)


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False)
    if done.returncode:
        raise BenchError(f"making a bundle failed: python {' '.join(arguments[:3])} ended with {done.returncode}")


def write_world(folder: Path) -> None:
    """A prepared data set with some 4,000 items that were bought; the demo's world has 1,000."""
    from model.data.dataset import write_dataset
    from model.data.inhabitants import WorldSize
    from model.data.synthetic import synthetic_world

    write_dataset(synthetic_world(WorldSize(users=1_000, items=4_350, events=100_000, topics=12, days=365)).dataset, folder)


if __name__ == "__main__":
    write_world(Path(sys.argv[1]))
