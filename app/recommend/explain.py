"""Why a list is as it is: the past events that brought each item, by the quick account or the exact one, and in words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np

from app.catalogue.catalogue import Catalogue
from app.errors import OverloadedError
from app.fold import Fold, Unfolded, UserState
from app.fold.tensors import EventTensors
from app.recommend.answer import Explanation, PastEvent, Query, moment
from app.recommend.interests import Interest, Shares
from app.recommend.latest import Latest, LatestEvents
from app.recommend.listing import Listed
from app.recommend.quick import Quick
from app.recommend.refold import Refold
from app.recommend.score import Read
from app.recommend.some import SomeScores
from app.recommend.words import EARLIER, PINNED, POPULAR, TOGETHER, Reason, sentence
from app.runtime.manifest import Manifest
from app.runtime.session import Array
from app.state.codec import new_epoch
from app.state.events import StoredEvent
from app.state.store import Loaded, StateStore

MOST_WAITING: Final = 8
"""Exact accounts at the same time, waiting ones among them: one is made, the others wait, and what comes beyond is refused."""

MOST_EVENTS: Final = 5
"""Events that are named for an item."""

_LEAST_SHARE: Final = 0.05  # of an item's weight, for an event to be named by the quick account
_LEAST_DROP: Final = 0.01  # of a logit, by the exact one: less than one in a hundred
_ALSO: Final = 0.5  # of the first reason's weight, for a second one to stand in the sentence
_INLINE_EVENTS: Final = 128  # longer folds would hold up the event loop
_NOTHING: Final = 1e-9

_Load = Callable[[], Awaitable[Unfolded]]


@dataclass(frozen=True, slots=True)
class _History:
    """Events of a user, the last ones of a state: of `read`, or else of the one that made the list. `before`: whether there are
    others before them."""

    events: Sequence[StoredEvent]
    before: bool
    read: Read | None = None


class Explainer:
    """Explains the lists of one model."""

    def __init__(
        self,
        manifest: Manifest,
        catalogue: Catalogue,
        fold: Fold,
        tensors: EventTensors,
        scores: SomeScores,
        shares: Shares,
        store: StateStore,
    ) -> None:
        self._catalogue = catalogue
        self._fold = fold
        self._platform = tensors.platform
        self._scores = scores
        self._shares = shares
        self._quick = Quick(manifest, catalogue, tensors)
        self._latest = LatestEvents(store, self._quick.most)
        self._refold = Refold(fold, tensors, scores)
        self._negative = {kind.name for kind in manifest.event_types if kind.polarity == "negative"}
        self._asked = 0
        # One thread: as many exact accounts as it takes to keep one core busy.
        self._thread = ThreadPoolExecutor(1, "explain")

    async def of_user(self, query: Query, listed: Listed, pinned: Sequence[int], user: UserState) -> list[Explanation]:
        """One for each item of a user's list, which was asked to keep what was read. Raises StorageError, OverloadedError."""
        if query.explain == "exact":
            return await self._exactly(query, listed, pinned, lambda: self._whole(query.tenant, user))
        return self._quickly(query, listed, pinned, await self._last(query, user))

    async def of_events(self, query: Query, listed: Listed, pinned: Sequence[int], told: Unfolded) -> list[Explanation]:
        """The same for somebody who did the events of `told` alone. Raises OverloadedError."""
        if query.explain == "exact":

            async def whole() -> Unfolded:
                return told

            return await self._exactly(query, listed, pinned, whole)
        return self._quickly(query, listed, pinned, _History(told.tail, False))

    def of_nobody(self, rows: Sequence[int], pinned: Sequence[int]) -> list[Explanation]:
        """For a list by popularity, which knows nothing of its user."""
        return [_without_events(row in pinned, False, []) for row in rows]

    # The two accounts.

    def _quickly(self, query: Query, listed: Listed, pinned: Sequence[int], history: _History) -> list[Explanation]:
        rows, read = listed.rows, history.read or listed.read
        assert read is not None
        weighed = self._quick(history.events, read, rows)
        before = history.before or len(history.events) > len(weighed.events)
        told = _Told(weighed.events, self._catalogue)
        total = weighed.weights.sum(1) + weighed.own
        shares = weighed.weights / np.maximum(total, _NOTHING)[:, None]
        own = (weighed.own / np.maximum(total, _NOTHING)).tolist()
        named = [told.past(best) for best in _largest(shares, _LEAST_SHARE)]
        for place, share in enumerate(own):
            if share >= _LEAST_SHARE:
                had = self._remembered(rows[place], int(weighed.own_ms[place]), share)
                named[place] = sorted([*named[place], had], key=lambda event: -event.weight)[:MOST_EVENTS]
        return self._explanations(rows, pinned, named, before, self._shares(read, rows, query.as_of_ms))

    async def _exactly(self, query: Query, listed: Listed, pinned: Sequence[int], history: _Load) -> list[Explanation]:
        rows, read = listed.rows, listed.read
        assert read is not None
        if self._asked >= MOST_WAITING:
            raise OverloadedError(f"{MOST_WAITING} exact explanations are being made already; explain=true costs less")
        self._asked += 1
        try:
            told = await history()
            if not rows:
                return []
            items = self._scores.take(rows, query.as_of_ms, self._platform(query.platform))
            loop = asyncio.get_running_loop()
            refolded = await loop.run_in_executor(self._thread, self._refold, told, items)
        finally:
            self._asked -= 1
        told_of = _Told(refolded.events, self._catalogue)
        named = [told_of.past(best) for best in _largest(refolded.drops, _LEAST_DROP)]
        # Of two events each of which would do, neither is missed alone; but without both the item would not be here.
        together = (refolded.together >= _LEAST_DROP).tolist()
        return self._explanations(rows, pinned, named, refolded.more, self._shares(read, rows, query.as_of_ms), together)

    # The events.

    async def _last(self, query: Query, user: UserState) -> _History:
        """The last events that are in the user's state, as many as attention sees."""
        found = await self._latest.of(query.tenant, user)
        if isinstance(found, Latest):
            return _History(found.events, found.before)
        # Rewritten since the list was made: the state is not of these events.
        told = _unfolded(found, None)
        long = len(told.tail) > _INLINE_EVENTS
        ((_, blob),) = await asyncio.to_thread(self._fold, [told]) if long else self._fold([told])
        state = self._fold.tensors([blob])
        interest = self._scores.interest(state, query.as_of_ms, self._platform(query.platform))
        return _History(told.tail, told.start > 0, Read(state, interest))

    async def _whole(self, tenant: str, user: UserState) -> Unfolded:
        """The stored events that are in the user's state."""
        return _unfolded(await self._latest.all(tenant, user), user)

    # The words.

    def _remembered(self, row: int, time_ms: int, share: float) -> PastEvent:
        """What the own-repeat memory knows of an item that was had longer ago than attention looks: not what kind of event it
        was."""
        return PastEvent(None, moment(time_ms), self._catalogue.ids[row], self._catalogue.titles[row], None, round(share, 4))

    def _explanations(
        self,
        rows: Sequence[int],
        pinned: Sequence[int],
        named: Sequence[list[PastEvent]],
        before: bool,
        interests: Sequence[list[Interest]],
        together: Sequence[bool] | None = None,
    ) -> list[Explanation]:
        """`named` are the events that brought each item; `together` says whether all that were looked at did."""
        explained = []
        for place, (row, events, matched) in enumerate(zip(rows, named, interests, strict=True)):
            if row not in pinned and not events and together is not None and together[place]:
                explained.append(Explanation("together", TOGETHER, [], matched))
            elif row in pinned or not events:
                explained.append(_without_events(row in pinned, before, matched))
            else:
                text = self._sentence(events, self._catalogue.ids[row]) or EARLIER
                explained.append(Explanation("events", text, events, matched))
        return explained

    def _sentence(self, named: Sequence[PastEvent], item_id: str) -> str | None:
        """Names one or two things, each once; None where nothing can be named."""
        reasons: dict[str, Reason] = {}
        strongest = 0.0
        for event in named:
            about = event.title or event.item_id or event.text
            if about is None or event.type in self._negative or event.weight < _ALSO * strongest:
                continue
            strongest = strongest or event.weight
            reasons.setdefault(about, Reason(event.type, about, event.item_id == item_id))
        return sentence(list(reasons.values())[:2]) if reasons else None


