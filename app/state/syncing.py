"""Puts what the embedded Redis has written on disk each second, and has it refuse writes while the disk does not take them.

Redis' own `appendfsync everysec` keeps in memory what it acknowledges while a sync is under way, for two seconds and more: where
the disk is slow, a server that is killed then loses it. Under `no`, with the syncs from here, a reply waits until the system has
what it acknowledges.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

_EVERY_S: Final = 1.0
_ASK_S: Final = 5.0

log = structlog.get_logger()


class Syncer:
    """A thread that syncs the append-only file in a folder, whatever server writes it."""

    def __init__(self, folder: Path, socket: Callable[[], Path]) -> None:
        """Arguments: where the file is, and where the server listens."""
        self._folder, self._socket = folder, socket
        self._stopping = threading.Event()
        self._synced: dict[Path, tuple[int, ...]] = {}  # which file it was at its last sync, how long, and when written
        self._refusing = False
        self._thread = threading.Thread(target=self._run, name="embedded-redis-sync", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the sync that is under way."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_EVERY_S):
            # The server may be away, or the log as full as the disk: the next second tries again.
            with contextlib.suppress(Exception):
                self._sync_all()

    def _sync_all(self) -> None:
        failed = None
        for file in self._files():
            try:
                self._sync(file)
            except FileNotFoundError:
                continue  # written anew meanwhile, under another name
            except OSError as error:
                failed = error
        if failed is not None:
            self._refusing = True
            try:
                self._accept(False)  # again each second: it may have been started anew
            finally:
                log.error(
                    "the embedded Redis' append-only file cannot be synced: it takes no writes until it can",
                    folder=str(self._folder),
                    error=str(failed),
                )
        elif self._refusing:
            self._accept(True)
            self._refusing = False

    def _files(self) -> Iterator[Path]:
        yield self._folder / "appendonly.aof"
        yield from (self._folder / "appendonlydir").glob("*.aof")  # from Redis 7 on

    def _sync(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY)
        try:
            found = os.fstat(file)
            now = found.st_ino, found.st_size, found.st_mtime_ns
            if self._synced.get(path) != now:
                os.fsync(file)
                self._synced[path] = now
        finally:
            os.close(file)

    def _accept(self, writes: bool) -> None:
        """Have the server take writes, or refuse them as if its memory were full."""
        no_retry = Retry(NoBackoff(), 0)
        with redis.Redis(unix_socket_path=str(self._socket()), retry=no_retry, socket_timeout=_ASK_S) as client:
            if writes:
                # After a sync that failed the system may take as written what is not: all of it is written once more.
                with contextlib.suppress(redis.ResponseError):  # it is doing so
                    client.bgrewriteaof()
            client.config_set("maxmemory", 0 if writes else 1)
