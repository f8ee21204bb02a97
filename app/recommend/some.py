"""Scores of some items under many states: score.onnx with a catalogue of just those items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.fold import Fold
from app.runtime.session import Array, Runtime


@dataclass(frozen=True, slots=True)
class SomeItems:
    """n rows of the catalogue as they are at a moment, to be scored in any thread: vectors (n, D), bias (n,), popularity (n, P).

    `as_of_ms` and `platform` say when and where it is asked.
    """

    rows: Array
    vectors: Array
    bias: Array
    popularity: Array
    as_of_ms: int
    platform: int


class SomeScores:
    """Asks the graphs of one model; what an item scores does not depend on which others are there."""

    def __init__(self, runtime: Runtime, catalogue: Catalogue, popularity: LivePopularity, fold: Fold) -> None:
        self._runtime = runtime
        self._catalogue = catalogue
        self._popularity = popularity
        self._fold = fold

    def take(self, rows: Sequence[int], as_of_ms: int, platform: int) -> SomeItems:
        """What must be taken from catalogue and popularity in the event loop."""
        places = np.asarray(rows, np.int64)
        counts = self._popularity.at(as_of_ms)[places]
        return SomeItems(places, self._catalogue.vectors[places], self._catalogue.bias[places], counts, as_of_ms, platform)

    def interest(self, tensors: dict[str, Array], as_of_ms: int, platform: int) -> dict[str, Array]:
        """The outputs of interest.onnx for B states (as tensors), all asked at the same moment and place."""
        users = len(tensors["count"])
        asked = {"as_of": np.full(users, as_of_ms, np.int64), "platform": np.full(users, platform, np.int64)}
        return self._runtime.interest(tensors | asked)

    def __call__(self, blobs: Sequence[bytes], items: SomeItems) -> Array:
        """(B, n): the score of each item under each of B packed states."""
        interest = self.interest(self._fold.tensors(blobs), items.as_of_ms, items.platform)
        count = len(items.rows)
        feeds = {
            **interest,
            "item_matrix": items.vectors,
            "item_bias": items.bias,
            **self._runtime.of_popularity(items.popularity),
            "bias": np.zeros((1, count), np.float32),
            "k": np.asarray([count], np.int64),
        }
        if "repeat_keys" in interest:
            feeds["repeat_rows"] = places_of(self._catalogue.rows_of_keys(interest["repeat_keys"]), items.rows)
        best = self._runtime.score(feeds)
        scores = np.empty((len(blobs), count), np.float32)
        np.put_along_axis(scores, best["rows"], best["scores"], 1)
        return scores


def places_of(wanted: Array, rows: Array) -> Array:
    """Where rows of the catalogue stand in `rows` (n,), each once; -1 where they do not."""
    order = np.argsort(rows, kind="stable")
    found = order[np.minimum(rows.searchsorted(wanted, sorter=order), len(rows) - 1)]
    places: Array = np.where(rows[found] == wanted, found, -1)
    return places
