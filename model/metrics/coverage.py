"""Catalogue coverage@k = |distinct items in any top k| / |catalogue|.

Source: Herlocker, Konstan, Terveen & Riedl 2004; Ge, Delgado-Battenfeld & Jannach 2010.
"""

from __future__ import annotations

import numpy as np

from model.metrics.hits import Ranked


def coverage(ranked: Ranked, items: int, k: int) -> float:
    """Share in 0..1 of the `items` of the catalogue that some list shows. It grows with the number of lists."""
    shown = np.unique(ranked[:, :k])
    return float(np.count_nonzero(shown >= 0) / items)
