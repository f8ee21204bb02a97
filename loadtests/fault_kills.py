"""What happens to the service and its Redis: killed, started again, stopped dead for a while."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from redis.exceptions import RedisError

from loadtests.connection import Connection, get
from loadtests.errors import BenchError
from loadtests.machine import ROOT

if TYPE_CHECKING:
    from crashing_redis import CrashingRedis

Kind = Literal["redis", "worker", "service", "parent", "stall"]
"""What is killed: Redis, one worker, the whole service, or its parent alone; `stall`: Redis stands still for a moment."""

KINDS: Final[tuple[Kind, ...]] = ("redis", "worker", "service", "parent", "stall")
WEIGHTS: Final = (6, 4, 1, 1, 2)
"""How often a long run does each."""

_PORTS: Final = (30_000, 32_700)
_READY_S: Final = 60.0
_STOP_S: Final = 20.0
_POLL_S: Final = 0.02
_LAST_LINES: Final = 20
_DOWN_S: Final = (0.0, 0.3)
_STALL_S: Final = (0.3, 1.5)  # around the service's own timeout: some replies come too late
_FLOW_S: Final = 15.0
_FLOW: Final = 50  # acknowledged events between two kills, so that each meets a service at work
_STACKS_S: Final = 1.0
_STACKS_BYTES: Final = 20_000
_SYNC_BYTES: Final = 4096
_OWN_SETTINGS: Final = {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
CALM_S: Final = (0.1, 1.2)


class Service:
    """`longwave serve` that is killed and started again on the same port; as a context manager, begun but not waited for."""

    def __init__(self, bundle: Path, redis_url: str, log: Path, workers: int, settings: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self._log = log
        options = ["serve", "--bundle", str(bundle), "--port", str(self.port), "--workers", str(workers)]
        self._command = [sys.executable, "-c", "from app.cli import main; main()", *options]
        # A developer's own settings must not be what is tested.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LONGWAVE_")}
        self._environment = inherited | _OWN_SETTINGS | {"LONGWAVE_REDIS_URL": redis_url} | (settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Service:
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.stop()
        elif self._process is not None and self._process.poll() is None:
            self.kill()  # that it does not end, either, must not be all that is heard of

    def begin(self) -> None:
        """Start it, and do not wait."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def await_ready(self) -> None:
        """Return when it answers questions. Raises BenchError, with its last words, if it does not get there."""
        assert self._process is not None
        deadline = time.monotonic() + _READY_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the service did not get ready; its last lines:\n{self.last_words()}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it gracefully. Raises BenchError if it had ended by itself, or does not end."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is not None:
            raise BenchError(f"the service had ended by itself with {process.returncode}; its last lines:\n{self.last_words()}")
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process = process
            self.kill()
            raise BenchError("the service did not end when it was told to") from None

    def kill(self, *, parent_alone: bool = False) -> None:
        """SIGKILL the parent and its workers; or the parent alone, whose workers must then end by themselves, or BenchError."""
        assert self._process is not None
        workers = self.workers()
        self._process.kill()
        self._process.wait()
        if not parent_alone:
            for pid in workers:
                _kill(pid)
        deadline = time.monotonic() + _STOP_S
        while left := [pid for pid in workers if _command(pid)]:  # they hold the port until they are gone
            if time.monotonic() > deadline:
                for pid in left:
                    _kill(pid)
                raise BenchError("workers have outlived the process that started them")
            time.sleep(_POLL_S)

    def workers(self) -> list[int]:
        """The process ids of the workers; none where the only one is the service itself."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text(encoding="ascii").split()
        return [int(pid) for pid in children if b"spawn_main" in _command(int(pid))]

    def stacks(self) -> str:
        """Where its workers are: ends them with SIGABRT, on which Python writes the stack of each thread to the log."""
        begun = self._log.stat().st_size
        for pid in self.workers():
            _kill(pid, signal.SIGABRT)
        time.sleep(_STACKS_S)
        with self._log.open("rb") as log:
            log.seek(begun)
            return log.read(_STACKS_BYTES).decode(errors="replace")

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])

    def _ready(self) -> bool:
        try:
            with Connection(self.port) as connection:
                return connection.ask(get("/readyz")).status == 200
        except BenchError:
            return False


class Kills:
    """Does one thing after another to a service under load, each when events have flowed again since the last.

    Args:
        acknowledged: how many events were acknowledged so far.
        calm_s: seconds between two, at least and at most, from when events flow again.
    """

    def __init__(
        self,
        service: Service,
        store: CrashingRedis,
        acknowledged: Callable[[], int],
        seed: int,
        calm_s: tuple[float, float] = CALM_S,
    ) -> None:
        self._service = service
        self._store = store
        self._acknowledged = acknowledged
        self._calm_s = calm_s
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.bytes_cut = 0

    def run(self, kinds: Iterable[Kind]) -> None:
        """Raises BenchError if the service does not recover from one."""
        for kind in kinds:
            self._await_flow(kind)
            time.sleep(self._random.uniform(*self._calm_s))
            self._do(kind)
            self.done[kind] += 1
        self._await_flow("the end")

    def _do(self, kind: Kind) -> None:
        match kind:
            case "redis":
                self.bytes_cut += self._store.crash()
                time.sleep(self._random.uniform(*_DOWN_S))
                self._store.start()
            case "worker":
                # Their parent looks after them twice a second and starts a new one for each that died, if it lived for 5 s.
                if workers := self._service.workers():
                    _kill(self._random.choice(workers))
            case "service" | "parent":
                self._service.kill(parent_alone=kind == "parent")
                self._service.begin()
                self._service.await_ready()
            case "stall":
                self._store.pause()
                time.sleep(self._random.uniform(*_STALL_S))
                self._store.resume()

    def _await_flow(self, before: str) -> None:
        enough, deadline = self._acknowledged() + _FLOW, time.monotonic() + _FLOW_S
        while self._acknowledged() < enough:
            if time.monotonic() > deadline:
                words = self._service.last_words()
                raise BenchError(f"no events flow before: {before}; {self._why()}\nthe service's last lines:\n{words}")
            time.sleep(_POLL_S)

    def _why(self) -> str:
        """What can be seen of the service, its Redis, the disk and the workers, who do not survive it."""
        seen = {
            "a probe": lambda: str(self._probe()),
            "Redis": lambda: f"answers a PING: {self._ping()}",
            "the disk": self._sync,
        }
        found = []
        for what, look in seen.items():
            began_s = time.monotonic()
            try:
                said = look()
            except (BenchError, OSError, RedisError) as error:
                said = repr(error)
            found.append(f"{what}, after {time.monotonic() - began_s:.2f} s: {said}")
        return "\n".join([*found, f"the workers:\n{self._service.stacks()}"])

    def _probe(self) -> tuple[int, bytes]:
        with Connection(self._service.port) as connection:
            answer = connection.ask(get("/readyz"))
            return answer.status, answer.body[:500]

    def _ping(self) -> bool:
        with self._store.client() as asking:
            return bool(asking.ping())

    def _sync(self) -> str:
        """Redis answers no write for longer than the disk takes for this."""
        with tempfile.TemporaryFile() as file:
            file.write(bytes(_SYNC_BYTES))
            file.flush()
            os.fsync(file.fileno())
        return f"{_SYNC_BYTES} bytes synced"


def free_port() -> int:
    """A port that nobody has, and that Linux hands out to nobody: while the service is down, no client of it may get its port."""
    while True:
        port = random.randrange(*_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def _kill(pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, how)


def _command(pid: int) -> bytes:
    """The command line of a process; empty when it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
