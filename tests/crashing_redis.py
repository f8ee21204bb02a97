"""A redis-server that loses at a crash what a power failure would lose, and starts again at the same address.

SIGKILL alone loses nothing: what was written is in the kernel's page cache, synced or not. So a library preloaded into the server
(synced.c) remembers how long the append-only file was at each sync, and before each restart the file is cut back to that.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import redis
from redis_process import client, spawn, until, words_of

_SOURCE: Final = Path(__file__).with_name("synced.c")
_START_S: Final = 20.0
_SYNC_S: Final = 10.0


class CannotCutError(unittest.SkipTest):
    """It cannot be known here what was synced. A test that meets this is skipped, and says why."""


class CrashingRedis:
    """A redis-server with an append-only file that is never rewritten, as a context manager.

    Args:
        folder: for the file, the log and the library; must exist.
        fsync: `always` loses nothing that was acknowledged, `everysec` up to about a second of it.
        binary: the server; None: the redis-server at hand.
        settings: more lines of the configuration.

    Raises:
        CannotCutError: there is no C compiler, or the server takes no preloaded library.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fsync: Literal["always", "everysec"] = "always",
        binary: Path | None = None,
        **settings: object,
    ) -> None:
        self._folder = folder
        self._binary = binary
        self._records = folder / "synced"
        self._records.mkdir()
        self._library = synced_library(folder)
        self._socket_folder = Path(tempfile.mkdtemp(prefix="longwave-"))  # a socket's path must be short
        self._socket = self._socket_folder / "redis.sock"
        self._configuration: dict[str, object] = {
            "port": 0,
            "unixsocket": self._socket,
            "dir": folder,
            "logfile": folder / "redis.log",
            "appendonly": "yes",
            "appendfsync": fsync,
            "auto-aof-rewrite-percentage": 0,  # a rewrite would sync everything
            "save": '""',
        } | {name.replace("_", "-"): value for name, value in settings.items()}
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address, the same after each restart."""
        return f"unix://{self._socket}"

    def client(self) -> redis.Redis:
        """A new client, which tries once; to be closed."""
        return client(unix_socket_path=str(self._socket))

    def start(self) -> None:
        """Start the server and return when it answers and has loaded its file. It ends with the thread that calls this."""
        self._socket.unlink(missing_ok=True)
        environment = {"LD_PRELOAD": str(self._library), "SYNCED_FOLDER": str(self._records)}
        self._server = server = spawn(self._configuration, environment, self._binary)
        with self.client() as asking:

            def answers() -> bool:
                if server.poll() is not None:
                    raise RuntimeError(f"the server ended at once: {words_of(self._folder / 'redis.log')}")
                return bool(asking.ping())

            until(answers, _START_S, "the server answers")
        if not (self._records / "loaded").exists():
            raise CannotCutError("this redis-server takes no preloaded library (is it linked statically?)")

    def crash(self) -> int:
        """SIGKILL, and cut the file back to its last sync. Returns the bytes that this lost."""
        self._kill()
        lost = 0
        for file in self._folder.rglob("*.aof"):  # from Redis 7 on there are several
            size, synced = file.stat().st_size, self.synced(file)
            if size > synced:
                os.truncate(file, synced)
                lost += size - synced
        return lost

    def synced(self, file: Path) -> int:
        """How much of an append-only file is certainly on disk, bytes."""
        record = self._records / str(file.stat().st_ino)
        written = record.read_bytes() if record.exists() else b""
        return struct.unpack("=Q", written)[0] if written else 0  # empty in the moment before its first sync is noted

    def unsynced(self) -> int:
        """Bytes that a crash would lose now."""
        return sum(file.stat().st_size - self.synced(file) for file in self._folder.rglob("*.aof"))

    def sync(self) -> None:
        """Return when all that was acknowledged is on disk: also what waits in memory for a sync that is under way."""
        with self.client() as asking:

            def done() -> bool:
                info = asking.info("persistence")
                return not info["aof_buffer_length"] and not info["aof_pending_bio_fsync"] and self.unsynced() == 0

            until(done, _SYNC_S, "what was written is synced")

    def stop_syncing(self) -> None:
        """Until the next start nothing more is synced: as if the second that `everysec` leaves had not passed yet."""
        with self.client() as asking:
            asking.config_set("appendfsync", "no")

    def pause(self) -> None:
        """SIGSTOP: it neither answers nor refuses."""
        assert self._server is not None
        os.kill(self._server.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._server is not None
        os.kill(self._server.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill the server and forget its address; the folder stays."""
        self._kill()
        shutil.rmtree(self._socket_folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None


def synced_library(folder: Path) -> Path:
    """synced.c, built in a folder, to be preloaded into a redis-server. Raises CannotCutError."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise CannotCutError("no C compiler (cc, gcc, clang): the library that remembers what Redis has synced cannot be built")
    library = folder / "synced.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotCutError(f"{_SOURCE.name} cannot be built: {done.stderr.strip()[-500:]}")
    return library
