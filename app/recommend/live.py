"""Keeps a worker's catalogue in step with what applications say of their items, wherever they said it.

A new item is in the catalogue as soon as its change is read, and known to the model as soon as its content has been made a vector
(text encoder, then item.onnx), which one worker does and the others mostly find in Redis. Until then what users do with it counts
as done with an unknown item, and afterwards their states are folded anew: `Catalogue.version` is that of the last change before
the first item that is still waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import msgspec
import numpy as np
import structlog

from app.catalogue.catalogue import ALWAYS, NEVER, Catalogue, Float32
from app.catalogue.columns import Cells
from app.errors import LongwaveError, StorageError
from app.recommend.dense import Dense, rows
from app.recommend.refreshing import keep_fresh
from app.runtime.session import Runtime
from app.runtime.text import TextEncoder
from app.state.items import Item, ItemStore, Mark, Said
from app.telemetry import Metrics

_TOGETHER: Final = 32  # items that are encoded in one call
_LOOKED_UP: Final = 500  # items whose vectors are looked for in Redis in one go
_APPLIED: Final = 200  # changes that are taken over before requests go in between
_FOLLOWED: Final = 50  # the same while it serves: some 2 ms, beside what settling takes in a large catalogue
_DIGEST_BYTES: Final = 8

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An item that is to have a vector: as of which change, and of which content."""

    version: int
    item_id: str
    title: str | None
    features: tuple[float, ...]
    vectors: bytes

    @property
    def digest(self) -> bytes:
        content = msgspec.json.encode([self.title, self.features]) + self.vectors
        return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


