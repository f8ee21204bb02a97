"""The fold outside the service: the bundle's graphs, one event at a time, with none of the service's arithmetic between.

Only reading the bundle and the key of an item are the service's own code; both are formats, not computations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.catalogue.catalogue import item_key
from app.runtime.bundle import read_bundle

Array = npt.NDArray[Any]
State = dict[str, Array]

TOLERANCE: Final = 2e-4
"""Scores that are closer than this may change places, and a score may be off by as much (invariant I1)."""


@dataclass(frozen=True)
class Best:
    """The best items of one user with their scores, best first; more of them than the service was asked for."""

    ids: list[str]
    scores: list[float]


class Offline:
    """Folds B users at a time; a state is the graphs' tensors, each (B, ...)."""

    def __init__(self, folder: Path) -> None:
        bundle = read_bundle(folder)
        self.manifest = bundle.manifest
        self.ids = [item.id for item in bundle.items]
        self._vectors, self._bias = np.asarray(bundle.vectors), np.asarray(bundle.bias)
        self._rows = {item: row for row, item in enumerate(self.ids)}
        self._row_of_key = {item_key(item): row for row, item in enumerate(self.ids)}
        self._graphs = {
            name: _open(bundle.file(graph.file))
            for name, graph in bundle.manifest.graphs.items()
            if name not in ("encode", "item")
        }
        self._counts: State = {"popularity": bundle.popularity.astype(np.float32)}
        if "recent" in self._graphs:  # else score.onnx takes the counts as they are
            self._counts = self._run("recent", self._counts)
        self._types = {kind.name: index for index, kind in enumerate(self.manifest.event_types)}
        self._platforms = {name: index for index, name in enumerate(self.manifest.platforms, start=1)}

    def initial(self, users: int) -> State:
        """States of users without attributes and events."""
        attributes = np.zeros((users, len(self.manifest.user_attributes)), np.int64)
        return _states(self._run("initial", {"attributes": attributes}))

    def step(self, state: State, events: Sequence[Mapping[str, Any]]) -> State:
        """The states after one event of each user, as the user sent it."""
        rows = [self._rows.get(event["item_id"]) for event in events]
        feeds: State = {
            "item_vector": np.stack([np.zeros_like(self._vectors[0]) if row is None else self._vectors[row] for row in rows]),
            "item_known": np.asarray([row is not None for row in rows]),
            "item_key": np.asarray([item_key(event["item_id"]) for event in events], np.int64),
            "event_type": np.asarray([self._types[event["type"]] for event in events], np.int64),
            "platform": np.asarray([self._platforms.get(event.get("platform", ""), 0) for event in events], np.int64),
            "numbers": np.asarray(
                [[event.get(name, np.nan) for name in self.manifest.numbers] for event in events], np.float32
            ).reshape(len(events), -1),
            "time": np.asarray([event["timestamp"] for event in events], np.int64),
        }
        if self.manifest.text is not None:
            feeds["text"] = np.zeros((len(events), self.manifest.text.width), np.float32)
        return _states(self._run("step", state | feeds))

    def best(self, state: State, as_of_ms: Sequence[int], number: int, had: Sequence[set[str]]) -> list[Best]:
        """The `number` best items of each user at a moment at which popularity is the bundle's.

        Args:
            had: items of each user's events, left out where the model's data says that nobody comes back to one.
        """
        context = {"as_of": np.asarray(as_of_ms, np.int64), "platform": np.zeros(len(as_of_ms), np.int64)}
        interest = self._run("interest", state | context)
        feeds: State = {
            **interest,
            "item_matrix": self._vectors,
            "item_bias": self._bias,
            **self._counts,
            "bias": self._forbidden(had),
            "k": np.asarray([min(number, len(self.ids))], np.int64),
        }
        if "repeat_keys" in interest:
            keys = interest["repeat_keys"]
            rows = [self._row_of_key.get(key, -1) for key in keys.ravel().tolist()]
            feeds["repeat_rows"] = np.asarray(rows, np.int64).reshape(keys.shape)
        found = self._run("score", feeds)
        return [
            Best([self.ids[row] for row, score in zip(rows, scores, strict=True) if score > -np.inf], _finite(scores))
            for rows, scores in zip(found["rows"].tolist(), found["scores"].tolist(), strict=True)
        ]

    def _forbidden(self, had: Sequence[set[str]]) -> Array:
        bias = np.zeros((len(had), len(self.ids)), np.float32)
        if self.manifest.seen_items == "exclude":
            for user, items in enumerate(had):
                bias[user, [self._rows[item] for item in items if item in self._rows]] = -np.inf
        return bias

    def _run(self, name: str, feeds: Mapping[str, Array]) -> State:
        session = self._graphs[name]
        outputs = [output.name for output in session.get_outputs()]
        results = session.run(outputs, {one.name: feeds[one.name] for one in session.get_inputs()})
        return dict(zip(outputs, results, strict=True))


def problem(answer: Sequence[tuple[str, float]], best: Best, k: int) -> str | None:
    """Why a list of (item, score) is not the k best; None if it is, but for scores closer than the tolerance."""
    expected = min(k, len(best.ids))
    if len(answer) != expected:
        return f"{len(answer)} items instead of {expected}"
    offline = dict(zip(best.ids, best.scores, strict=True))
    for place, (item, score) in enumerate(answer):
        if item not in offline:
            return f"item {item} in place {place} is not among the best {len(best.ids)}"
        if abs(score - offline[item]) > TOLERANCE:
            return f"item {item} has a score of {score:.5f} instead of {offline[item]:.5f}"
        if place and score > answer[place - 1][1]:
            return f"item {item} in place {place} is better than the one before"
    given, worst = {item for item, _ in answer}, answer[-1][1]
    for item, score in offline.items():
        if score > worst + TOLERANCE and item not in given:
            return f"item {item} with a score of {score:.5f} is missing; the last one given has {worst:.5f}"
    return None


def difference(answer: Sequence[tuple[str, float]], best: Best) -> float:
    """The largest difference of a score."""
    offline = dict(zip(best.ids, best.scores, strict=True))
    return max((abs(score - offline[item]) for item, score in answer if item in offline), default=0.0)


def _states(outputs: Mapping[str, Array]) -> State:
    return {name.removesuffix("_out"): array for name, array in outputs.items()}


def _finite(scores: Sequence[float]) -> list[float]:
    return [score for score in scores if score > -np.inf]


def _open(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
