"""Precision@k = |top k of the list that are targets| / k.

Always divided by k: a list that ends early is not rewarded for it.
Source: Cleverdon, Mills & Keen 1966.
"""

from __future__ import annotations

import numpy as np

from model.data.sequences import Queries
from model.metrics.hits import Float64, Ranked, hits, relevant


def precision(ranked: Ranked, queries: Queries, k: int) -> Float64:
    """(Q,) in 0..1; NaN for a query without targets. `ranked` as in `hits`."""
    return np.where(np.isnan(relevant(queries)), np.nan, hits(ranked, queries, k).sum(1) / k)
