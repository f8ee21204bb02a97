"""What was made lately, for so many of the things that it is made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Lately(Generic[Key, Value]):
    """Values by key, the `most` that were asked for last. Thread-safe.

    Where a key is made of addresses, the value must hold what lies there, so that nothing else can have them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: OrderedDict[Key, Value] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def find(self, wanted: Callable[[Value], bool]) -> Value | None:
        """One that is wanted, the latest first."""
        with self._lock:
            for key, value in reversed(self._held.items()):
                if wanted(value):
                    self._held.move_to_end(key)
                    return value
        return None

    def put(self, key: Key, value: Value) -> Value:
        with self._lock:
            self._held[key] = value
            while len(self._held) > self.most:
                self._held.popitem(last=False)
        return value

    def keep(self, wanted: Callable[[Value], bool]) -> None:
        """Forget all others."""
        with self._lock:
            for key in [key for key, value in self._held.items() if not wanted(value)]:
                del self._held[key]
