"""MRR@k: 1 / rank of the first target within the top k, 0 if there is none.

Source: Voorhees 1999, "The TREC-8 question answering track report".
"""

from __future__ import annotations

import numpy as np

from model.data.sequences import Queries
from model.metrics.hits import Float64, Ranked, hits, relevant


def mrr(ranked: Ranked, queries: Queries, k: int) -> Float64:
    """(Q,) in 0..1; NaN for a query without targets. `ranked` as in `hits`."""
    hit = hits(ranked, queries, k)
    reciprocal = np.where(hit.any(1), 1 / (1 + hit.argmax(1)), 0.0)
    return np.where(np.isnan(relevant(queries)), np.nan, reciprocal)
