"""What a read costs beside a model that recomputes: SASRec over 200 events, in ONNX Runtime, on the service's core."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import redis

import loadtests
from app.runtime.bundle import read_manifest
from app.state.events import StoredEvent, decode_event, encode_event
from loadtests.client import Client
from loadtests.errors import BenchError
from loadtests.machine import ROOT
from loadtests.samples import median, over_rounds, parse_server_timing, percentile
from loadtests.stand import HISTORY, Part, Stand
from loadtests.traffic import Traffic
from loadtests.world import BUILD, Measured

_POSITIONS: Final = 200
_TURNS: Final = 20
_RUNS: Final = 25  # a turn, of either
_HISTORY_KEY: Final = "bench:sasrec"
_SOURCE: Final = Path(loadtests.__file__).with_name("sasrec.py")


def measure(stand: Stand, users: Sequence[str]) -> Part:
    """Reads and recomputations in turns, one at a time.

    The read is what the service books for itself, from the load out of Redis to the scored list. The recomputation of the figure
    is the graph alone, given the rows of the last 200 items for nothing; with these loaded from Redis it stands beside.
    """
    setup, chance = stand.setup, random.Random(0)
    file, width, layers = sasrec_of(setup.bundle)
    rival = Rival(file, stand.redis, setup.bundle)
    reads: list[float] = []
    runs: list[float] = []
    loaded: list[float] = []
    ratios: list[float] = []
    for _ in range(setup.times(_TURNS, 2)):
        with Client(stand.service) as client:
            client.ask(users[0], HISTORY)
            answers = [client.ask(user, HISTORY) for user in chance.choices(users, k=_RUNS)]
        read = [parse_server_timing(answer.timing)["service"] for answer in answers]
        with _on_core(setup.cores.service):
            run = rival.times_ms(rival.recompute)
            loaded += rival.times_ms(rival.load_and_recompute)
        ratios.append(percentile(run, 50) / percentile(read, 50))
        reads += read
        runs += run
    made_of = {
        "sasrec_p50_ms": percentile(runs, 50),
        "sasrec": f"{layers} layers of width {width}, 2 heads, {_POSITIONS} positions, untrained",
        "sasrec_with_load_p50_ms": percentile(loaded, 50),
        "get_service_p50_ms": percentile(reads, 50),
        "ratio_with_load": percentile(loaded, 50) / percentile(reads, 50),
        "samples": len(reads),
        "ratio_rounds": over_rounds(ratios),
    }
    return Part({"recompute_ratio": median(ratios)}, {"recompute_ratio": made_of})


def sasrec_of(bundle: Measured) -> tuple[Path, int, int]:
    """The graph of a SASRec as wide and deep as the bundle's recurrence, exported once; with its width and layers."""
    manifest = read_manifest(bundle.folder)
    recurrent = next((tensor.shape for tensor in manifest.state if tensor.name == "h"), None)
    if recurrent is None or len(recurrent) != 2:
        raise BenchError("the bundle's state has no `h` of layers and width, so its size is not known")
    layers, width = (int(size) for size in recurrent)
    source = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:8]
    file = BUILD / f"sasrec-{layers}x{width}-{len(bundle.items)}-{source}.onnx"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".tmp")
        command = [sys.executable, "-m", "loadtests.sasrec", *map(str, (beside, width, layers, len(bundle.items)))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"exporting the SASRec failed: {done.stderr.strip()[-500:]}")
        os.replace(beside, file)
    return file, width, layers


class Rival:
    """A SASRec in one thread of ONNX Runtime, on whatever core this process is pinned to."""

    def __init__(self, file: Path, store: redis.Redis, bundle: Measured) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._rows = {item: row for row, item in enumerate(bundle.items)}
        self._store = store
        events = Traffic(bundle.items, bundle.event_type, ["rival"], began_ms=0).events(_POSITIONS)
        store.delete(_HISTORY_KEY)
        store.rpush(_HISTORY_KEY, *(encode_event(_stored(event)) for event in events))
        self._histories = itertools.cycle(np.random.default_rng(0).integers(0, len(bundle.items), (_RUNS, 1, _POSITIONS)))

    def recompute(self) -> None:
        self._session.run(None, {"rows": next(self._histories)})

    def load_and_recompute(self) -> None:
        packed = self._store.lrange(_HISTORY_KEY, -_POSITIONS, -1)
        rows = [self._rows[decode_event(event).item_id or ""] for event in packed]
        self._session.run(None, {"rows": np.asarray([rows], np.int64)})

    def times_ms(self, work: Callable[[], None]) -> list[float]:
        """How long each of _RUNS took."""
        work()  # this core's caches know nothing of it yet
        times = []
        for _ in range(_RUNS):
            began = perf_counter()
            work()
            times.append((perf_counter() - began) * 1e3)
        return times


def _stored(event: dict[str, Any]) -> StoredEvent:
    """As the service keeps it."""
    return StoredEvent(
        event["type"],
        event["timestamp"],
        event["item_id"],
        quantity=event["quantity"],
        price=event["price"],
        basket_id=event["basket_id"],
    )


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    """Run on another core than this process is pinned to."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)
