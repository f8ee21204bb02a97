"""Items that are like an item: neighbours in the space where users' interests meet them."""

from __future__ import annotations

import numpy as np

from app.catalogue.catalogue import Catalogue, Float32


class SimilarItems:
    """Cosines of item vectors; who is near an item is wanted by the same users."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._changes = -1
        self._length: Float32 = np.empty(0, np.float32)

    def of(self, row: int, k: int, bias: Float32) -> tuple[list[int], list[float]]:
        """Rows of the k items most like the one of `row`, which is left out, best first, ties by lower row; and their cosines.

        `bias` is the catalogue's at the moment of asking: what is not available then is left out. Nothing is like an item that
        the model does not know.
        """
        vectors = self._catalogue.vectors[: len(bias)]
        if not self._catalogue.known[row]:
            return [], []
        if self._changes != self._catalogue.changes or len(self._length) != len(bias):
            # The lengths alone: the vectors themselves are mapped from the bundle and shared by the workers.
            length: Float32 = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
            self._length = np.where(length > 0, length, np.float32(1))
            self._changes = self._catalogue.changes
        cosine = (vectors @ vectors[row]) / (self._length * self._length[row])
        cosine[bias == -np.inf] = -np.inf
        cosine[row] = -np.inf
        k = min(k, int(np.isfinite(cosine).sum()))
        if k < 1:
            return [], []
        candidates = np.flatnonzero(cosine >= np.partition(cosine, len(cosine) - k)[len(cosine) - k])
        best = candidates[np.argsort(-cosine[candidates], kind="stable")][:k]
        return best.tolist(), cosine[best].tolist()
