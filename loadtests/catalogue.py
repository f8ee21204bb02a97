"""`make bench-catalogue`: what large catalogues take, retrieval alone and the service around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, thread_time
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from app.errors import LongwaveError
from app.recommend.index import RowIndex, Source, build, typical_weights
from app.recommend.retrieve import Limits, Retriever
from app.runtime.bundle import Bundle, read_bundle
from app.runtime.session import Runtime, open_runtime
from loadtests.catalogue_service import measure_service
from loadtests.device_scan import NOT_MEASURED, measure_device, open_on_device
from loadtests.errors import BenchError
from loadtests.large_bundle import write_large_bundle
from loadtests.machine import ROOT, choose_cores, describe_commit, describe_machine, load_average
from loadtests.report import write
from loadtests.samples import rounded
from loadtests.servers import end_servers_on_sigterm
from loadtests.shaped_queries import interests
from loadtests.stand import Setup
from loadtests.world import BUILD, Measured, choose_bundle

RESULTS: Final = Path(__file__).parent / "results" / "catalogue.json"

_RATES: Final = (100.0, 250.0, 400.0, 500.0, 750.0, 1_000.0, 1_500.0, 2_000.0)
_FILTERED_FROM: Final = 1_000_000
_K: Final = 100
_USERS: Final = 128
_TIMED: Final = 64
_FEW_USERS: Final = 16  # where an exact list takes long
_ROUNDS: Final = 7
_FILTERS: Final = (0.5, 0.1, 0.01, 0.0001)
_AGAINST: Final = 0.1  # the share of rows that the anti-correlated filter keeps: those that the user wants least
_OPEN: Final = """
import sys, numpy, faiss
from pathlib import Path
from app.recommend.index import RowIndex
def own():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = own()
index = RowIndex(Path(sys.argv[1]))
index.search(index.queries(numpy.zeros((1, index._width), "f4"), numpy.zeros((1, len(index.popularity_weights)), "f4")), 10, 1000)
print(own() - before)
"""
_SOURCES: Final = ("as trained", "popularity weighs nothing", "neither popularity nor bias")

Array = npt.NDArray[Any]


@dataclass
class FixedRows:
    """A bundle's rows, as retrieval sees a catalogue."""

    vectors: Array
    bias: Array
    open: Array
    version: int = 0

    def changed_since(self, version: int) -> Array:
        return np.empty(0, np.int64)


@dataclass(frozen=True)
class Case:
    """A catalogue, users of it, and the two ways to retrieve."""

    users: dict[str, Array]
    popularity: Array
    exact: Retriever
    index: Retriever

    def some(self, first: int, last: int) -> dict[str, Array]:
        return {name: array[first:last] for name, array in self.users.items()}

    def recall(self, limits: Callable[[int], Limits] | None, users: int, popularity: Array | None = None) -> dict[str, Any]:
        """How many of the exact best the index finds, in the mean; by how much the mean score of a list is lower, for the worst
        user; and whether all lists are as long as they must be.
        """
        table = self.popularity if popularity is None else popularity
        shares, losses, whole = [], [], True
        for user in range(users):
            of_user = None if limits is None else [limits(user)]
            right = self.exact.best(self.some(user, user + 1), _K, table, of_user)[0]
            found = self.index.best(self.some(user, user + 1), _K, table, of_user)[0]
            whole &= len(right.rows) == len(found.rows)
            if len(right.rows) == len(found.rows) > 0:
                shares.append(len(np.intersect1d(right.rows, found.rows)) / len(right.rows))
                losses.append(float(right.scores.mean() - found.scores.mean()))
        return {"recall": float(np.mean(shares)), "score_lost": max(max(losses), 0.0), "complete": whole}

    def core_ms(self, limits: Callable[[int], Limits] | None, batch: int, retriever: Retriever | None = None) -> float:
        """Milliseconds of the core for a user, the least of some rounds: what the machine does beside only ever adds."""
        taken = []
        for _ in range(_ROUNDS):
            began = thread_time()
            for first in range(0, _TIMED, batch):
                of_users = None if limits is None else [limits(user) for user in range(first, first + batch)]
                (retriever or self.index).best(self.some(first, first + batch), _K, self.popularity, of_users)
            taken.append((thread_time() - began) / _TIMED * 1e3)
        return min(taken)


def exact_scan(runtime: Runtime, bundle: Bundle) -> Callable[..., tuple[Array, Array]]:
    """score.onnx over all rows."""
    matrix, bias = runtime.resident(bundle.vectors), runtime.resident(bundle.bias)
    nothing = np.zeros((1, len(bundle.bias)), np.float32)

    def scan(interest: Mapping[str, Array], popularity: Array, added: Array | None, m: int) -> tuple[Array, Array]:
        best = runtime.score(
            {
                **interest,
                "item_matrix": matrix,
                "item_bias": bias,
                **runtime.of_popularity(popularity),
                "bias": nothing if added is None else added,
                "k": np.asarray([m], np.int64),
            }
        )
        return best["scores"], best["rows"]

    return scan