class LiveItems:
    """Follows the live items for the catalogue of one model.

    An item that the model was trained with keeps the vector that it learned: what people did with it says more than a new title.
    All others get one from their content, if the model understands any; else they are in the catalogue, and in no list of the
    model.
    """

    def __init__(
        self, store: ItemStore, catalogue: Catalogue, runtime: Runtime, text: TextEncoder | None, poll_s: float, metrics: Metrics
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._runtime = runtime
        self._text = text
        self._poll_s = poll_s
        self._metrics = metrics
        self._model_id = runtime.bundle.manifest.model_id
        self._dense = Dense(runtime.bundle.manifest)
        self._mark = Mark()
        self._wanted: dict[int, _Wanted] = {}  # by row, in the order in which they came
        self._digests: dict[int, bytes] = {}  # of what the vectors of rows were made from
        self._generation = store.generation
        self._said = Cells(len(catalogue), False, np.bool_)  # (N,) rows of which anything was said
        self._reading = asyncio.Lock()
        self._wake = asyncio.Event()

    async def refresh(self) -> None:
        """Take over what was said until now; vectors follow. Raises StorageError."""
        async with self._reading:
            generation = self._store.generation
            whole = generation != self._generation  # it may have lost changes, and given their versions out again
            while whole or (said := await self._store.since(self._mark)) != []:
                if whole or said is None:
                    await self._read_everything()
                    self._generation, whole = generation, False
                else:
                    await self._declare(said)
                    await self._take_over(said)
                await asyncio.sleep(0)

    async def complete(self) -> None:
        """`refresh`, and wait for the vectors. Raises StorageError."""
        await self.refresh()
        while self._wanted:
            await self.encode_some()

    def check(self, vectors: Mapping[str, bytes]) -> None:
        """Raise InvalidRequestError if a vector has another length than the model takes."""
        self._dense.check(vectors)

    async def follow(self) -> None:
        """Refresh until cancelled; a store that is away is asked again."""
        await keep_fresh("catalogue", self.refresh, self._poll_s)

    async def encode(self) -> None:
        """Make vectors of the items that wait for theirs, until cancelled."""
        while True:
            self._wake.clear()
            while self._wanted:  # also those that waited when this was cancelled, and is begun again
                await self.encode_some()
            await self._wake.wait()

    async def encode_some(self) -> None:
        """Give the items that have waited longest their vectors."""
        some = dict(islice(self._wanted.items(), _LOOKED_UP))
        vectors = await self._kept(list(some.values()))
        missing = [row for row, vector in zip(some, vectors, strict=True) if vector is None][:_TOGETHER]
        made = await self._made([some[row] for row in missing])
        fresh = {row: one for row, one in zip(missing, made, strict=True) if one is not None}
        for (row, wanted), vector in zip(some.items(), vectors, strict=True):
            found = vector or fresh.get(row)
            if found is None and row not in missing:
                continue  # its turn comes
            if self._wanted.get(row) is wanted:  # nothing else was said of it meanwhile
                del self._wanted[row]
                if found is not None:
                    self._catalogue.teach(row, *found, wanted.version)
                    self._digests[row] = wanted.digest
        self._settle()
        if fresh:
            packed = {
                some[row].item_id: some[row].digest + np.append(*found).astype("<f4").tobytes() for row, found in fresh.items()
            }
            with contextlib.suppress(StorageError):  # then the others make their own
                await self._store.keep_vectors(self._model_id, packed)

    async def _made(self, wanted: Sequence[_Wanted]) -> list[tuple[Float32, float] | None]:
        """Vectors and biases; None for an item of which none can be made, which is logged. The others do not suffer from it."""
        try:
            made = await asyncio.to_thread(self._make, wanted)
            return [one if np.isfinite(one[0]).all() and np.isfinite(one[1]) else None for one in made]
        except Exception:
            if len(wanted) == 1:
                log.exception("cannot make the vector of an item", item=wanted[0].item_id)
                return [None]
        return [one for each in wanted for one in await self._made([each])]

    async def _read_everything(self) -> None:
        """Begin anew: the stream does not go back to where we are, or the store is another one."""
        mark = await self._store.mark()  # before the items, so that what is said meanwhile is read again
        said: dict[str, Said] = {}
        async for some in self._store.everything():
            said |= {one.item_id: self._as_needed(one) for one in some}
        if mark.epoch != self._mark.epoch:
            self._catalogue.forget_attributes()  # and their types: this store has its own
        self._catalogue.attributes.declare(await self._store.kinds())
        for row in [row for row in np.flatnonzero(self._said.used).tolist() if self._catalogue.ids[row] not in said]:
            self._said.used[row] = False
            self._wanted.pop(row, None)
            self._catalogue.as_in_bundle(row)
        ordered = sorted(said.values(), key=lambda one: one.version)
        for start in range(0, len(ordered), _APPLIED):
            self._take(ordered[start : start + _APPLIED])
            self._settle()
            await asyncio.sleep(0)
        self._mark = mark
        self._settle()

    def _as_needed(self, said: Said) -> Said:
        """Without the vectors that nothing is made of here: those of a whole catalogue are gigabytes."""
        row = self._catalogue.row(said.item_id)
        trained = row is not None and row < self._catalogue.bundle_rows

        def needed(item: Item | None) -> Item | None:
            if item is None or not item.vectors:
                return item
            return msgspec.structs.replace(item, vectors={}) if trained else self._dense.without_the_rest(item)

        return replace(said, item=needed(said.item), was=needed(said.was))

    async def _declare(self, said: Sequence[Said]) -> None:
        """Learn the types of attributes that are new in some changes."""
        known = self._catalogue.attributes.kinds()
        if any(name not in known for one in said if one.item is not None for name in one.item.attributes):
            self._catalogue.attributes.declare(await self._store.kinds())

    async def _take_over(self, said: Sequence[Said]) -> None:
        """Take changes over in their order, some at a time: whoever is answered in between sees all up to one of them."""
        for start in range(0, len(said), _FOLLOWED):
            some = said[start : start + _FOLLOWED]
            self._take(some)
            self._mark = Mark(self._mark.epoch, some[-1].version)
            self._settle()
            await asyncio.sleep(0)

    def _take(self, said: Sequence[Said]) -> None:
        for one in said:
            try:
                self._put(one)
            except Exception as error:
                # Whatever is stored of one item must not keep the others from being followed, nor a worker from starting.
                reason = error.detail if isinstance(error, LongwaveError) else f"{type(error).__name__}: {error}"
                log.error("an item is left out", item=one.item_id, reason=reason)

    def _put(self, said: Said) -> None:
        """Take one item over. Raises ConflictError if it cannot be told from another one."""
        # What people did with an item that is gone stays understood, also by a worker that was started since.
        item, row = said.item or said.was, self._catalogue.row(said.item_id)
        if item is None:
            if row is not None:
                self._said.used[row] = True
                self._catalogue.close(row)
            return
        opens_ms = ALWAYS if item.available_from is None else item.available_from
        closes_ms = NEVER if item.available_to is None else item.available_to
        if item.hidden or said.item is None:
            opens_ms = closes_ms = NEVER
        in_bundle = row is not None and row < self._catalogue.bundle_rows
        born_ms = item.available_from if item.available_from is not None else -1 if in_bundle else said.since_ms
        row = self._catalogue.put(said.item_id, item.title, item.categories, opens_ms, closes_ms, born_ms)
        self._said.grow(max(len(self._said), row + 1))
        self._said.used[row] = True
        self._catalogue.attributes.set(row, item.attributes)
        if row >= self._catalogue.bundle_rows:
            self._want(row, said.version, said.item_id, item)

    def _want(self, row: int, version: int, item_id: str, item: Item) -> None:
        """Have a vector made, if there is anything new to make it of."""
        self._wanted.pop(row, None)  # at the end of the others: they are in the order of their versions
        readable = (self._text is not None and item.title) or self._dense.reads(item)
        if self._runtime.item is None or not readable:
            if self._digests.pop(row, None) is not None:
                self._catalogue.unteach(row)
            return
        title = item.title if self._text is not None else None
        wanted = _Wanted(version, item_id, title, self._dense.features(item), self._dense.vectors(item))
        if self._digests.get(row) != wanted.digest:
            self._wanted[row] = wanted
            self._wake.set()

    def _settle(self) -> None:
        first = next(iter(self._wanted.values()), None)
        version = self._mark.version
        self._catalogue.settle(version if first is None else min(version, first.version - 1))
        self._metrics.catalogue_version.set(version)
        self._metrics.catalogue_waiting.set(len(self._wanted))

    async def _kept(self, wanted: Sequence[_Wanted]) -> list[tuple[Float32, float] | None]:
        """The vectors and biases that somebody has made of this very content already."""
        try:
            kept = await self._store.vectors(self._model_id, [one.item_id for one in wanted])
        except StorageError:
            return [None] * len(wanted)
        return [self._unpacked(one, packed) for one, packed in zip(wanted, kept, strict=True)]

    def _unpacked(self, wanted: _Wanted, packed: bytes | None) -> tuple[Float32, float] | None:
        width = self._catalogue.vectors.shape[1]
        if packed is None or len(packed) != _DIGEST_BYTES + 4 * (width + 1) or packed[:_DIGEST_BYTES] != wanted.digest:
            return None
        numbers = np.frombuffer(packed, "<f4", offset=_DIGEST_BYTES)
        return (numbers[:-1], float(numbers[-1])) if np.isfinite(numbers).all() else None

    def _make(self, wanted: Sequence[_Wanted]) -> list[tuple[Float32, float]]:
        """Vectors (D,) and biases from contents, by the model."""
        if not wanted or self._runtime.item is None:
            return []
        feeds = {"features": rows([one.features for one in wanted], [one.vectors for one in wanted])}
        if self._text is not None:
            feeds["text"] = self._text.embed([one.title for one in wanted])
        made = self._runtime.item(feeds)
        return [(vector, float(bias)) for vector, bias in zip(made["vector"], made["bias"], strict=True)]