def _without_events(pinned: bool, before: bool, interests: list[Interest]) -> Explanation:
    if pinned:
        return Explanation("pinned", PINNED, [], interests)
    return Explanation("earlier", EARLIER, [], interests) if before else Explanation("popular", POPULAR, [], interests)


class _Told:
    """Events in the words of the answer, each made once: the same ones bring many items."""

    def __init__(self, events: Sequence[StoredEvent], catalogue: Catalogue) -> None:
        self._events = events
        self._catalogue = catalogue
        self._made: dict[int, tuple[str, datetime, str | None, str | None, str | None]] = {}

    def past(self, best: Sequence[tuple[int, float]]) -> list[PastEvent]:
        """Some of the events, by place and weight."""
        return [PastEvent(*(self._made.get(place) or self._make(place)), weight) for place, weight in best]

    def _make(self, place: int) -> tuple[str, datetime, str | None, str | None, str | None]:
        event = self._events[place]
        title = self._catalogue.title(event.item_id)
        made = self._made[place] = (event.type, moment(event.time_ms), event.item_id, title, event.text)
        return made


def _largest(weights: Array, least: float) -> list[list[tuple[int, float]]]:
    """For each row of weights (n, E) the places of the largest ones that are not below `least`, with them, the largest first; of
    two equal ones the later."""
    last = weights.shape[1] - 1
    order = last - np.argsort(-weights[:, ::-1], 1, kind="stable")[:, :MOST_EVENTS]
    largest = np.take_along_axis(weights, order, 1).round(4).tolist()
    return [
        [(place, weight) for place, weight in zip(places, found, strict=True) if weight >= least]
        for places, found in zip(order.tolist(), largest, strict=True)
    ]


def _unfolded(loaded: Loaded, user: UserState | None) -> Unfolded:
    """The stored events of a user, without those that came after the user's state."""
    if loaded.meta is None:
        return Unfolded(new_epoch(), {}, None, (), 0)  # erased meanwhile
    events = loaded.tail
    if user is not None and user.header.epoch == loaded.meta.epoch:
        events = events[: max(user.header.applied - loaded.tail_start, 0)]
    return Unfolded(loaded.meta.epoch, loaded.meta.attributes, None, events, loaded.tail_start)
