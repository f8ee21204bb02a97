"""HTTP with next to no client: bytes of requests, bytes of answers, and one blocking connection."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Final, Self

from loadtests.errors import BenchError

RECEIVE_BYTES: Final = 262_144
_SEND_BUFFER_BYTES: Final = 1 << 20  # a batch of events goes out in one piece
_HOST: Final = "127.0.0.1"
_TIMEOUT_S: Final = 60.0
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
        self._socket = connect(port)

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
            while (length := answer_length(received)) is None or len(received) < length:
                more = self._socket.recv(RECEIVE_BYTES)
                if not more:
                    raise BenchError("the server closed the connection")
                received += more
        except OSError as error:
            raise BenchError(f"no answer from the server: {error}") from None
        seconds = perf_counter() - began
        return Answer(status_of(received), seconds, timing_of(received), body_of(received))


def connect(port: int) -> socket.socket:
    """A connected socket without Nagle's delay. Raises BenchError with the port if nobody listens."""
    try:
        one = socket.create_connection((_HOST, port), _TIMEOUT_S)
    except OSError as error:
        raise BenchError(f"cannot connect to port {port}: {error}") from None
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    return one


def answer_length(received: bytes) -> int | None:
    """Bytes of the whole answer, head included; None until its head is there."""
    end = received.find(b"\r\n\r\n")
    return None if end < 0 else end + 4 + int(_header(received[: end + 2], _LENGTH) or 0)


def status_of(answer: bytes) -> int:
    return int(answer[9:12])


def body_of(answer: bytes) -> bytes:
    return answer[answer.find(b"\r\n\r\n") + 4 :]


def timing_of(answer: bytes) -> str:
    return _header(answer[: answer.find(b"\r\n\r\n") + 2], _TIMING)


def _header(head: bytes, name: bytes) -> str:
    start = head.find(name)
    if start < 0:  # as uvicorn writes them they are lower-case; lowering every head costs more than looking twice
        start = head.lower().find(name)
    if start < 0:
        return ""
    start += len(name)
    return head[start : head.find(b"\r\n", start)].decode("latin-1")
