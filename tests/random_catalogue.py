"""Random catalogues, users and rules, and the lists that belong to them, worked out row by row in plain numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from app.recommend.index import Source, typical_weights
from app.recommend.retrieve import Limits
from app.recommend.scan import Found

RARE = 0.05


class RandomCatalogue:
    """Rows that change as a test says; `seed` makes it."""

    def __init__(self, rows: int, width: int, half_lives: int, seed: int, levels: int = 0) -> None:
        rng = self.rng = np.random.default_rng(seed)
        centres = rng.standard_normal((8, width))
        self.vectors = (centres[rng.integers(0, 8, rows)] + 0.5 * rng.standard_normal((rows, width))).astype(np.float32)
        self.bias = (0.3 * rng.standard_normal(rows)).astype(np.float32)
        if levels:  # few different numbers, so that there are ties
            self.vectors = np.round(self.vectors * levels).clip(-levels, levels).astype(np.float32)
            self.bias = np.zeros(rows, np.float32)
        self.popularity = rng.exponential(1.0, (rows, half_lives)).astype(np.float32) ** 3
        if levels:
            self.popularity[:] = 1.0
        self.open = np.ones(rows, bool)
        self.version = 0
        self._changed: list[tuple[int, np.ndarray]] = []

    def __len__(self) -> int:
        return len(self.vectors)

    def changed_since(self, version: int) -> np.ndarray:
        rows = [rows for at, rows in self._changed if at > version]
        return np.unique(np.concatenate(rows)) if rows else np.empty(0, np.int64)

    def source(self, users: Mapping[str, Any]) -> Source:
        weights = typical_weights(users["interests"], users["popularity_weight"])
        return Source(self.vectors.copy(), self.bias.copy(), self.popularity.copy(), weights, self.version)

    def change(self, rows: np.ndarray) -> None:
        """Other vectors and biases for some rows."""
        self.vectors = self.vectors.copy()
        self.vectors[rows] = 2 * self.rng.standard_normal((len(rows), self.vectors.shape[1]))
        self._note(rows)

    def append(self, number: int) -> None:
        first = len(self)
        self.vectors = np.concatenate([self.vectors, 2 * self.rng.standard_normal((number, self.vectors.shape[1]))]).astype("f4")
        self.bias = np.concatenate([self.bias, np.zeros(number, np.float32)])
        self.popularity = np.concatenate([self.popularity, np.zeros((number, self.popularity.shape[1]), np.float32)])
        self.open = np.concatenate([self.open, np.ones(number, bool)])
        self._note(np.arange(first, len(self)))

    def close(self, rows: np.ndarray) -> None:
        self.open = self.open.copy()
        self.open[rows] = False
        self._note(np.empty(0, np.int64))

    def _note(self, rows: np.ndarray) -> None:
        self.version += 1
        self._changed.append((self.version, rows.astype(np.int64)))

    def users(self, number: int, interests: int, repeats: int, levels: int = 0) -> dict[str, np.ndarray]:
        width, half_lives = self.vectors.shape[1], self.popularity.shape[1]
        found: dict[str, np.ndarray] = {
            "interests": self.rng.standard_normal((number, interests, width)).astype(np.float32),
            "popularity_weight": self.rng.uniform(0, 0.5, (number, half_lives)).astype(np.float32),
        }
        if repeats:
            rows = np.stack([self.rng.permutation(len(self))[:repeats] for _ in range(number)])
            rows[self.rng.random(rows.shape) < 0.3] = -1
            found["repeat_rows"] = rows
            found["repeat_scores"] = self.rng.uniform(0, 4, rows.shape).astype(np.float32)
            found["repeat_interest"] = (0.3 * self.rng.standard_normal((number, width))).astype(np.float32)
        if levels:
            found["interests"] = np.round(found["interests"])
            found["popularity_weight"][:] = 0
            for name in ("repeat_scores", "repeat_interest"):
                if name in found:
                    found[name] = np.round(found[name])
        return found

    def exact(self, interest: Mapping[str, Any], popularity: Any, bias: Any, m: int) -> tuple[Any, Any]:
        """What score.onnx gives, for the retriever to call."""
        scores = np.stack([self.scores(interest, place, popularity) for place in range(len(interest["interests"]))])
        if bias is not None:
            scores = scores + bias
        order = np.argsort(-scores, 1, kind="stable")[:, :m]
        return np.take_along_axis(scores, order, 1), order

    def scores(self, interest: Mapping[str, Any], place: int, popularity: Any) -> np.ndarray:
        """(N,) scores of one user without rules."""
        scores = (self.vectors @ interest["interests"][place].T).max(1) + self.bias
        scores = scores + np.log(popularity + RARE) @ interest["popularity_weight"][place]
        if "repeat_rows" in interest:
            for row, amount in zip(interest["repeat_rows"][place], interest["repeat_scores"][place], strict=True):
                if row >= 0:
                    scores[row] += amount + self.vectors[row] @ interest["repeat_interest"][place]
        return scores

    def right(self, interest: Mapping[str, Any], place: int, limits: Limits, m: int) -> Found:
        """The list that is right, by the definition."""
        scores = self.scores(interest, place, self.popularity).astype(np.float32)
        if limits.bias is not None:
            scores = scores + limits.bias
        for row, amount in zip(*limits.own, strict=True):
            scores[row] += amount
        allowed = [
            row
            for row in range(len(self))
            if self.open[row]
            and scores[row] > -np.inf
            and (limits.mask is None or limits.mask[row])
            and (limits.among is None or row in set(limits.among))
            and row not in set(limits.without)
        ]
        best = sorted(allowed, key=lambda row: (-scores[row], row))[:m]
        return Found(np.asarray(best, np.int64), scores[best])
