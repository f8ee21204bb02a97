"""The quick account of a list: what the readout says of the events that it looked at, no event folded again.

For each of the last events that attention still sees, newest last, and each item of the list:

    sure     = sum of the squares of attention over the events: 1 where it looks at one, next to nothing where it looks everywhere
    memory   = sure * attention + (1 - sure) * 2^-(1 + number of events since)
    towards  = 0.2 + max(0, cosine of the vectors of the event's item and of the item, each less the catalogue's mean)
    follows  = 6 * 0.95^(number of events since) * max(0, p of the event's item . q of the item), where a model has them
    own      = max(0, what the own-repeat memory adds to the item's score), shared by the events that had the item
    weight   = memory * towards + follows + own

The second part of `memory` stands in for what attention cannot say: the recurrence has the last event before its eyes, and an
attention that looks everywhere explains nothing. Events of negative types are no reasons. docs/adr/0020-explain.md has how the
numbers were chosen, and how well this agrees with the exact account.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from app.catalogue.catalogue import Catalogue
from app.fold.tensors import EventTensors
from app.recommend.score import Read
from app.recommend.some import places_of
from app.runtime.manifest import Manifest
from app.runtime.session import Array
from app.state.events import StoredEvent

_SAMPLED: Final = 20_000  # items, for the mean of their vectors
_FADING: Final = 0.5
_ANY: Final = 0.2
_FOLLOWS: Final = 6.0
_FOLLOWS_FADING: Final = 0.95
_EPOCH_S: Final = 946_684_800  # of the times in a state: 2000-01-01


@dataclass(frozen=True, slots=True)
class Weighed:
    """weights (n, E): how much each of E `events`, oldest first, speaks for each of n items, in logits or thereabouts.

    Attributes:
        own: (n,) what the own-repeat memory adds for an item that none of these events had, 0 if nothing.
        own_ms: (n,) when it was had last, unix ms.
    """

    events: Sequence[StoredEvent]
    weights: Array
    own: Array
    own_ms: Array


class Quick:
    """Weighs the events of one user at a time.

    Attributes:
        most: so many events attention sees.
    """

    def __init__(self, manifest: Manifest, catalogue: Catalogue, tensors: EventTensors) -> None:
        self._catalogue = catalogue
        self._tensors = tensors
        size = {tensor.name: tensor.shape[0] for tensor in manifest.state}
        self.most = size["ring"]
        # An item's vector is what it is like, then what it follows (q) and what it leads to (p): docs/model.md.
        self._width, self._channels = size["last"], size.get("recent", 0)
        self._negative = {kind.name for kind in manifest.event_types if kind.polarity == "negative"}
        rows = np.linspace(0, len(catalogue) - 1, min(len(catalogue), _SAMPLED)).astype(np.int64)
        self._mean = catalogue.vectors[rows, : self._width].mean(0)

    def __call__(self, events: Sequence[StoredEvent], read: Read, rows: Sequence[int]) -> Weighed:
        """`events` are the last ones of the state that was read."""
        events = [event for event in events if self._tensors.knows(event)][-self.most :]
        count, items = len(events), np.asarray(rows, np.int64)
        had = np.asarray([-1 if (row := self._row(event)) is None else row for event in events], np.int64)
        counts = np.asarray([event.type not in self._negative for event in events], np.float32)
        since = np.arange(count - 1, -1, -1)
        attention = read.interest["attention"][0, self.most - count :]
        sure = float(attention @ attention)
        memory = sure * attention + (1 - sure) * _FADING ** (since + 1.0)
        directions = self._directions(np.concatenate([items, had]))
        towards = _ANY + np.maximum(directions[: len(items)] @ directions[len(items) :].T, 0)  # (n, E)
        weights = (memory * towards + self._follows(had, items, since)) * counts
        own, own_ms = self._own(read, items)
        same = (items[:, None] == had) * counts  # (n, E)
        times = same.sum(1)
        weights += np.where(times > 0, own / np.maximum(times, 1), 0)[:, None] * same
        return Weighed(events, weights, np.where(times > 0, 0, own), own_ms)

    def _row(self, event: StoredEvent) -> int | None:
        return None if event.item_id is None else self._catalogue.row(event.item_id)

    def _directions(self, rows: Array) -> Array:
        """(n, D) of length 1, zeros where there is no item or the model does not know it."""
        known = (rows >= 0) & self._catalogue.known[rows]
        vectors = self._catalogue.vectors[rows, : self._width] - self._mean
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        directions: Array = vectors * (known / np.maximum(lengths, 1e-9))[:, None]
        return directions

    def _follows(self, had: Array, items: Array, since: Array) -> Array:
        """(n, E): how much each event's item leads to each item; 0 for a model without transitions."""
        if not self._channels:
            return np.zeros((len(items), len(had)), np.float32)
        q = self._catalogue.vectors[items, self._width : self._width + self._channels]
        p = np.where((had >= 0)[:, None], self._catalogue.vectors[had, -self._channels :], 0)
        follows: Array = _FOLLOWS * _FOLLOWS_FADING**since * np.maximum(q @ p.T, 0)
        return follows

    def _own(self, read: Read, rows: Array) -> tuple[Array, Array]:
        """What the own-repeat memory adds to each item's score, at least 0, and when it was had last, (n,) each."""
        interest = read.interest
        own, own_ms = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.int64)
        if "repeat_keys" in interest and len(rows):
            places = places_of(self._catalogue.rows_of_keys(interest["repeat_keys"][0]), rows)
            slots = np.flatnonzero(places >= 0)
            found = places[slots]
            match = self._catalogue.vectors[rows[found]] @ interest["repeat_interest"][0]
            own[found] = np.maximum(interest["repeat_scores"][0, slots] + match, 0)
            own_ms[found] = (read.state["repeat_time"][0, slots].astype(np.int64) + _EPOCH_S) * 1000
        return own, own_ms
