"""Stored events -> the event inputs of step.onnx and encode.onnx. Names become rows and indices here, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import numpy as np

from app.catalogue.catalogue import Catalogue, item_key, unknown_bits
from app.errors import BundleError
from app.runtime.manifest import Manifest
from app.runtime.session import Array
from app.runtime.text import TextEncoder
from app.state.events import StoredEvent

_NUMBERS = ("value", "quantity", "price")


class EventTensors:
    """Builds event inputs by the manifest's vocabulary.

    An item that the catalogue does not know has the zero vector and `item_known` false, but keeps its key. A platform that the
    model has not seen is index 0. `knows` tells whether an event can be told to the model at all.
    """

    def __init__(self, manifest: Manifest, catalogue: Catalogue, text: TextEncoder | None) -> None:
        """Raises BundleError if the manifest wants a numeric field that events do not have."""
        unknown = set(manifest.numbers) - set(_NUMBERS)
        if unknown:
            raise BundleError(f"manifest.json: field numbers: {sorted(unknown)}; this service knows {list(_NUMBERS)}")
        self._catalogue = catalogue
        self._text = text
        self._numbers = tuple(manifest.numbers)
        self._types = {event_type.name: index for index, event_type in enumerate(manifest.event_types)}
        self._platforms: dict[str | None, int] = {name: index for index, name in enumerate(manifest.platforms, start=1)}

    def knows(self, event: StoredEvent) -> bool:
        return event.type in self._types

    def platform(self, name: str | None) -> int:
        """Index of a platform; 0 if missing or unseen."""
        return self._platforms.get(name, 0)

    def unknown(self, tails: Sequence[Sequence[StoredEvent]]) -> list[int]:
        """For each tail the `unknown_bits` of its items that the model has no vector of now; 0 if it knows them all."""
        bits = [0] * len(tails)
        rows = self._catalogue.rows([event.item_id for tail in tails for event in tail])
        if rows and (-1 in rows or not self._catalogue.known[rows].all()):
            for place, tail in enumerate(tails):
                for event in tail:
                    if event.item_id is not None and not self._catalogue.knows(event.item_id):
                        bits[place] |= unknown_bits(item_key(event.item_id))
        return bits

    def step(self, events: Sequence[StoredEvent]) -> dict[str, Array]:
        """Inputs of shape (B, ...): one event of each of B users."""
        return self._columns(events)

    def encode(self, rows: Sequence[Sequence[StoredEvent]]) -> dict[str, Array]:
        """Inputs of shape (B, T, ...) and `valid` (B, T); shorter rows are padded at their end."""
        lengths = np.asarray([len(row) for row in rows])
        valid = np.arange(lengths.max())[np.newaxis, :] < lengths[:, np.newaxis]
        padded: dict[str, Array] = {"valid": valid}
        for name, column in self._columns([event for row in rows for event in row]).items():
            array = np.zeros((*valid.shape, *column.shape[1:]), column.dtype)
            array[valid] = column
            padded[name] = array
        return padded

    def _number_columns(self, events: Sequence[StoredEvent]) -> Array:
        # None becomes NaN: the graphs read that as missing.
        columns = [list(map(attrgetter(name), events)) for name in self._numbers]
        wide = np.asarray(columns, np.float64).reshape(len(columns), len(events)).T
        limit = np.finfo(np.float32).max  # a number beyond float32 is its largest, not infinite
        return np.clip(wide, -limit, limit).astype(np.float32)

    def _columns(self, events: Sequence[StoredEvent]) -> dict[str, Array]:
        rows = np.asarray(self._catalogue.rows([event.item_id for event in events]), np.int64)
        found = np.where(rows >= 0, rows, 0)
        known = (rows >= 0) & self._catalogue.known[found]
        vectors = self._catalogue.vectors[found]
        vectors[~known] = 0.0
        keys = self._catalogue.keys[found]
        for index in np.flatnonzero(rows < 0).tolist():
            item_id = events[index].item_id
            keys[index] = 0 if item_id is None else item_key(item_id)
        columns: dict[str, Array] = {
            "item_vector": vectors,
            "item_known": known,
            "item_key": keys,
            "event_type": np.asarray([self._types[e.type] for e in events], np.int64),
            "platform": np.asarray([self._platforms.get(e.platform, 0) for e in events], np.int64),
            "numbers": self._number_columns(events),
            "time": np.asarray([e.time_ms for e in events], np.int64),
        }
        if self._text is not None:
            columns["text"] = self._text.embed([e.text for e in events])
        return columns
