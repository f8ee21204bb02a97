"""What every baseline can do."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from model.data.sequences import Int64, Sequences


class Baseline(Protocol):
    """A recommender without a trained network, that follows the events as they happen.

    What it knows of all users together comes from `fit` and `observe` alone. What it knows of the asking user is read from the
    rows before the query's position, which a live replay has observed anyway.
    """

    name: str

    def fit(self, seq: Sequences, known: Int64) -> None:
        """Start anew from the rows `offsets[u]:known[u]` of every user u; `known` is (U,)."""

    def observe(self, start: int, end: int) -> None:
        """The events in rows `start:end`, all of one user, have just become known. They follow what was known of the user."""

    def score(self, user: int, position: int, as_of_ms: int) -> npt.NDArray[np.float64]:
        """(N,) a new array of scores, higher is better, for the user whose past is the rows `offsets[user]:position`."""

    def parameters(self) -> dict[str, float]:
        """The settings it works with, for the report; times in days."""
