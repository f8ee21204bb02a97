"""Users against the whole catalogue: interest.onnx and score.onnx with everything that enters them, many users in one call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter, time_ns
from typing import Literal
from weakref import WeakMethod

import numpy as np

from app.catalogue.catalogue import Catalogue, Float32, Int64
from app.catalogue.popularity import LivePopularity
from app.fold import Fold
from app.recommend.device import DeviceScan
from app.recommend.index import Source, typical_weights
from app.recommend.indexed import LiveRows
from app.recommend.retrieve import Limits, Retriever, choose_mode
from app.recommend.rules import spread_of
from app.recommend.segments import SEGMENT_ROWS, Shown
from app.runtime.golden import golden_output
from app.runtime.session import Array, Feed, Runtime

_SLOTS_STEP = 32
_SAMPLED = 20_000  # items, for the spread of scores


@dataclass(frozen=True, slots=True)
class Question:
    """The k best items for a user.

    Attributes:
        blob: the user's state, packed.
        as_of_ms: when it is asked.
        platform: index of the platform where it is asked.
        forbidden: rows that must not come back.
        among: if given, the only rows that may come back.
        mask: (N,) if given, which rows may come back.
        added: (N,) if given, added to the scores. Both are shared by questions with the same rules, and not written to.
        count: if given, of the rows that there were when the question's rules were made: none that came later may come back.
        keeps: whether the answer is to say what was read out of the state.
    """

    blob: bytes
    k: int
    as_of_ms: int
    platform: int
    forbidden: Sequence[int]
    among: Sequence[int] | None = None
    mask: Array | None = None
    added: Array | None = None
    count: int | None = None
    keeps: bool = False

    @property
    def is_free(self) -> bool:
        """Whether every item may come back, by its score alone."""
        return self.among is None and self.mask is None and self.added is None and not self.forbidden


@dataclass(frozen=True, slots=True)
class Read:
    """One user's state (1, ...), the slots of own repeats perhaps without empty ones, and what interest.onnx said of it."""

    state: Mapping[str, Array]
    interest: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Ranked:
    """Rows and scores, best first, ties by lower row; fewer than k only if fewer are eligible.

    `interest_s` and `score_s` are what the two calls took that this question was part of; `read` is what the question keeps.
    """

    rows: Int64
    scores: Float32
    interest_s: float
    score_s: float
    read: Read | None = field(default=None, repr=False)  # arrays, which a traceback need not print


@dataclass(frozen=True, slots=True)
class _Items:
    """The items on the device in one piece, as of `changes` of the catalogue and as available at some moment.

    `bias` is where `item_bias` came from, `nothing` an additive bias (1, N) that forbids nothing.
    """

    changes: int
    bias: Array
    item_matrix: Feed
    item_bias: Feed
    nothing: Feed


@dataclass(frozen=True, slots=True)
class _Table:
    """What depends on the moment of asking: popularity (N, P), and which items are available."""

    popularity: Array
    items: _Items | Shown

    @property
    def key(self) -> tuple[int, int]:
        """The same for those that can be answered in one call."""
        return id(self.popularity), id(self.items)


