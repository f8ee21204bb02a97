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
_DIGITS = 9  # with so many, any float32 is told from any other


def pack(numbers: Sequence[float]) -> bytes:
    """As a vector is kept."""
    return np.asarray(numbers, "<f4").tobytes()


def unpack(vector: bytes) -> list[float]:
    """The numbers of a vector, each with as few digits as make this float32: 0.1 comes back as 0.1.

    (Text for each number says the same, and takes a millisecond for 512 of them.)
    """
    kept = np.frombuffer(vector, "<f4")
    found = kept.astype(np.float64)
    exponent = np.floor(np.log10(np.abs(found), where=found != 0, out=np.zeros_like(found)))
    for digits in range(_DIGITS, 5, -1):  # the fewest that fit come last
        power = 10 ** (digits - 1 - exponent)
        rounded = np.rint(kept * power) / power
        found = np.where(rounded.astype(np.float32) == kept, rounded, found)
    numbers: list[float] = found.tolist()
    return numbers


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
