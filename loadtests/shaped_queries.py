"""Users with tastes, folded by the bundle's own graphs: what interest.onnx says of them are real interest vectors."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from app.runtime.bundle import Bundle
from app.runtime.session import Runtime

Array = npt.NDArray[Any]

_EVENTS: Final = 40
_FEWEST: Final = 3
_NEAR: Final = 60  # rows near a taste
_CHOSEN_FROM: Final = 100_000
_TASTE: Final = 0.7  # share of the events that follow a taste; the others follow popularity
_DAY_MS: Final = 86_400_000


def interests(runtime: Runtime, bundle: Bundle, users: int, seed: int = 0) -> dict[str, Array]:
    """The outputs of interest.onnx for so many users, and their `repeat_rows`, at the moment that the bundle's popularity is of.

    Each has one to three items that they like, and 3 to 40 events of two months: most of them with items like these.
    """
    rng = np.random.default_rng(seed)
    manifest, vectors = bundle.manifest, bundle.vectors
    count = manifest.items.count
    some = np.sort(rng.choice(count, min(count, _CHOSEN_FROM), replace=False))
    chance = bundle.popularity[some, -1] + 1e-9
    chance = chance / chance.sum()
    own, norms = vectors[some], np.linalg.norm(vectors[some], axis=1)
    rows = np.empty((users, _EVENTS), np.int64)
    for user in range(users):
        likes = rng.choice(len(some), rng.integers(1, 4), p=chance)
        near = np.concatenate([np.argpartition(-(own @ own[like]) / norms, _NEAR)[:_NEAR] for like in likes])
        tasteful = rng.random(_EVENTS) < _TASTE
        rows[user] = some[np.where(tasteful, rng.choice(near, _EVENTS), rng.choice(len(some), _EVENTS, p=chance))]
    length = rng.integers(_FEWEST, _EVENTS + 1, users)
    now_ms = manifest.popularity.as_of_ms
    kinds = [index for index, kind in enumerate(manifest.event_types) if kind.polarity == "positive"]
    feeds: dict[str, Array] = {
        **_state(runtime.initial({"attributes": np.zeros((users, len(manifest.user_attributes)), np.int64)})),
        "item_vector": vectors[rows],
        "item_known": np.ones((users, _EVENTS), bool),
        "item_key": rows + 1,  # any numbers that are not 0 do
        "event_type": np.full((users, _EVENTS), kinds[0], np.int64),
        "platform": np.zeros((users, _EVENTS), np.int64),
        "numbers": np.full((users, _EVENTS, len(manifest.numbers)), np.nan, np.float32),
        "time": now_ms - np.sort(rng.integers(0, 60 * _DAY_MS, (users, _EVENTS)), 1)[:, ::-1],
        "valid": np.arange(_EVENTS) < length[:, np.newaxis],
    }
    if manifest.text is not None:
        feeds["text"] = np.zeros((users, _EVENTS, manifest.text.width), np.float32)
    state = _state(runtime.encode(feeds))
    found = runtime.interest({**state, "as_of": np.full(users, now_ms, np.int64), "platform": np.zeros(users, np.int64)})
    if "repeat_keys" in found:
        found["repeat_rows"] = found["repeat_keys"] - 1
    return found


def _state(outputs: dict[str, Array]) -> dict[str, Array]:
    return {name.removesuffix("_out"): array for name, array in outputs.items()}