class Scorer:
    """Scores all N items for each user and takes the best; item matrix and bias lie on the device from the start.

    A list depends on its question alone (to float noise), whatever else is in the batch.

    Attributes:
        spread: standard deviation of a user's scores over the items, a typical one.
        mode: whether the search is exact or goes through an index, once there is one; `why` says why, in words.
        retriever: what searches through the index, None where the search is exact.
        device: where the items lie on a device in segments, None where all are in one piece.
    """

    def __init__(
        self,
        runtime: Runtime,
        catalogue: Catalogue,
        popularity: LivePopularity,
        fold: Fold,
        retrieval: Literal["auto", "exact", "index"] = "exact",
        segment_rows: int = SEGMENT_ROWS,
    ) -> None:
        """`retrieval` and `segment_rows` are settings, for the former see `choose_mode`."""
        self._runtime = runtime
        self._catalogue = catalogue
        self._popularity = popularity
        self._fold = fold
        # On another device the event loop has something better to do than to wait for it.
        self._waits = runtime.device.name != "cpu"
        in_segments = self._waits and runtime.scan is not None
        self.device = DeviceScan(runtime, catalogue, catalogue.bias, segment_rows) if in_segments else None
        self._items = self._resident(catalogue.bias) if self.device is None else None
        self._recent: tuple[Array | None, Mapping[str, Feed]] = (None, {})
        shapes = {tensor.name: tensor.shape for tensor in runtime.bundle.manifest.graphs["interest"].inputs}
        self._state = [tensor.name for tensor in runtime.bundle.manifest.state if tensor.name in shapes]
        self._slots_are_free = "repeat_key" in shapes and isinstance(shapes["repeat_key"][1], str)
        self._slotted = [name for name in self._state if name.startswith("repeat_")]
        self.spread = _spread(runtime, catalogue)
        self.mode, self.why = choose_mode(retrieval, len(catalogue), runtime.device.name)
        self._rows = LiveRows(catalogue)
        scan = WeakMethod(self._scan)  # who asks through the retriever is here, and no part of a cycle

        def exact(interest: Mapping[str, Array], popularity: Array, bias: Array | None, m: int) -> tuple[Array, Array]:
            found = scan()
            assert found is not None
            return found(interest, popularity, bias, m)

        self.retriever = Retriever(self._rows, exact) if self.mode == "index" else None

    def _resident(self, bias: Array) -> _Items:
        """The items as they are now, on the device."""
        matrix, nothing = self._catalogue.vectors, np.zeros((1, len(bias)), np.float32)
        put = self._runtime.resident
        return _Items(self._catalogue.changes, bias, put(matrix), put(bias), put(nothing))

    def _at(self, as_of_ms: int) -> _Items | Shown:
        """The items as they are available at a moment."""
        bias = self._catalogue.bias_at(as_of_ms)
        if self.device is not None:
            return self.device.at(bias)
        items = self._items
        if items is None or items.changes != self._catalogue.changes:
            items = self._items = self._resident(bias)
        elif items.bias is not bias:
            items = self._items = replace(items, bias=bias, item_bias=self._runtime.resident(bias))
        return items

    async def rank(self, questions: Sequence[Question], beside: bool = False) -> list[Ranked]:
        """The answers to some questions, in their order.

        `beside` is for a question that wants a good part of all items: exactly, and in a thread.
        """
        # Popularity and items are the event loop's; taken here, not in the thread.
        tables: list[_Table] = []
        for question in questions:
            popularity, items = self._popularity.at(question.as_of_ms), self._at(question.as_of_ms)
            if tables and tables[-1].popularity is popularity and tables[-1].items is items:
                tables.append(tables[-1])
            else:
                tables.append(_Table(popularity, items))
        through_index = not beside and self.retriever is not None and self.retriever.index is not None
        if self._waits or beside:
            return await asyncio.to_thread(self._rank, questions, tables, through_index)
        return self._rank(questions, tables, through_index)

    def _rank(self, questions: Sequence[Question], tables: list[_Table], through_index: bool) -> list[Ranked]:
        began = perf_counter()
        tensors = self._tensors([question.blob for question in questions])
        tensors["as_of"] = np.asarray([question.as_of_ms for question in questions], np.int64)
        tensors["platform"] = np.asarray([question.platform for question in questions], np.int64)
        interest = self._runtime.interest(tensors)
        interest_s = perf_counter() - began
        if all(table is tables[0] for table in tables):
            return _with_reads(
                self._score(questions, interest, tables[0], interest_s, through_index), questions, tensors, interest
            )
        ranked: dict[int, Ranked] = {}
        for table in {table.key: table for table in tables}.values():  # one call for each second that was asked for
            places = [place for place, one in enumerate(tables) if one.key == table.key]
            some = {name: array[places] for name, array in interest.items()}
            answers = self._score([questions[p] for p in places], some, table, interest_s, through_index)
            ranked.update(zip(places, answers, strict=True))
        return _with_reads([ranked[place] for place in range(len(questions))], questions, tensors, interest)

    def _tensors(self, blobs: Sequence[bytes]) -> dict[str, Array]:
        """What interest.onnx reads of some states, (B, ...), without the slots of the own-repeat memory that are empty for all
        if the graph takes any number of them."""
        tensors = self._fold.read(blobs, self._state)
        if self._slots_are_free:
            used = np.logical_or.reduce(tensors["repeat_key"], 0).nonzero()[0]
            slots = int(used[-1]) + 1 if len(used) else 1
            slots = -(-slots // _SLOTS_STEP) * _SLOTS_STEP  # few different shapes
            for name in self._slotted:
                tensors[name] = tensors[name][:, :slots]
        return tensors

    def _score(
        self, questions: Sequence[Question], interest: dict[str, Array], table: _Table, interest_s: float, through_index: bool
    ) -> list[Ranked]:
        began = perf_counter()
        items, count = table.items, len(table.items.bias)
        most = min(max(question.k for question in questions), count)
        questions = [_grown(question, count) for question in questions]
        if "repeat_keys" in interest:
            interest["repeat_rows"] = repeated = self._catalogue.rows_of_keys(interest["repeat_keys"])
            if len(self._catalogue) > count:
                repeated[repeated >= count] = -1  # of an item that was added since
        best: list[tuple[Int64, Float32]]
        if through_index and self._is_now(items):
            best = self._search(questions, interest, table, most)
        elif isinstance(items, Shown):
            best = self._from_device(questions, interest, items, table.popularity, most)
        else:
            bias = items.nothing if all(question.is_free for question in questions) else _bias(questions, count)
            scores, rows = self._best(interest, items, table.popularity, bias, most)
            if most and all(map(math.isfinite, scores[:, -1].tolist())):  # scores fall; -inf ends a list
                best = list(zip(rows, scores, strict=True))
            else:
                eligible = np.isfinite(scores).sum(1).tolist()
                best = [(of_user[:end], its[:end]) for of_user, its, end in zip(rows, scores, eligible, strict=True)]
        score_s = perf_counter() - began
        return [
            Ranked(of_user[: question.k], its[: question.k], interest_s, score_s)
            for question, (of_user, its) in zip(questions, best, strict=True)
        ]

    def _search(
        self, questions: Sequence[Question], interest: dict[str, Array], table: _Table, most: int
    ) -> list[tuple[Int64, Float32]]:
        """Through the index."""
        assert self.retriever is not None
        self._rows.show(table.items.bias)
        limits = _limits(questions)
        found = self.retriever.best(interest, most, table.popularity, limits)
        return [(one.rows, one.scores) for one in found]

    def _is_now(self, items: _Items | Shown) -> bool:
        """Whether these are the items that were taken last."""
        return items is (self._items if self.device is None else self.device.shown)

    def _from_device(
        self, questions: Sequence[Question], interest: dict[str, Array], items: Shown, popularity: Array, most: int
    ) -> list[tuple[Int64, Float32]]:
        assert self.device is not None
        found = self.device.best(interest, most, items, popularity, _limits(questions))
        return [(one.rows, one.scores) for one in found]

    def _scan(self, interest: Mapping[str, Array], popularity: Array, bias: Array | None, m: int) -> tuple[Array, Array]:
        """All items by score.onnx, for the retriever, which has asked about the items that were shown last."""
        if self.device is not None:
            return self.device.exact(interest, popularity, bias, m)
        assert self._items is not None
        return self._best(interest, self._items, popularity, self._items.nothing if bias is None else bias, m)

    def _best(self, interest: Mapping[str, Array], items: _Items, popularity: Array, bias: Feed, m: int) -> tuple[Array, Array]:
        """Scores and rows (B, m), best first."""
        feeds = {
            **interest,
            "item_matrix": items.item_matrix,
            "item_bias": items.item_bias,
            **self._of_popularity(popularity),
            "bias": bias,
            "k": np.asarray([m], np.int64),
        }
        best = self._runtime.score(feeds)
        return best["scores"], best["rows"]

    def _of_popularity(self, popularity: Array) -> Mapping[str, Feed]:
        """What score.onnx takes of it, on the device: made anew only where it is another array than the last time."""
        made_of, made = self._recent
        if made_of is not popularity:
            made = self._runtime.kept_popularity(popularity)
            self._recent = popularity, made
        return made

    def source(self) -> Source:
        """What an index is made of: the bundle's items, with what popularity is now."""
        n, bundle = self._catalogue.bundle_rows, self._runtime.bundle
        weights = typical_weights(
            golden_output(bundle, "interest", "interests"), golden_output(bundle, "interest", "popularity_weight")
        )
        popularity = self._popularity.at(time_ns() // 1_000_000)
        return Source(self._catalogue.vectors[:n], self._catalogue.bias[:n], popularity[:n], weights)


def _limits(questions: Sequence[Question]) -> list[Limits]:
    return [Limits(one.mask, one.among, one.forbidden, one.added) for one in questions]


def _grown(question: Question, count: int) -> Question:
    """A question whose rules were made before items came: these are not in its list."""
    known = question.count
    if known is None or known == count:
        return question
    new = count - known
    mask = np.ones(known, np.bool_) if question.mask is None else question.mask
    added = None if question.added is None else np.concatenate([question.added, np.zeros(new, np.float32)])
    return replace(question, mask=np.concatenate([mask, np.zeros(new, np.bool_)]), added=added)


def _with_reads(
    ranked: list[Ranked], questions: Sequence[Question], state: Mapping[str, Array], interest: Mapping[str, Array]
) -> list[Ranked]:
    for place, question in enumerate(questions):
        if question.keeps:
            own = slice(place, place + 1)
            read = Read({name: x[own] for name, x in state.items()}, {name: x[own] for name, x in interest.items()})
            ranked[place] = replace(ranked[place], read=read)
    return ranked


def _bias(questions: Sequence[Question], count: int) -> Array:
    bias = np.zeros((len(questions), count), np.float32)
    for place, question in enumerate(questions):
        if question.added is not None:
            bias[place] = question.added
        if question.mask is not None:
            np.copyto(bias[place], -np.inf, where=~question.mask)
        if question.among is not None:
            kept = bias[place, question.among]
            bias[place] = -np.inf
            bias[place, question.among] = kept
        bias[place, question.forbidden] = -np.inf
    return bias


def _spread(runtime: Runtime, catalogue: Catalogue) -> float:
    """From the interests that every bundle carries for its verification: the same for a model wherever it runs."""
    rows = np.linspace(0, len(catalogue) - 1, min(len(catalogue), _SAMPLED)).astype(np.int64)
    interests = golden_output(runtime.bundle, "interest", "interests")  # (B, J, D)
    scores = (interests @ catalogue.vectors[rows].T).max(1) + catalogue.bias[rows]
    return spread_of(scores)
