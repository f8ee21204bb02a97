"""A user's interests in words: what their next items are expected to be about, and how far that has moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.fold import Fold, UserState
from app.recommend.score import Read
from app.recommend.some import places_of
from app.runtime.session import Array, Runtime

MOST = 10
_SAMPLED: Final = 2_048  # items, for shares that are asked for with a list


class Interest(msgspec.Struct, frozen=True):
    """Something that the user is interested in."""

    label: Annotated[str, Meta(description="A category, or the words of a group of items where they have no categories.")]
    weight: Annotated[float, Meta(description="The share of the user's next items that the model expects to be about it.")]


@dataclass(frozen=True, slots=True)
class Portrait:
    """Interests, the strongest first, and the drift: 0 for an interest that stays, the more the further it has moved of late."""

    interests: list[Interest]
    drift: float


class Portraits:
    """Asks profile.onnx of a model whose items have labels."""

    def __init__(self, runtime: Runtime, catalogue: Catalogue, popularity: LivePopularity, fold: Fold) -> None:
        labels, graph = runtime.bundle.labels, runtime.profile
        self._runtime = runtime
        self._catalogue = catalogue
        self._popularity = popularity
        self._fold = fold
        self._graph = graph if labels is not None else None
        self._names = runtime.bundle.manifest.labels.names if runtime.bundle.manifest.labels is not None else []
        self._resident = {} if labels is None else {
            "item_matrix": runtime.resident(catalogue.vectors),
            "item_bias": runtime.resident(catalogue.bias),
            "item_labels": runtime.resident(labels),
        }  # fmt: skip

    def of(self, user: UserState, as_of_ms: int) -> Portrait | None:
        """The portrait of a user at a moment (unix ms); None if the model draws none."""
        if self._graph is None:
            return None
        tensors = self._fold.tensors([user.blob])
        tensors |= {"as_of": np.asarray([as_of_ms], np.int64), "platform": np.zeros(1, np.int64)}
        interest = self._runtime.interest(tensors)
        items = self._catalogue.bundle_rows  # labels are known of those
        if "repeat_keys" in interest:
            rows = self._catalogue.rows_of_keys(interest["repeat_keys"])
            interest["repeat_rows"] = np.where(rows < items, rows, -1)
        found = self._graph({**tensors, **interest, **self._resident, "popularity": self._popularity.at(as_of_ms)[:items]})
        weights = found["labels"][0]
        interests = _named(_best(weights), weights, self._names)
        return Portrait(interests, max(0.0, round(float(found["drift"][0, 0]), 4)))  # -0.0 by rounding, else


class Shares:
    """The interests of a portrait, cheap enough to come with a list: of a large catalogue they are estimated from a sample of
    it, evenly drawn, the same for everybody."""

    def __init__(self, runtime: Runtime, catalogue: Catalogue, popularity: LivePopularity) -> None:
        labels = runtime.bundle.labels
        self._catalogue = catalogue
        self._popularity = popularity
        self._graph = runtime.profile if labels is not None else None
        self._names = runtime.bundle.manifest.labels.names if runtime.bundle.manifest.labels is not None else []
        self._labels = labels
        count = catalogue.bundle_rows
        self._rows = np.linspace(0, count - 1, min(count, _SAMPLED)).astype(np.int64)
        self._resident = {} if labels is None else {
            "item_matrix": runtime.resident(catalogue.vectors[self._rows]),
            "item_bias": runtime.resident(catalogue.bias[self._rows]),
            "item_labels": runtime.resident(labels[self._rows]),
        }  # fmt: skip

    def __call__(self, read: Read, rows: Sequence[int], as_of_ms: int) -> list[list[Interest]]:
        """For each of some items the interests of one user that it is about, the strongest first."""
        if self._graph is None or self._labels is None:
            return [[] for _ in rows]
        interest = read.interest
        feeds = {**read.state, **interest, **self._resident, "popularity": self._popularity.at(as_of_ms)[self._rows]}
        if "repeat_keys" in interest:
            feeds["repeat_rows"] = places_of(self._catalogue.rows_of_keys(interest["repeat_keys"]), self._rows)
        weights = self._graph(feeds)["labels"][0]
        best = _best(weights)
        interests = _named(best, weights, self._names)
        trained = np.minimum(rows, len(self._labels) - 1)
        about = (self._labels[trained[:, None], best] > 0).tolist()
        for place, row in enumerate(rows):
            if row >= len(self._labels):  # has come since: its categories may be labels
                about[place] = [interest.label in self._catalogue.categories[row] for interest in interests]
        return [[interest for interest, is_so in zip(interests, of_item, strict=True) if is_so] for of_item in about]


def _best(weights: Array) -> Array:
    best: Array = np.argsort(-weights, kind="stable")[:MOST]
    return best


def _named(best: Array, weights: Array, names: Sequence[str]) -> list[Interest]:
    shares = weights[best].tolist()
    return [Interest(names[index], round(share, 4)) for index, share in zip(best.tolist(), shares, strict=True)]
