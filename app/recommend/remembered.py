"""What requests name, remembered for a moment: it changes within that, and each request does not ask for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final, Generic, TypeVar

import structlog
from pydantic import ValidationError

from app.errors import NotFoundError, StorageError, UnavailableError
from app.state.versioned import Stored, VersionedStore

_REMEMBERED: Final = 1_000

Read = TypeVar("Read")

log = structlog.get_logger()


class Remembered(Generic[Read]):
    """Reads what is stored of a kind; what was read is good for `fresh_s`, and for longer while storage is away.

    Args:
        read: makes of what is stored what is wanted of it. Raises ValidationError if it cannot.
    """

    def __init__(self, store: VersionedStore, fresh_s: float, read: Callable[[Stored], Read]) -> None:
        self.store = store
        self._fresh_s = fresh_s
        self._read = read
        self._known: OrderedDict[str, tuple[float, Stored, Read]] = OrderedDict()

    async def get(self, name: str, away: bool = False) -> Read:
        """What has this name.

        Args:
            away: storage has just been found to be: what was read before is not asked for again, and waited for once more.

        Raises:
            NotFoundError: nothing has.
            StorageError: storage is away, and it was not read before.
            UnavailableError: it was stored by another version, and cannot be read by this one.
        """
        known = self._known.get(name)
        if known is not None and (away or monotonic() < known[0] + self._fresh_s):
            return known[2]
        asked_s = monotonic()
        try:
            found = await self.store.get(name)
        except StorageError:
            if known is None:
                raise
            return known[2]
        if found is None:
            self._known.pop(name, None)
            raise NotFoundError(f"there is no {self.store.kind} {name!r}")
        read = self.read(found) if known is None or known[1] != found else known[2]
        self._known[name] = (asked_s, found, read)
        self._known.move_to_end(name)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return read

    def read(self, found: Stored) -> Read:
        """What is wanted of what is stored. Raises UnavailableError if another version stored it."""
        try:
            return self._read(found)
        except ValidationError as error:
            kind, said = self.store.kind, str(error).splitlines()[0]
            log.error(f"a stored {kind} cannot be read", name=found.name, version=found.version, error=said)
            raise UnavailableError(
                f"{kind} {found.name!r} was stored by another version of the service; store it again"
            ) from None

    def forget(self, name: str) -> None:
        """Ask again next time: it was changed here."""
        self._known.pop(name, None)
