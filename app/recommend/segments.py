"""All items on a device, in segments that stay there, and the best of them: docs/adr/0028-device-scan.md.

A change of the catalogue moves little: rows that came or got another vector lie in a delta, a small segment that is put anew;
where such a row was, and where one is closed, the bias of its segment is -inf. A large delta is laid out with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from app.recommend.index import Float32, Int64
from app.recommend.lately import Lately
from app.recommend.scan import Found, Users, best_of
from app.runtime.session import Feed

BLOCK: Final = 128
"""Rows that scan.onnx looks at together: a segment has a multiple of these."""

SEGMENT_ROWS: Final = 1 << 20
"""Rows of a segment, unless a setting says otherwise: 32 users' scores of them are 128 MB."""

DELTA_MOST: Final = 32_768
"""Rows of the delta beyond which it is laid out with the rest: 8 MB at 64 numbers a row, put with every change."""

_NOTHING: Final = np.float32(-np.inf)
_NO_ROWS: Final = np.empty(0, np.int64)
_NO_SCORES: Final = np.empty(0, np.float32)
_SCORES: Final = 1 << 28  # of one call: 1 GB for each tensor that holds them, and below 2**31, where CUDA's kernels stop
_MOMENTS: Final = 4  # whose biases and popularity are held
_BIASES: Final = 16  # of rules, held on the device: 4 bytes an item each

Array = npt.NDArray[Any]
Interest = Mapping[str, Array]

log = structlog.get_logger()


class Graphs(Protocol):
    """What is needed of a runtime."""

    @property
    def scan(self) -> Callable[[Mapping[str, Feed]], dict[str, Array]] | None: ...

    def resident(self, array: Array) -> Feed: ...

    def kept_popularity(self, popularity: Array) -> dict[str, Feed]: ...


class Renewals(Protocol):
    """What is needed of a catalogue beside what is shown of it."""

    def renewed_since(self, changes: int) -> Int64:
        """Rows that came, or whose vector or bias changed, after so many changes."""


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A catalogue at a moment, taken where it is changed.

    Attributes:
        changes: that it had seen.
        vectors: (N, D), of which a row may be renewed later. bias: (N,), -inf where an item is not available.
    """

    changes: int
    vectors: Float32
    bias: Float32


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies where: segments, rows of the largest, rows in the delta, how often it was laid out with the rest."""

    segments: int
    segment_rows: int
    delta_rows: int
    compactions: int


