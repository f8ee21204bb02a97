"""What a run tells of its epochs: loss, validation ndcg and seconds of each, as every checkpoint keeps them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def best_epoch(history: Sequence[dict[str, Any]]) -> int:
    """The epoch whose weights are kept, from 1: the last one of the best, or the last one where nothing was validated."""
    best = best_ndcg(history)
    return max((epoch["epoch"] for epoch in history if math.isnan(best) or epoch["valid_ndcg"] == best), default=0)


def best_ndcg(history: Sequence[dict[str, Any]]) -> float:
    """Its validation ndcg; NaN where nothing was validated."""
    return max((epoch["valid_ndcg"] for epoch in history if not math.isnan(epoch["valid_ndcg"])), default=math.nan)
