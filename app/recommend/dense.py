"""What a model reads of an item in numbers: features, a number each, and vectors (of an image, a sound), many under one name.

Vectors are kept as the bytes of their float32 numbers, little-endian. One whose name the model does not know, or that was given
for a model that takes another length, changes nothing; what an item does not have is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequestError
from app.runtime.manifest import Manifest
from app.state.items import Item

_BYTES = 4


def pack(numbers: Sequence[float]) -> bytes:
    """As a vector is kept."""
    return np.asarray(numbers, "<f4").tobytes()


def unpack(vector: bytes) -> list[float]:
    """The numbers of a vector, each as the shortest that is this float32: 0.1 comes back as 0.1."""
    return [float(text) for text in np.frombuffer(vector, "<f4").astype("U")]


class Dense:
    """What one model reads."""

    def __init__(self, manifest: Manifest) -> None:
        self._features = manifest.item_features
        self._vectors = {one.name: one.width for one in manifest.item_vectors}

    def check(self, vectors: Mapping[str, bytes]) -> None:
        """Raise InvalidRequestError if one has another length than the model takes."""
        for name, vector in vectors.items():
            width, given = self._vectors.get(name), len(vector) // _BYTES
            if width is not None and given != width:
                field, message = f"vectors.{name}", f"has {given} numbers; the model takes {width}"
                raise InvalidRequestError(f"{field}: {message}", [{"field": field, "message": message}])

    def reads(self, item: Item) -> bool:
        """Whether the item has anything that the model reads."""
        return any(name in item.features for name in self._features) or any(self._has(item, name) for name in self._vectors)

    def without_the_rest(self, item: Item) -> Item:
        """The item without vectors that the model does not read: they would be held for nothing."""
        kept = {name: item.vectors[name] for name in self._vectors if self._has(item, name)}
        return item if len(kept) == len(item.vectors) else msgspec.structs.replace(item, vectors=kept)

    def features(self, item: Item) -> tuple[float, ...]:
        """In the model's order."""
        return tuple(item.features.get(name, 0.0) for name in self._features)

    def vectors(self, item: Item) -> bytes:
        """One behind the other, in the model's order."""
        parts = ((item.vectors[name] if self._has(item, name) else bytes(_BYTES * n)) for name, n in self._vectors.items())
        return b"".join(parts)

    def _has(self, item: Item, name: str) -> bool:
        return len(item.vectors.get(name, b"")) == _BYTES * self._vectors[name]


def rows(features: Sequence[tuple[float, ...]], vectors: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """(n, F) what item.onnx takes of n items, from their `features` and `vectors`."""
    numbers = np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1)
    return np.concatenate([np.asarray(features, np.float32).reshape(len(features), -1), numbers], axis=1)
