"""An index over the rows of a catalogue: which rows are worth scoring exactly, out of millions. docs/adr/0019-retrieval.md.

A score is an inner product, but for repeats and rules: of (interest, 1, popularity weights) with (vector, bias, log popularity).
Rows are indexed by all of these. Over the vectors alone most of the best rows are missed, since popularity often moves scores
more than anything else. Popularity goes on moving; app/recommend/lifted.py makes up for that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from app.arrays import mapped
from app.errors import IndexDamagedError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]

RARE: Final = 0.05
"""What score.onnx adds to a decayed count before its logarithm."""

FORMAT: Final = 1
_META: Final = "meta.json"
_INDEX: Final = "index.faiss"
_LISTS: Final = "lists.npy"
_POPULARITY: Final = "popularity.npy"

_CHUNK: Final = 100_000  # rows that are in memory twice while an index is made
_PER_LIST: Final = 40  # rows a centroid is learned from
_ROUNDS: Final = 6
_SEED: Final = 1
_USUAL: Final = 512  # lists that are put into their order at first


def is_installed() -> bool:
    """Whether faiss is here (it comes with the extra `cpu`)."""
    return find_spec("faiss") is not None


def _faiss() -> Any:
    """The library, with as many threads as the rest of a worker has."""
    faiss = import_module("faiss")  # takes tens of megabytes: only for who has an index
    faiss.omp_set_num_threads(1)
    return faiss


def list_count(rows: int) -> int:
    """How many lists an index of so many rows has: 4 sqrt(N)."""
    return max(1, min(int(4 * np.sqrt(rows)), rows // _PER_LIST))


@dataclass(frozen=True)
class Source:
    """What an index is made of, all of N rows.

    Attributes:
        vectors: (N, D) float32. bias: (N,) float32.
        popularity: (N, P) decayed counts, float32.
        weights: (D + 1 + P,) how much a query typically multiplies each with: what it weighs more is stored more exactly.
        version: the catalogue's version that this is; rows changed later are not in the index.
    """

    vectors: Float32
    bias: Float32
    popularity: Float32
    weights: Float32
    version: int = 0


def typical_weights(interests: Float32, popularity_weight: Float32) -> Float32:
    """(D + 1 + P,) root mean squares of some queries: interests (n, J, D), popularity_weight (n, P)."""
    vector = np.sqrt(np.square(interests, dtype=np.float64).mean()) or 1.0
    popularity = np.sqrt(np.square(popularity_weight, dtype=np.float64).mean(0))
    whole = np.concatenate([np.full(interests.shape[-1], vector), [1.0], popularity])
    # A weight that these few queries do not use may be another's.
    weights: Float32 = np.maximum(whole, 0.05 * vector).astype(np.float32)
    return weights


def build(source: Source, folder: Path, say: Callable[[str], None] = lambda _: None) -> None:
    """Make the index of some rows as `folder`, whole or not at all; another one that is there already is replaced."""
    faiss = _faiss()
    count, known = len(source.vectors), len(source.weights)
    width = known + known % 2  # two numbers to each code
    rows = np.random.default_rng(_SEED).permutation(count)[: _PER_LIST * list_count(count)]
    sample = _rows(source, np.sort(rows), width)
    say(f"learning {list_count(count)} lists from {len(sample)} rows")
    means = faiss.Kmeans(
        width, list_count(count), niter=_ROUNDS, seed=_SEED, min_points_per_centroid=1, max_points_per_centroid=_PER_LIST
    )
    means.train(sample)
    lists = faiss.IndexFlatL2(width)
    lists.add(means.centroids)
    index = faiss.IndexIVFPQFastScan(lists, width, lists.ntotal, width // 2, 4, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = True
    index.train(sample)
    for start in range(0, count, _CHUNK):
        say(f"row {start} of {count}")
        index.add(_rows(source, np.arange(start, min(start + _CHUNK, count)), width))
    list_of = np.empty(count, np.uint16 if lists.ntotal <= 2**16 else np.uint32)
    for number in range(lists.ntotal):
        list_of[_ids(faiss, index, number)] = number
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        faiss.write_index(index, str(beside / _INDEX))
        np.save(beside / _LISTS, list_of)
        np.save(beside / _POPULARITY, np.log(source.popularity + np.float32(RARE), dtype=np.float32))
        sums = {name: _sha256(beside / name) for name in (_INDEX, _LISTS, _POPULARITY)}
        meta = {
            "format": FORMAT,
            "rows": count,
            "width": source.vectors.shape[1],
            "version": source.version,
            "weights": source.weights.tolist(),
            "files": sums,
        }
        (beside / _META).write_text(json.dumps(meta), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _rows(source: Source, rows: Int64, width: int) -> Float32:
    """(n, width) what is indexed of some rows."""
    known = len(source.weights)
    whole = np.zeros((len(rows), width), np.float32)
    d = source.vectors.shape[1]
    whole[:, :d] = source.vectors[rows]
    whole[:, d] = source.bias[rows]
    np.log(source.popularity[rows] + np.float32(RARE), out=whole[:, d + 1 : known])
    whole[:, :known] *= source.weights
    return whole


def _ids(faiss: Any, index: Any, number: int) -> Int64:
    size = index.invlists.list_size(number)
    if not size:
        return np.empty(0, np.int64)
    ids: Int64 = faiss.rev_swig_ptr(index.invlists.get_ids(number), size).copy()
    return ids


def _first(matches: Float32, number: int) -> Int64:
    """(n, number) places of the largest of (n, lists) values, the largest first."""
    number = min(number, matches.shape[1])
    if number < matches.shape[1]:
        some = np.argpartition(-matches, number, 1)[:, :number]
        order = np.argsort(-np.take_along_axis(matches, some, 1), 1)
        return np.take_along_axis(some, order, 1)
    return np.argsort(-matches, 1)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Kept:
    """Which indexed rows a search may find.

    Attributes:
        bits: one bit a row, little-endian. per_list: how many of each list they are, about.
    """

    bits: Bits
    per_list: Int64


class RowIndex:
    """An index in memory. Only reads; any thread may search.

    Attributes:
        rows: how many it is of. version: of the catalogue then.
        log_popularity: (rows, P) log(counts + RARE) then, mapped from the file. popularity_weights: (P,) what users typically
            weigh it with.
    """

    def __init__(self, folder: Path) -> None:
        """Open what `build` made.

        Raises:
            IndexDamagedError: it is missing, damaged, or of another format.
        """
        self._faiss = faiss = _faiss()
        try:
            meta = json.loads((folder / _META).read_bytes())
            if meta["format"] != FORMAT:
                raise IndexDamagedError(f"{folder}: format {meta['format']}, this is {FORMAT}")
            for name, expected in meta["files"].items():
                if _sha256(folder / name) != expected:
                    raise IndexDamagedError(f"{folder / name}: damaged")
            # Not mapped: faiss maps plain lists, and these are blocks. It would be a worker's own memory all the same.
            self._index = faiss.read_index(str(folder / _INDEX))
            self._list_of = np.asarray(mapped(folder / _LISTS))
            self.log_popularity: Float32 = np.asarray(mapped(folder / _POPULARITY))
            self.rows, self.version = int(meta["rows"]), int(meta["version"])
            self._width = int(meta["width"])
            self._weights = np.asarray(meta["weights"], np.float32)
            self.popularity_weights: Float32 = self._weights[self._width + 1 :]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise IndexDamagedError(f"{folder}: cannot be opened: {str(error).splitlines()[0]}") from None
        lists = faiss.downcast_index(self._index.quantizer)
        self._centroids: Float32 = lists.reconstruct_n(0, lists.ntotal).T.copy()  # (width, lists)
        self.sizes: Int64 = np.asarray([self._index.invlists.list_size(number) for number in range(lists.ntotal)], np.int64)

    def kept(self, mask: npt.NDArray[np.bool_]) -> Kept:
        """Prepare a mask over the indexed rows: a millisecond for each million rows, so once for all who share it."""
        return Kept(np.packbits(mask, bitorder="little"), np.bincount(self._list_of[mask], minlength=len(self.sizes)))

    def queries(self, interests: Float32, popularity_weight: Float32) -> Float32:
        """(n, width) what is searched for: interests (n, D), popularity_weight (n, P)."""
        known = len(self._weights)
        whole = np.zeros((len(interests), self._index.d), np.float32)
        whole[:, : self._width] = interests
        whole[:, self._width] = 1.0
        whole[:, self._width + 1 : known] = popularity_weight
        whole[:, :known] /= self._weights
        return whole

    def search(self, queries: Float32, number: int, scanned: int, kept: Kept | None = None) -> Int64:
        """About the best `number` rows for each query, (n, number) in no order that means anything, -1 where there are no more.

        Args:
            queries: of `queries`.
            scanned: how many (kept) rows to look at, at least: the lists that lie best for the query are taken until they hold so
                many. Lists without any kept row cost nothing, so a mask that keeps only what the user does not care for is
                no worse than others.
        """
        n = len(queries)
        matches = queries @ self._centroids  # (n, lists)
        per_list = self.sizes if kept is None else kept.per_list
        if kept is not None:
            matches[:, per_list == 0] = -np.inf
        order = _first(matches, _USUAL)
        held = np.cumsum(per_list[order], 1)
        if (held[:, -1] < scanned).any():
            order = _first(matches, matches.shape[1])
            held = np.cumsum(per_list[order], 1)
        used = np.minimum((held < scanned).sum(1) + 1, np.count_nonzero(per_list))  # lists for each query
        most = max(1, int(used.max()))
        probed = np.ascontiguousarray(order[:, :most], np.int64)
        matches = np.take_along_axis(matches, probed, 1)
        probed[np.arange(most) >= used[:, np.newaxis]] = -1
        rows = np.full((n, number), -1, np.int64)
        if not used.any():
            return rows
        scores = np.empty((n, number), np.float32)
        faiss = self._faiss
        chosen = faiss.IVFSearchParameters(nprobe=most, sel=None if kept is None else faiss.IDSelectorBitmap(kept.bits))
        pointer = faiss.swig_ptr
        # faiss' own wrapper takes no parameters; the lists are chosen here, so that it must not choose any.
        self._index.search_preassigned_c(
            n, pointer(queries), number, pointer(probed), pointer(matches), pointer(scores), pointer(rows), False, chosen
        )
        return rows
