"""Connections within bounds: what one client sends, and all of them together, costs a bounded amount of memory and time."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

import httptools
from fastapi import Response
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from app.api import problems
from app.errors import OverloadedError
from app.settings import Settings
from app.telemetry import Metrics

# Path, query and headers. Ids have at most 256 characters, so this is what proxies and browsers may add, many times over.
MAX_HEAD_BYTES: Final = 64 * 1024
# A body up to here is not counted: uvicorn reads as much before anybody asks for it, and so slow long bodies never cost short
# ones their place.
UNCOUNTED_BODY_BYTES: Final = 64 * 1024
_SWEEP_S: Final = 0.5
_STOP_S: Final = 5.0  # half of what uvicorn waits at a stop before it cancels what is left


class Bounds:
    """What the connections of one worker share: who is open, how much of bodies is held, and whether the worker stops."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.open: set[BoundedProtocol] = set()
        self.max_connections = settings.max_connections
        self.stopping = asyncio.Event()
        self.metrics = metrics
        self._request_timeout_s = settings.request_timeout_s
        # A single body must always find room.
        self._max_held = max(settings.max_bodies_bytes, settings.max_body_bytes)
        self._held = 0

    def hold(self, size: int) -> None:
        """Count so many more bytes of bodies as held. Raises OverloadedError, and counts nothing, if they are too many."""
        if self._held + size > self._max_held:
            raise OverloadedError(f"bodies of {self._held} bytes are being read; at most {self._max_held} at one time")
        self._held += size

    def release(self, size: int) -> None:
        self._held -= size

    async def sweep(self) -> None:
        """Until cancelled, close the connections whose request does not become whole. One clock for all: a timer for each request
        would cost every request."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            limit = min(self._request_timeout_s, _STOP_S) if self.stopping.is_set() else self._request_timeout_s
            begun_before = time.monotonic() - limit
            for connection in [*self.open]:
                connection.close_if_waiting_since(begun_before)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol; httptools itself keeps headers of any length, and waits for the rest of a request for ever."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._bounds: Bounds = app_state["bounds"]
        self._since: float | None = time.monotonic()  # when the wait for a whole request began; None if there is none to wait for
        self._reading = False  # between a request's first byte and its last
        self._asked = False  # whether the request being read has a cycle: the last one is else that of the request before
        self._in_head = False  # headers, or the trailers of a chunked body
        self._head_bytes = 0  # at least as many as the head has so far, unless it began in the middle of what came
        self._came = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._bounds.open.add(self)
        if len(self._bounds.open) > self._bounds.max_connections:
            detail = f"{self._bounds.max_connections} connections are open already, as many as one worker takes"
            self._refuse(problems.of_error(OverloadedError(detail)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._bounds.open.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_head_too_large())
                return
        elif not self._reading:
            self._came = len(data)
            if self._since is None:
                self._since = time.monotonic()
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while rest:
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    if not self._upgrading():
                        return  # CONNECT, which is answered
                    rest = rest[upgrade.args[0] :]
                    self._stay()
        except httptools.HttpParserError:
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._reading = self._in_head = True
        self._asked = False
        # One that follows another in the same piece began somewhere in it; what it has there is bounded by the size of a read.
        self._head_bytes, self._came = self._came, 0
        if self._since is None:
            self._since = time.monotonic()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        # The first number is cheap, and may have some of the body in it.
        if self._head_bytes > MAX_HEAD_BYTES and self._size_of_head() > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
            raise ValueError  # ends the parsing of what came; send_400_response finds the answer given
        if self._upgrading():
            return
        super().on_headers_complete()
        self._asked = True

    def on_chunk_header(self) -> None:
        # After the last chunk come trailers, which are kept like headers; after any other, its bytes.
        self._in_head, self._head_bytes = True, 0

    def on_body(self, body: bytes) -> None:
        self._in_head = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._reading = self._in_head = False
        if self._upgrading():
            return  # its body is still to come
        self._since = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(problems.of_status(HTTPStatus.BAD_REQUEST, "This is not a valid HTTP request."))

    def shutdown(self) -> None:
        super().shutdown()
        self._bounds.stopping.set()

    def close_if_waiting_since(self, moment: float) -> None:
        """Close the connection if it has waited for the rest of a request since before `moment`."""
        if self._since is None or self._since > moment:
            return
        if self.flow.read_paused:  # the wait is ours: an earlier request is being answered
            self._since = time.monotonic()
        elif self._reading:
            self._refuse(problems.of_status(HTTPStatus.REQUEST_TIMEOUT, "The rest of the request did not come in time."))
        else:
            self.transport.close()

    def _upgrading(self) -> bool:
        """Whether the head that was just read asks for another protocol."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _stay(self) -> None:
        """Read that head again without what it asks for, as any server may (RFC 9110, 7.8): httptools takes what follows it for
        the other protocol, and uvicorn answers without the body. Some clients offer HTTP/2 with every request."""
        lines = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        version = self.parser.get_http_version().encode()
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(head)

    def _refuse(self, answer: Response) -> None:
        """Answer, unless another answer is under way or was given, and close."""
        if self.transport.is_closing():
            return
        self._bounds.metrics.request("any", "none", answer.status_code, 0.0)
        cycle = self.cycle
        if cycle is None or (
            not cycle.response_started and not self.pipeline if self._reading and self._asked else cycle.response_complete
        ):
            lines = [b"%b: %b\r\n" % line for line in (*self.server_state.default_headers, *answer.raw_headers)]
            self.transport.write(
                b"".join([STATUS_LINE[answer.status_code], *lines, b"connection: close\r\n\r\n", bytes(answer.body)])
            )
        self.transport.close()

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)


def _head_too_large() -> Response:
    return problems.of_status(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The address and headers have more than {MAX_HEAD_BYTES} bytes."
    )


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
