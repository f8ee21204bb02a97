"""Items that are like an item: neighbours in the space where users' interests meet them."""

from __future__ import annotations

import numpy as np

from app.catalogue.catalogue import Catalogue, Float32


class SimilarItems:
    """Cosines of item vectors; who is near an item is wanted by the same users."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._vectors = catalogue.vectors
        # The lengths alone: the vectors themselves are mapped from the bundle and shared by the workers.
        length: Float32 = np.sqrt(np.einsum("nd,nd->n", self._vectors, self._vectors))
        self._length = np.where(length > 0, length, np.float32(1))

    def of(self, row: int, k: int) -> tuple[list[int], list[float]]:
        """Rows of the k items most like the one of `row`, which is left out, best first, ties by lower row; and their cosines."""
        cosine = (self._vectors @ self._vectors[row]) / (self._length * self._length[row])
        cosine[row] = -np.inf
        k = min(k, len(cosine) - 1)
        if k < 1:
            return [], []
        candidates = np.flatnonzero(cosine >= np.partition(cosine, len(cosine) - k)[len(cosine) - k])
        best = candidates[np.argsort(-cosine[candidates], kind="stable")][:k]
        return best.tolist(), cosine[best].tolist()
