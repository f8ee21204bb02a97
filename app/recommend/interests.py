"""A user's interests in words: what their next items are expected to be about, and how far that has moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.fold import Fold, UserState
from app.runtime.session import Runtime

MOST = 10


class Interest(msgspec.Struct, frozen=True):
    """Something that the user is interested in."""

    label: Annotated[str, Meta(description="A category, or the words of a group of items where they have no categories.")]
    weight: Annotated[float, Meta(description="The share of the user's next items that the model expects to be about it.")]


@dataclass(frozen=True, slots=True)
class Portrait:
    """Interests, the strongest first, and the drift: 0 for an interest that stays, 1 for one that has nothing of the old left."""

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
        best = np.argsort(-weights, kind="stable")[:MOST]
        interests = [Interest(self._names[index], round(float(weights[index]), 4)) for index in best.tolist()]
        return Portrait(interests, max(0.0, round(float(found["drift"][0, 0]), 4)))  # -0.0 by rounding, else
