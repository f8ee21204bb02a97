"""Users with few events: what their context makes of items is added to the model's scores, as far as that was measured to help.

    score = model + weight(events) * log lift

The lift is that of the fallback (app/recommend/contexts.py); facets and weights are the bundle's own (`cold` in its manifest,
docs/adr/0024-cold-users.md). Beyond the last number of events nothing is added, nor looked up.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from app.catalogue.catalogue import Float32
from app.recommend.answer import Query
from app.recommend.contexts import ContextPopularity
from app.runtime.manifest import Cold


class ColdUsers:
    """The blend of one model; one without adds nothing."""

    def __init__(self, cold: Cold | None, contexts: ContextPopularity) -> None:
        self._facets = cold.facets if cold is not None else []
        self._events = cold.events if cold is not None else []
        self._weights = cold.weights if cold is not None else []
        self._most = self._events[-1] - 1 if self._events else 0
        self._contexts = contexts

    def added(self, query: Query, attributes: Mapping[str, str], events: int) -> Float32 | None:
        """(N,) what is added to the scores of somebody with so many events; None if that is nothing."""
        if events > self._most:
            return None
        weight = float(np.interp(events, self._events, self._weights))
        lift = self._contexts.lift(query, attributes, self._facets) if weight else None
        return None if lift is None else np.float32(weight) * lift.bias
