"""NDCG@k = DCG@k / ideal DCG@k, DCG@k = sum over ranks r = 1..k of [item at r is a target] / log2(r + 1).

The ideal list has min(|targets|, k) targets first, so that a basket larger than k can still reach 1.
Source: Jarvelin & Kekalainen 2002, with binary gains.
"""

from __future__ import annotations

import numpy as np

from model.data.sequences import Queries
from model.metrics.hits import Float64, Ranked, hits, relevant


def ndcg(ranked: Ranked, queries: Queries, k: int) -> Float64:
    """(Q,) in 0..1; NaN for a query without targets. `ranked` as in `hits`."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    count = relevant(queries)
    ideal = np.append(np.nan, np.cumsum(discount))[np.minimum(np.nan_to_num(count), k).astype(np.int64)]
    value: Float64 = hits(ranked, queries, k) @ discount / ideal
    return value
