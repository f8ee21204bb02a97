"""What a read costs beside a model that recomputes: SASRec over 200 events, in ONNX Runtime, on the service's core."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import redis

import loadtests
from app.models.served import ServedModel
from app.models.shelf import load_model
from app.recommend.answer import Query
from app.runtime.bundle import read_manifest
from app.settings import load_settings
from app.state.events import StoredEvent, decode_event, encode_event
from app.state.redis import RedisStore
from app.telemetry import Metrics, Stages
from loadtests.client import Client
from loadtests.errors import BenchError
from loadtests.machine import ROOT
from loadtests.samples import median, over_rounds, parse_server_timing, percentile
from loadtests.stand import HISTORY, Part, Stand
from loadtests.traffic import Traffic
from loadtests.world import BUILD, Measured

_POSITIONS: Final = 200
_TURNS: Final = 8
_RUNS: Final = 25  # a turn, of each kind
_BATCHES: Final = (1, 4, 16, 32)
_HISTORY_KEY: Final = "bench:sasrec"
_SOURCE: Final = Path(loadtests.__file__).with_name("sasrec.py")


def measure(stand: Stand, users: Sequence[str]) -> Part:
    """What one request takes of a core, either way, at the batch size that makes it cheapest.

    A read: the service's own classes in this process, from the load out of Redis to the list, without HTTP. A recomputation: the
    graph alone, given the rows of the last 200 items for nothing. Beside it the same at no load, one request at a time through
    the service, where calling the runtime outweighs the arithmetic of both.
    """
    setup, chance = stand.setup, random.Random(0)
    file, width, layers = sasrec_of(setup.bundle)
    rival = Rival(file, stand.redis, setup.bundle)
    reads: dict[int, list[float]] = {size: [] for size in _BATCHES}
    rivals: dict[int, list[float]] = {size: [] for size in _BATCHES}
    alone: dict[str, list[float]] = {"read": [], "recompute": [], "load_and_recompute": []}
    rounds = []
    with asyncio.Runner() as runner:
        reader = runner.run(Reader.open(stand, users))
        for _ in range(setup.times(_TURNS, 2)):
            with _on_core(setup.cores.service):
                read = {size: runner.run(reader.core_ms(size)) for size in _BATCHES}
                run = {size: percentile(rival.times_ms(partial(rival.recompute, size), size), 50) for size in _BATCHES}
                alone["recompute"] += rival.times_ms(partial(rival.recompute, 1))
                alone["load_and_recompute"] += rival.times_ms(rival.load_and_recompute)
            with Client(stand.service) as client:
                client.ask(users[0], HISTORY)
                answers = [client.ask(user, HISTORY) for user in chance.choices(users, k=_RUNS)]
            alone["read"] += [parse_server_timing(answer.timing)["service"] for answer in answers]
            for size in _BATCHES:
                reads[size].append(read[size])
                rivals[size].append(run[size])
            rounds.append(min(run.values()) / min(read.values()))
        runner.run(reader.close())
    medians = {name: percentile(times, 50) for name, times in alone.items()}
    made_of = {
        "read_core_ms_by_batch": {str(size): median(times) for size, times in reads.items()},
        "sasrec_core_ms_by_batch": {str(size): median(times) for size, times in rivals.items()},
        "sasrec": f"{layers} layers of width {width}, 2 heads, {_POSITIONS} positions, untrained",
        "ratio_rounds": over_rounds(rounds),
        "one_at_a_time": {
            "get_service_p50_ms": medians["read"],
            "sasrec_p50_ms": medians["recompute"],
            "sasrec_with_load_p50_ms": medians["load_and_recompute"],
            "ratio": medians["recompute"] / medians["read"],
            "ratio_with_load": medians["load_and_recompute"] / medians["read"],
        },
    }
    return Part({"recompute_ratio": median(rounds)}, {"recompute_ratio": made_of})


class Reader:
    """The service's read path in this process, on the stand's Redis."""

    def __init__(self, model: ServedModel, users: Sequence[str]) -> None:
        self._model = model
        self._users = itertools.cycle(users)

    @classmethod
    async def open(cls, stand: Stand, users: Sequence[str]) -> Reader:
        settings = load_settings(bundle_dir=stand.setup.bundle.folder, redis_url=stand.store.url, background_fold=False)
        runtime = load_model(settings.bundle_dir, "cpu", 1)
        store = RedisStore(stand.store.url)
        model = ServedModel(settings, store, Metrics(), runtime)
        await model.start()
        return cls(model, users)

    async def core_ms(self, size: int) -> float:
        """Core time of one read, of batches of so many; median of _RUNS."""
        recommend = self._model.service.recommender.recommend
        times = []
        for _ in range(_RUNS + 1):
            now_ms = time.time_ns() // 1_000_000
            queries = [Query("default", next(self._users), 20, now_ms, None) for _ in range(size)]
            began = time.process_time()
            await asyncio.gather(*(recommend(query, Stages()) for query in queries))
            times.append((time.process_time() - began) * 1e3 / size)
        return percentile(times[1:], 50)

    async def close(self) -> None:
        await self._model.stop()
        await self._model.service.store.close()


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

    def recompute(self, size: int) -> None:
        self._session.run(None, {"rows": np.concatenate([next(self._histories) for _ in range(size)])})

    def load_and_recompute(self) -> None:
        packed = self._store.lrange(_HISTORY_KEY, -_POSITIONS, -1)
        rows = [self._rows[decode_event(event).item_id or ""] for event in packed]
        self._session.run(None, {"rows": np.asarray([rows], np.int64)})

    def times_ms(self, work: Callable[[], None], requests: int = 1) -> list[float]:
        """How long each of _RUNS took, for each of its requests."""
        work()  # this core's caches know nothing of it yet
        times = []
        for _ in range(_RUNS):
            began = perf_counter()
            work()
            times.append((perf_counter() - began) * 1e3 / requests)
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