@dataclass(frozen=True, slots=True, eq=False)
class _Segment:
    """Rows on the device: `first` and on, or `rows`, ascending, in a delta; `size` of them with what fills the last block."""

    first: int
    rows: Int64 | None
    count: int
    size: int
    matrix: Feed

    def of(self, array: Array, beyond: float) -> Array:
        """(size, ...) of an array by row; `beyond` where it has none."""
        part = array[self.first : self.first + self.count] if self.rows is None else array[self.rows[self.rows < len(array)]]
        if len(part) == self.size:
            return part
        whole = np.full((self.size, *array.shape[1:]), beyond, array.dtype)
        whole[: len(part)] = part
        return whole

    def places(self, rows: Int64) -> Int64:
        """Places in the segment of rows of any shape; -1 where a row is not in it."""
        if self.rows is None:
            return np.where((rows >= self.first) & (rows < self.first + self.count), rows - self.first, -1)
        places = np.minimum(self.rows.searchsorted(rows), self.count - 1)
        return np.where(self.rows[places] == rows, places, -1)

    def global_rows(self, places: Int64) -> Int64:
        found: Int64 = places + self.first if self.rows is None else self.rows[np.minimum(places, self.count - 1)]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Base:
    """The first `count` rows as they were after so many changes."""

    changes: int
    count: int
    segments: tuple[_Segment, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """A shown catalogue: the base's segments, and the delta behind them if it has rows; the biases of each, None where no row
    is available."""

    shown: Shown
    base: _Base
    segments: tuple[_Segment, ...]
    biases: tuple[Feed | None, ...]


class Segments:
    """The items of one catalogue on a device. Used by several threads; `Shown` must be made where the catalogue is changed."""

    def __init__(
        self,
        graphs: Graphs,
        catalogue: Renewals,
        shown: Shown,
        *,
        rows: int,
        delta_most: int = DELTA_MOST,
        block: int = BLOCK,
        beside: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """Lay the items out.

        Args:
            rows: of a segment at most; rounded up to blocks.
            beside: runs a long piece of work, in a thread if not said.
        """
        assert graphs.scan is not None
        self._graphs = graphs
        self._scan = graphs.scan
        self._catalogue = catalogue
        self._rows = -(-rows // block) * block
        self._block = block
        self._delta_most = delta_most
        self._beside = beside or (lambda work: Thread(target=work, name="compaction", daemon=True).start())
        self._lock = Lock()
        self._compacting = False
        self._compactions = 0
        # By the addresses of what they are made of, which they hold.
        self._views: Lately[tuple[int, int], _View] = Lately(_MOMENTS)
        self._deltas: Lately[tuple[int, int], _Segment] = Lately(_MOMENTS)
        self._biases: Lately[int, tuple[_Segment, Array, Feed | None]] = Lately(0)
        self._recent: Lately[tuple[int, int], tuple[_Segment, Array, dict[str, Feed]]] = Lately(0)
        self._ruled: Lately[tuple[int, int, int], tuple[_Segment, Array | None, Array | None, Feed | None]] = Lately(0)
        self._zeros: dict[int, Feed] = {}
        self._base = _Base(shown.changes, 0, ())
        self._use(self._laid_out(shown, self._base))
        self._layout = Layout(0, 0, 0, 0)
        self._view(shown)

    @property
    def layout(self) -> Layout:
        return self._layout

    def best(
        self,
        interest: Interest,
        m: int,
        shown: Shown,
        popularity: Float32,
        mask: Array | None = None,
        added: Float32 | None = None,
        without: Sequence[Sequence[int]] | None = None,
    ) -> list[Found]:
        """The m best rows, m > 0, for each of B users, exactly; ties by lower row.

        Args:
            interest: outputs of interest.onnx, and `repeat_rows` (B, R).
            popularity: (N, P) decayed counts, the same array for all who ask at that moment.
            mask: (N,) which rows may come back. added: (N,) added to their scores. Both are the same arrays for all who have the
                same rules, and not written to: what is made of them on the device is held.
            without: for each user rows that may not come back. Of so many more are found, so they should be few.
        """
        users = Users(interest)
        left_out = [np.unique(np.asarray(rows, np.int64)) for rows in without] if without is not None else []
        k = m + max(map(len, left_out), default=0)
        view = self._view(shown)
        candidates: list[list[tuple[Int64, Float32]]] = [[] for _ in range(len(users))]
        for segment, bias in zip(view.segments, view.biases, strict=True):
            ruled = self._rules(segment, mask, added)
            if bias is None or ruled is None:
                continue
            items = {"item_matrix": segment.matrix, "item_bias": bias, "bias": ruled, **self._popular(segment, popularity)}
            most = max(1, _SCORES // (segment.size * users.interests.shape[1]))
            for start in range(0, len(users), most):
                some = users.some(range(start, min(start + most, len(users))))
                for user, of_segment in enumerate(self._tops(segment, some, items, k), start):
                    candidates[user].append(of_segment)
        found = []
        for user, parts in enumerate(candidates):
            found_rows = np.concatenate([_NO_ROWS, *(rows for rows, _ in parts)])
            scores = np.concatenate([_NO_SCORES, *(of_rows for _, of_rows in parts)])
            if left_out and len(left_out[user]):
                kept = np.isin(found_rows, left_out[user], invert=True)
                found_rows, scores = found_rows[kept], scores[kept]
            found.append(best_of(found_rows, scores, m))
        return found

    def compact(self, shown: Shown) -> None:
        """Lay out the delta with the rest, as of a shown catalogue, while others go on asking."""
        base = self._laid_out(shown, self._base)
        with self._lock:
            self._compactions += 1
            self._use(base)
        log.info("the delta is laid out with the rest", rows=base.count, segments=len(base.segments))

    def _use(self, base: _Base) -> None:
        """Answer with another base; what it replaces gives its place on the device back once nobody is answered with it."""
        self._base = base
        self._views.keep(lambda _: False)
        self._deltas.keep(lambda _: False)
        self._biases.keep(lambda known: known[0] in base.segments)
        self._recent.keep(lambda known: known[0] in base.segments)
        self._ruled.keep(lambda known: known[0] in base.segments)
        several = len(base.segments) + 1
        self._biases.most, self._recent.most, self._ruled.most = _MOMENTS * several, 2 * several, _BIASES * several

    def _laid_out(self, shown: Shown, old: _Base) -> _Base:
        """All rows in segments; those in which nothing was renewed since are the old ones."""
        count = len(shown.bias)
        renewed = self._catalogue.renewed_since(old.changes)
        segments = []
        for number, first in enumerate(range(0, count, self._rows)):
            last = min(first + self._rows, count)
            known = old.segments[number] if number < len(old.segments) else None
            touched = renewed.searchsorted(last) > renewed.searchsorted(first)
            if known is not None and known.count == last - first and not touched:
                segments.append(known)
            else:
                segments.append(self._put(shown.vectors, first, None, last - first, -(-(last - first) // self._block)))
        return _Base(shown.changes, count, tuple(segments))

    def _put(self, vectors: Float32, first: int, rows: Int64 | None, count: int, blocks: int) -> _Segment:
        bare = _Segment(first, rows, count, blocks * self._block, vectors)
        return _Segment(first, rows, count, bare.size, self._graphs.resident(bare.of(vectors, 0.0)))

    def _view(self, shown: Shown) -> _View:
        with self._lock:
            base = self._base
            view = self._views.get((id(base), id(shown)))
            if view is not None:
                return view
            delta = self._delta(base, shown)
            segments = base.segments if delta is None else (*base.segments, delta)
            biases = tuple(self._bias(segment, shown, delta if segment is not delta else None) for segment in segments)
            view = self._views.put((id(base), id(shown)), _View(shown, base, segments, biases))
            most = max((segment.count for segment in base.segments), default=0)
            delta_rows = 0 if delta is None else delta.count
            self._layout = Layout(len(base.segments), most, delta_rows, self._compactions)
            due = delta_rows > self._delta_most and not self._compacting
            self._compacting |= due
        if due:
            self._beside(lambda: self._compact_beside(shown))
        return view

    def _compact_beside(self, shown: Shown) -> None:
        try:
            self.compact(shown)
        except Exception as error:  # nobody waits for it: lists go on being exact without
            log.error("the delta could not be laid out with the rest", reason=str(error))
        finally:
            self._compacting = False

    def _delta(self, base: _Base, shown: Shown) -> _Segment | None:
        """Rows that are not in the base, or not as they were then."""
        count = len(shown.bias)
        renewed = self._catalogue.renewed_since(base.changes)
        rows = np.union1d(renewed[renewed < count], np.arange(base.count, count))
        if not len(rows):
            return None
        key = (id(base), shown.changes)
        delta = self._deltas.get(key)
        if delta is not None and delta.rows is not None and np.array_equal(delta.rows, rows):
            return delta
        # In powers of two: few different shapes, and what the device allocated is of use again.
        blocks = 1 << (-(-len(rows) // self._block) - 1).bit_length()
        return self._deltas.put(key, self._put(shown.vectors, 0, rows, len(rows), blocks))

    def _bias(self, segment: _Segment, shown: Shown, delta: _Segment | None) -> Feed | None:
        """-inf where a row is not available, where it is in the delta, and behind the last."""
        bias = segment.of(shown.bias, -np.inf)
        if delta is not None and delta.rows is not None:
            first, last = delta.rows.searchsorted([segment.first, segment.first + segment.count])
            if last > first:
                bias = bias.copy()
                bias[delta.rows[first:last] - segment.first] = _NOTHING
        known = self._biases.find(lambda one: one[0] is segment and np.array_equal(one[1], bias))
        if known is None:
            feed = self._graphs.resident(bias) if (bias > _NOTHING).any() else None
            known = self._biases.put(id(bias), (segment, bias, feed))
        return known[2]

    def _popular(self, segment: _Segment, popularity: Float32) -> dict[str, Feed]:
        """What the graph takes of a table, on the device."""
        key = (id(segment), id(popularity))
        known = self._recent.get(key)
        if known is None:
            made = self._graphs.kept_popularity(segment.of(popularity, 0.0))
            known = self._recent.put(key, (segment, popularity, made))
        return known[2]

    def _rules(self, segment: _Segment, mask: Array | None, added: Float32 | None) -> Feed | None:
        """(1, size) on the device; None where the mask lets nothing through."""
        if mask is None and added is None:
            zeros = self._zeros.get(segment.size)
            if zeros is None:
                zeros = self._zeros[segment.size] = self._graphs.resident(np.zeros((1, segment.size), np.float32))
            return zeros
        key = (id(segment), id(mask), id(added))
        known = self._ruled.get(key)
        if known is None:
            bias = np.zeros(segment.size, np.float32) if added is None else segment.of(added, 0.0).astype(np.float32)
            if mask is not None:
                np.copyto(bias, _NOTHING, where=~segment.of(mask, False))
            feed = self._graphs.resident(bias[np.newaxis]) if (bias > _NOTHING).any() else None
            known = self._ruled.put(key, (segment, mask, added, feed))
        return known[3]

    def _tops(self, segment: _Segment, users: Interest, items: Mapping[str, Feed], k: int) -> list[tuple[Int64, Float32]]:
        """For each user rows and scores among which the k best of the segment are, ties by lower row.

        A device chooses among equal scores as it likes. Where the last one that was chosen has the score of the next, more are
        asked for, until the last is lower: then all that have it are there.
        """
        if "repeat_rows" in users:
            users = {**users, "repeat_rows": segment.places(users["repeat_rows"])}
        count = len(users["interests"])
        found: list[tuple[Int64, Float32]] = [(_NO_ROWS, _NO_SCORES)] * count
        waiting, asked = np.arange(count), min(k + 1, segment.size)
        while len(waiting):
            some = users if len(waiting) == count else {name: array[waiting] for name, array in users.items()}
            best = self._scan({**some, **items, "k": np.asarray([asked], np.int64)})
            scores, places = best["scores"], best["rows"]
            for place, its, of_user in zip(waiting.tolist(), scores, places, strict=True):
                kept = its > _NOTHING
                found[place] = segment.global_rows(of_user[kept]), its[kept]
            if asked == segment.size:
                break
            waiting = waiting[(scores[:, -1] > _NOTHING) & (scores[:, k - 1] == scores[:, -1])]
            asked = min(4 * asked, segment.size)
        return found
