"""The index of a running service: made beside it, taken up when it is there, made again when popularity has gone away from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Final

import structlog

from app.catalogue.catalogue import Bool, Catalogue, Float32, Int64
from app.errors import IndexDamagedError
from app.recommend.index import Source
from app.recommend.indexing import indexed
from app.recommend.retrieve import Retriever

_LOOK_S: Final = 60.0
_TRY_AGAIN_S: Final = 600.0

log = structlog.get_logger()


class LiveRows:
    """A catalogue as retrieval sees it at one moment, until it is shown another one.

    Attributes:
        version: grows with each change.
        vectors (N, D), bias (N,), open (N,).
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._seen: tuple[int, Float32] | None = None
        self.version = 0
        self.show(catalogue.bias_at(0))

    def show(self, bias: Float32) -> None:
        """Be the catalogue as it is now, with what `Catalogue.bias_at` says of a moment."""
        changes = self._catalogue.changes
        if self._seen is not None and self._seen[0] == changes and self._seen[1] is bias:
            return
        self._seen = (changes, bias)
        self.version += 1
        self.vectors: Float32 = self._catalogue.vectors[: len(bias)]
        self.bias: Float32 = self._catalogue.bias[: len(bias)]
        self.open: Bool = bias > -float("inf")

    def changed_since(self, version: int) -> Int64:
        """Rows that are not in an index, whenever that was made: only the bundle's are, and these keep their vectors."""
        return self._catalogue.renewed_since(0)


async def keep_index(retriever: Retriever, folder: Path, name: str, source: Callable[[], Source]) -> None:
    """See to it that there is an index, until cancelled; what goes wrong is logged, and every list is exact meanwhile.

    Args:
        folder: where indexes lie, for all workers of this machine. name: of this model's.
        source: the bundle's rows with what popularity is now.
    """
    of_hour = name
    while True:
        try:
            retriever.use(await indexed(folder / of_hour, source))
            log.info("an index answers", index=of_hour)
        except (IndexDamagedError, OSError) as error:
            log.error("no index, every list is searched exactly", reason=str(error))
            await asyncio.sleep(_TRY_AGAIN_S)
            continue
        while not retriever.is_outdated:  # noqa: ASYNC110  # nobody says so: it comes about
            await asyncio.sleep(_LOOK_S)
        of_hour = f"{name}-{int(time()) // 3600}"  # the same for all workers, one of which makes it
