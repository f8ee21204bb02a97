"""HTTP with next to no client: raw keep-alive sockets, so that what is measured is the server."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter
from types import TracebackType
from typing import Final, Self

from loadtests.errors import BenchError

_HOST: Final = "127.0.0.1"
_TIMEOUT_S: Final = 10.0
_RECEIVE_BYTES: Final = 65_536
_LENGTH: Final = b"\r\ncontent-length: "
_TIMING: Final = b"\r\nserver-timing: "


@dataclass(frozen=True, slots=True)
class Answer:
    """One response.

    Attributes:
        seconds: from the first byte sent to the last byte received.
        timing: value of the Server-Timing header, or "".
    """

    status: int
    seconds: float
    timing: str
    body: bytes


def get(path: str) -> bytes:
    """The bytes of a GET request; the path must be percent-encoded already."""
    return f"GET {path} HTTP/1.1\r\nHost: {_HOST}\r\n\r\n".encode("ascii")


def post(path: str, body: bytes) -> bytes:
    """The bytes of a POST request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: {_HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


class Connection:
    """One keep-alive connection to a port of this machine; one request at a time."""

    def __init__(self, port: int) -> None:
        self._socket = _connect(port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer. Raises BenchError if the server closes the connection or stays silent."""
        received = b""
        began = perf_counter()
        try:
            self._socket.sendall(request)
            while (length := _answer_length(received)) is None or len(received) < length:
                more = self._socket.recv(_RECEIVE_BYTES)
                if not more:
                    raise BenchError("the server closed the connection")
                received += more
        except OSError as error:
            raise BenchError(f"no answer from the server: {error}") from None
        seconds = perf_counter() - began
        head, _, body = received.partition(b"\r\n\r\n")
        return Answer(int(head[9:12]), seconds, _header(head, _TIMING), body)


def saturate(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> tuple[int, float]:
    """Ask on several connections at once, each again as soon as it has its answer: a closed loop.

    Returns:
        Answers received, and the seconds that it took.

    Raises:
        BenchError: an answer was not a 200, or the server closed a connection.
    """
    following = cycle(requests)
    answers = 0
    with selectors.DefaultSelector() as selector:
        sockets = [_connect(port) for _ in range(connections)]
        try:
            received = dict.fromkeys(sockets, b"")
            began = perf_counter()
            for one in sockets:
                selector.register(one, selectors.EVENT_READ)
                one.sendall(next(following))
            while (now := perf_counter()) - began < seconds:
                for key, _ in selector.select(_TIMEOUT_S):
                    one = key.fileobj
                    assert isinstance(one, socket.socket)
                    more = one.recv(_RECEIVE_BYTES)
                    whole = received[one] + more
                    if not more or (len(whole) > 12 and whole[9:12] != b"200"):
                        raise BenchError(f"not a good answer under load: {whole[:200]!r}")
                    length = _answer_length(whole)
                    if length is not None and len(whole) >= length:
                        answers += 1
                        whole = b""
                        one.sendall(next(following))
                    received[one] = whole
        finally:
            for one in sockets:
                one.close()
    return answers, now - began


def _connect(port: int) -> socket.socket:
    try:
        one = socket.create_connection((_HOST, port), _TIMEOUT_S)
    except OSError as error:
        raise BenchError(f"cannot connect to port {port}: {error}") from None
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def _answer_length(received: bytes) -> int | None:
    """Bytes of the whole answer, head included; None until its head is there."""
    end = received.find(b"\r\n\r\n")
    return None if end < 0 else end + 4 + int(_header(received[:end], _LENGTH))


def _header(head: bytes, name: bytes) -> str:
    start = head.lower().find(name)
    if start < 0:
        return ""
    start += len(name)
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else None].decode("latin-1")
