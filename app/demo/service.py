"""The service under demonstration: `longwave serve` as a process, and a client that refuses every answer but a good one."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import httpx
import msgspec

from app.demo.children import Child, Children, console_script
from app.demo.errors import DemoError
from app.demo.rehearsal import ReplayEvent
from app.recommend.answer import Recommendations
from app.settings import variable

_READY_S: Final = 120.0
_POLL_S: Final = 0.05
_MOST_EVENTS: Final = 1_000  # in one request, as the service's default has it
_MOST_WORDS: Final = 500


class _Receipts(msgspec.Struct):
    stored: int


_answer = msgspec.json.Decoder(Recommendations).decode
_receipts = msgspec.json.Decoder(_Receipts).decode
_encode = msgspec.json.Encoder().encode


class ServiceClient:
    """The three calls of the demo over one keep-alive connection. Each raises DemoError unless the service says yes."""

    def __init__(self, url: str, timeout_s: float = 60.0, transport: httpx.BaseTransport | None = None) -> None:
        # Proxies of the environment are for other machines than this one.
        self._http = httpx.Client(base_url=url, timeout=timeout_s, transport=transport, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def recommend(self, user_id: str, k: int, as_of_ms: int, platform: str | None) -> Recommendations:
        """GET the k best items for the user as of a moment."""
        parameters: dict[str, str | int] = {"k": k, "as_of": as_of_ms}
        if platform is not None:
            parameters["platform"] = platform
        return _answer(self._call("GET", f"/v1/users/{quote(user_id, safe='')}/recommendations", params=parameters))

    def send(self, events: Sequence[ReplayEvent]) -> None:
        """POST events in their order, in as many requests as the service's bound needs; all must be new and good."""
        for start in range(0, len(events), _MOST_EVENTS):
            some = events[start : start + _MOST_EVENTS]
            stored = _receipts(self._call("POST", "/v1/events", content=_encode(some))).stored
            if stored != len(some):
                raise DemoError(
                    f"of {len(some)} events of customer {some[0].user_id} the service stored {stored}: it refused some, or knew "
                    "them from an earlier replay"
                )

    def ready(self) -> bool:
        """Whether /readyz says yes; False also while nothing listens."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _call(self, method: str, path: str, *, params: dict[str, str | int] | None = None, content: bytes | None = None) -> bytes:
        headers = None if content is None else {"Content-Type": "application/json"}
        try:
            response = self._http.request(method, path, params=params, content=content, headers=headers)
        except httpx.TransportError as error:
            raise DemoError(f"{method} {path}: no answer: {error or type(error).__name__}") from None
        if response.status_code != 200:
            raise DemoError(f"{method} {path}: {response.status_code}: {_problem(response)}")
        return response.content


def start_service(children: Children, bundle: Path, redis_url: str, host: str, port: int, log: Path) -> Child:
    """`longwave serve` with one worker on its way up; its log goes to a file."""
    options = ["--bundle", str(bundle), "--host", host, "--port", str(port), "--workers", "1"]
    # The offline evaluation that the replay is held against knows no contexts.
    environment = {variable("redis_url"): redis_url, variable("context_fallback"): "false"}
    command = [str(console_script("longwave")), "serve", *options]
    return children.start("the service", command, log=log, environment=environment, stop_signal=signal.SIGTERM)


def await_ready(service: Child, client: ServiceClient, timeout_s: float = _READY_S) -> None:
    """Return when the service is ready.

    Raises:
        DemoError: it ended, or is not ready in time; with the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    while not client.ready():
        if not service.running:
            raise service.failure(f"the service ended with exit code {service.process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise service.failure(f"the service was not ready within {timeout_s:g} s")
        time.sleep(_POLL_S)


def choose_port(host: str, wanted: int | None, preferred: int) -> int:
    """The port to serve on: the one that is wanted, else the preferred one if it is free, else any free one.

    Raises:
        DemoError: the wanted port is taken, or the host is not an address of this machine.
    """
    for port in (wanted,) if wanted is not None else (preferred, 0):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does: a port in TIME_WAIT is free
                probe.bind(address)
                found: int = probe.getsockname()[1]
                return found
        except OSError as error:
            reason = error.strerror
    raise DemoError(f"cannot listen on {host}:{preferred if wanted is None else wanted}: {reason}")


def url_of(host: str, port: int) -> str:
    """Where a client on this machine finds a service that listens on `host`."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def _problem(response: httpx.Response) -> str:
    """The words of a problem document, or the first of whatever came instead."""
    try:
        document = response.json()
        lines = [f"{document['title']}: {document['detail']}"]
        lines += [f"{error['field']}: {error['message']}" for error in document.get("errors", [])[:5]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text[:_MOST_WORDS]
    return "\n  ".join(lines)
