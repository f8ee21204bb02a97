"""What is replayed: the folder that `longwave-train rehearse` writes, read strictly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from app.demo.errors import DemoError
from app.state.events import StoredEvent


class Meta(msgspec.Struct, frozen=True):
    """meta.json. `k` is the length of the lists, `cut_ms` where the replay begins; the counts are those of the other files."""

    dataset: str
    k: int
    cut_ms: int
    users: int
    queries: int
    events: int


class WireEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """An event of POST /v1/events but for its user; `timestamp` in unix ms."""

    type: str
    timestamp: int
    item_id: str | None = None
    value: float | None = None
    quantity: float | None = None
    price: float | None = None
    platform: str | None = None
    session_id: str | None = None
    basket_id: str | None = None
    text: str | None = None

    @property
    def basket(self) -> str | int:
        """What the events of one basket share; without an id, the moment."""
        return self.timestamp if self.basket_id is None else self.basket_id

    def stored(self) -> StoredEvent:
        """As the service would have stored it."""
        return StoredEvent(
            type=self.type,
            time_ms=self.timestamp,
            item_id=self.item_id,
            value=self.value,
            quantity=self.quantity,
            price=self.price,
            platform=self.platform,
            session_id=self.session_id,
            basket_id=self.basket_id,
            text=self.text,
        )


class ReplayEvent(WireEvent, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """An event as it is posted."""

    user_id: str
    event_id: str


class History(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A customer as they were before the replay: `events` in arrival order."""

    user_id: str
    attributes: dict[str, str]
    events: list[WireEvent]


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GET: asked as of a moment (unix ms), just before the customer took `targets`."""

    user_id: str
    as_of: int
    targets: list[str]
    platform: str | None = None


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the two: a question, or events of one customer."""

    query: Question | None = None
    events: list[ReplayEvent] | None = None


T = TypeVar("T")


def read_meta(folder: Path) -> Meta:
    """Raises DemoError if the file is missing or is not what it should be, as all readers here do."""
    return _read(folder / "meta.json", Meta)


def read_titles(folder: Path) -> dict[str, str | None]:
    """Item id -> title."""
    return _read(folder / "titles.json", dict[str, str | None])


def read_histories(folder: Path) -> Iterator[History]:
    """Customer by customer; they do not fit in memory together where there are many."""
    return _lines(folder / "histories.jsonl", History)


def read_steps(folder: Path, limit: int = 0) -> list[Step]:
    """The replay in its order; with a `limit`, up to the events right after that many questions."""
    path = folder / "steps.jsonl"
    steps: list[Step] = []
    questions = 0
    for number, step in enumerate(_lines(path, Step), 1):
        if (step.query is None) == (step.events is None):
            raise DemoError(f"{path}, line {number}: expected either `query` or `events`")
        if step.events is not None and len({event.user_id for event in step.events}) != 1:
            raise DemoError(f"{path}, line {number}: expected events of one customer")
        if step.query is not None:
            if limit and questions == limit:
                break
            questions += 1
        elif limit and questions == limit and steps[-1].query is None:
            break
        steps.append(step)
    if not questions:
        raise DemoError(f"{path}: there is no question in it")
    return steps


def _lines(path: Path, kind: type[T]) -> Iterator[T]:
    decode = msgspec.json.Decoder(kind).decode
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise DemoError(f"{path}, line {number}: {error}") from None
    except OSError as error:
        raise DemoError(f"{path}: cannot be read: {error.strerror}") from None


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise DemoError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DemoError(f"{path}: {error}") from None
