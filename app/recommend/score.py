"""Interests against the whole catalogue: the call of score.onnx with everything that enters it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.runtime.session import Array, Runtime


class Scorer:
    """Scores all N items for one user and takes the best; item matrix and bias lie on the device from the start."""

    def __init__(self, runtime: Runtime, catalogue: Catalogue, popularity: LivePopularity) -> None:
        self._runtime = runtime
        self._catalogue = catalogue
        self._popularity = popularity
        self._item_matrix = runtime.resident(catalogue.vectors)
        self._item_bias = runtime.resident(catalogue.bias)
        self._nothing_forbidden = runtime.resident(np.zeros((1, len(catalogue)), np.float32))

    def top(
        self, interest: Mapping[str, Array], k: int, as_of_ms: int, forbidden: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        """The k best rows and their scores, best first, ties by lower row; fewer only if fewer are eligible.

        Args:
            interest: outputs of interest.onnx for one user.
            as_of_ms: moment to which popularity is brought.
            forbidden: rows that must not come back.
        """
        feeds = {
            **interest,
            "item_matrix": self._item_matrix,
            "item_bias": self._item_bias,
            "popularity": self._popularity.at(as_of_ms),
            "bias": self._bias(forbidden) if forbidden else self._nothing_forbidden,
            "k": np.asarray([min(k, len(self._catalogue))], np.int64),
        }
        if "repeat_keys" in interest:
            feeds["repeat_rows"] = self._catalogue.rows_of_keys(interest["repeat_keys"])
        best = self._runtime.score(feeds)
        scores, rows = best["scores"][0], best["rows"][0]
        eligible = int(np.searchsorted(-scores, np.inf))  # scores fall; -inf ends the list
        return rows[:eligible].tolist(), scores[:eligible].tolist()

    def _bias(self, forbidden: Sequence[int]) -> Array:
        bias = np.zeros((1, len(self._catalogue)), np.float32)
        bias[0, forbidden] = -np.inf
        return bias