def measure(bundle: Bundle, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Retrieval from one catalogue."""
    runtime = open_runtime(bundle, "cpu", 1)
    users = interests(runtime, bundle, _USERS)
    popularity = bundle.popularity.astype(np.float32)
    rows = FixedRows(bundle.vectors, bundle.bias, np.ones(len(bundle.bias), bool))
    weights = typical_weights(users["interests"][:8], users["popularity_weight"][:8])
    began = perf_counter()
    build(Source(rows.vectors, rows.bias, popularity, weights), folder)
    found: dict[str, Any] = {"items": len(bundle.bias), "build_s": perf_counter() - began}
    found["worker_bytes"] = _own_memory(folder)
    index = RowIndex(folder)
    scan = exact_scan(runtime, bundle)
    case = Case(users, popularity, Retriever(rows, scan), Retriever(rows, scan))
    case.index.use(index)
    case.index.best(case.some(0, 1), _K, popularity)
    found["file_bytes"] = sum(file.stat().st_size for file in folder.iterdir())
    found |= case.recall(None, _USERS)
    say(f"recall@{_K} {found['recall']:.4f}")
    for batch in (1, 8, 32):
        found[f"core_ms_batch_{batch}"] = case.core_ms(None, batch)
        found[f"exact_core_ms_batch_{batch}"] = case.core_ms(None, batch, case.exact) if len(bundle.bias) <= 200_000 else None
    say(f"{found['core_ms_batch_1']:.3f} ms alone, {found['core_ms_batch_32']:.3f} in batches of 32")
    found["filters"] = {name: _filtered(case, limits) for name, limits in _filters(bundle, users, popularity).items()}
    say(str({name: one["recall"] for name, one in found["filters"].items()}))
    found["faded"] = {f"{days} days": _faded(case, bundle, days) for days in (1, 3, 10, 30)}
    say(str(found["faded"]))
    found["other_models"] = {}
    for name in _SOURCES[1:]:
        found["other_models"][name] = _other_model(case, rows, name, folder, scan, weights)
        say(f"{name}: {found['other_models'][name]}")
    return found


def _filters(bundle: Bundle, users: dict[str, Array], popularity: Array) -> dict[str, Callable[[int], Limits]]:
    rng = np.random.default_rng(0)
    made: dict[str, Callable[[int], Limits]] = {}
    for share in _FILTERS:
        limits = Limits(mask=rng.random(len(bundle.bias)) < share)
        made[f"keeps {share:.2%}"] = lambda _, limits=limits: limits  # type: ignore[misc]
    kinds = np.asarray([item.categories[0] for item in bundle.items])
    names, kind = np.unique(kinds, return_inverse=True)
    of_kinds, of_rows = [], []
    for user in range(_FEW_USERS):
        scores = (bundle.vectors @ users["interests"][user].T).max(1) + bundle.bias
        scores = scores + np.log(popularity + 0.05) @ users["popularity_weight"][user]
        means = np.bincount(kind, scores) / np.bincount(kind)
        worst = np.argsort(means)[: max(1, int(_AGAINST * len(names)))]
        of_kinds.append(Limits(mask=np.isin(kind, worst)))
        of_rows.append(Limits(mask=scores < np.quantile(scores[::97], _AGAINST)))
    made["the kinds that the user wants least"] = lambda user: of_kinds[user % _FEW_USERS]
    made["the rows that the user wants least"] = lambda user: of_rows[user % _FEW_USERS]
    fresh = Limits(bias=rng.uniform(0, 2, len(bundle.bias)).astype(np.float32))
    made["a bias of 0 to 2 on every row"] = lambda _: fresh
    return made


def _filtered(case: Case, limits: Callable[[int], Limits]) -> dict[str, Any]:
    found = case.recall(limits, _FEW_USERS)
    return found | {"core_ms_batch_1": case.core_ms(limits, 1), "core_ms_batch_8": case.core_ms(limits, 8)}


def _faded(case: Case, bundle: Bundle, days: float) -> dict[str, float]:
    """So long without an event, then as many as there were, on rows drawn anew: the worst that can happen."""
    factor = np.exp2(-days * 86_400 / np.asarray(bundle.manifest.popularity.half_lives_s))
    quiet = (case.popularity * factor).astype(np.float32)
    rng = np.random.default_rng(1)
    moved = quiet + (1 - factor).astype(np.float32) * case.popularity[rng.permutation(len(quiet))]
    out = {}
    for name, table in (("quiet", quiet), ("busy", moved)):
        case.index.use(case.index.index)
        out[name] = case.recall(None, _FEW_USERS, table)["recall"]
        out[f"{name}_unexplained"] = case.index.unexplained
    case.index.use(case.index.index)
    return out


def _other_model(case: Case, rows: FixedRows, name: str, folder: Path, scan: Any, weights: Array) -> dict[str, Any]:
    users = dict(case.users, popularity_weight=np.zeros_like(case.users["popularity_weight"]))
    if name == _SOURCES[2]:
        rows = FixedRows(rows.vectors, np.zeros_like(rows.bias), rows.open)
        scan = _scan_without_bias(scan, rows, -case.exact.rows.bias)
    weights = np.concatenate([weights[: rows.vectors.shape[1] + 1], 0.01 * weights[rows.vectors.shape[1] + 1 :]])
    build(Source(rows.vectors, rows.bias, case.popularity, weights.astype(np.float32)), folder)
    other = Case(users, case.popularity, Retriever(rows, scan), Retriever(rows, scan))
    other.index.use(RowIndex(folder))
    return other.recall(None, _USERS) | {"core_ms_batch_1": other.core_ms(None, 1)}


def _scan_without_bias(scan: Any, rows: FixedRows, against: Array) -> Any:
    def without(interest: Mapping[str, Array], popularity: Array, added: Array | None, m: int) -> tuple[Array, Array]:
        return scan(interest, popularity, against[np.newaxis] if added is None else added + against, m)  # type: ignore[no-any-return]

    return without


def _own_memory(folder: Path) -> int:
    """What a process has more for itself once it has opened an index; asked of a new one, in which no memory lies free."""
    done = subprocess.run([sys.executable, "-c", _OPEN, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def bench(
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle whose items and graphs are taken; default as for `make bench`.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the figures go; what another part found stays there.")] = RESULTS,
    items: Annotated[str, typer.Option(help="How large the catalogues are, by comma.")] = "10000,50000,100000,1000000",
    part: Annotated[
        str, typer.Option(help="By comma: retrieval (alone), service (around it), device (the exact scan on a CUDA device).")
    ] = "retrieval,service",
    seconds: Annotated[float, typer.Option(help="How long a rate is held by the service.")] = 60.0,
) -> None:
    """Measure retrieval from catalogues of several sizes, and the service on them."""
    console, measured = Console(), False
    found: dict[str, Any] = json.loads(out.read_bytes()) if out.exists() else {}
    try:
        source = choose_bundle(bundle)
        for name in part.split(","):
            if name == "device":
                measured |= _measure_device(source, list(map(int, items.split(","))), found, out, console)
                continue
            measured = True
            of_part = found[name] = _described(source)
            for count in map(int, items.split(",")):
                folder = _drawn(source, count, console)
                say = lambda line, count=count: console.print(f"{count:,}: {line}", highlight=False)  # noqa: E731
                if name == "retrieval":
                    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                        of_part[str(count)] = measure(read_bundle(folder), Path(scratch) / "index", say)
                else:
                    setup = Setup(choose_bundle(folder), choose_cores())
                    of_part[str(count)] = measure_service(setup, _RATES, count >= _FILTERED_FROM, seconds, say)
                of_part["load_average"]["after"] = load_average()
                write(rounded(_figures(found) | found), out)  # the next one takes long, and may fail
    except (BenchError, LongwaveError) as error:
        Console(stderr=True).print("error:", str(error), soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
    if measured:
        console.print(f"-> {os.path.relpath(out)}")


def _measure_device(source: Measured, counts: Sequence[int], found: dict[str, Any], out: Path, console: Console) -> bool:
    bundle = read_bundle(source.folder)
    runtime = open_on_device(bundle)
    if runtime is None:
        console.print(NOT_MEASURED)
        return False
    of_part = found["device"] = _described(source) | {"device": runtime.device.why}
    for count in counts:
        say = lambda line, count=count: console.print(f"{count:,}: {line}", highlight=False)  # noqa: E731
        of_part[str(count)] = measure_device(runtime, bundle, count, say)
        of_part["load_average"]["after"] = load_average()
        write(rounded(_figures(found) | found), out)
    return True


def _described(source: Measured) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "load_average": {"before": load_average()},
        "model_id": source.model_id,
        "bundle": source.source,
        "data": source.data,
    }


def _drawn(source: Measured, count: int, console: Console) -> Path:
    folder = BUILD.parent / "catalogue" / f"{source.model_id}-{count}"
    if not (folder / "manifest.json").exists():
        console.print(f"drawing {count:,} items")
        write_large_bundle(source.folder, count, folder)
    return folder


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by their names; None for what has not been measured."""
    retrieval, service = found.get("retrieval", {}), found.get("service", {})
    million: Mapping[str, Any] = service.get("1000000", {})
    smallest: Mapping[str, Any] = service.get("10000", {})
    filtered = [one["rate"] for one in million.get("filters", {}).values()]
    return {
        "rps_10k": smallest.get("plain", {}).get("rate"),
        "rps_100k": service.get("100000", {}).get("plain", {}).get("rate"),
        "rps_1m": million.get("plain", {}).get("rate"),
        "recall_1m": retrieval.get("1000000", {}).get("recall"),
        "rps_1m_filtered": min(filtered, default=None),
        "memory_1m_bytes": million.get("memory_bytes"),
        "item_visible_ms": million.get("visible_ms"),
        "explain_ratio": smallest.get("explain_ratio"),
        "explain_exact_ms": smallest.get("explain_exact_ms"),
    }


if __name__ == "__main__":
    end_servers_on_sigterm()
    typer.run(bench)
