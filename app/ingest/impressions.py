"""What was shown: validate -> store once -> count. A bad impression is reported by its index and harms no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.catalogue.catalogue import item_key
from app.errors import TooLargeError
from app.ingest.schema import Id, Time, UserId
from app.ingest.validate import FieldError, field_errors
from app.state.impressions import Impression, ImpressionStore, Seen
from app.state.lists import ListOrigin, read_list_id
from app.state.shown import MOST_IDS

MOST: Final = 1_000

_ERASED_MESSAGE: Final = "the user was erased after this was shown"
_STATUS: Final[dict[str, Literal["stored", "duplicate"]]] = {"1": "stored", "0": "duplicate"}


class ShownList(BaseModel):
    """What somebody has seen of a list."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    recommendation_id: Id = Field(description="of the list; the same one again for the same user is a retry and is stored once")
    user_id: UserId | None = Field(default=None, description="whom it was shown to; left out for nobody in particular")
    item_ids: Annotated[list[Id], Field(min_length=1, max_length=1_000)] = Field(description="what was seen of it")
    positions: Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1, max_length=1_000)] | None = Field(
        default=None, description="of each of the items, 1 being the top; default: 1, 2, 3 and so on"
    )
    propensities: Annotated[list[Annotated[float, Field(gt=0, le=1)] | None], Field(min_length=1, max_length=1_000)] | None = (
        Field(
            default=None,
            description="how likely each of the items was to be shown, as `explored` of the list said; null where it did not",
        )
    )
    timestamp: Time | None = Field(default=None, description="RFC 3339 or unix milliseconds; default: the time of arrival")


@dataclass(frozen=True, slots=True)
class ImpressionResult:
    """What became of one impression of a request; `errors` says why where it was rejected."""

    status: Literal["stored", "duplicate", "rejected"]
    errors: tuple[FieldError, ...] = ()


OnShown = Callable[[ListOrigin, int], None]
"""Called for each impression that was stored, with the number of its items."""


class Impressions:
    """Takes impressions of lists of any model.

    Args:
        max_future_s: how far ahead of arrival an impression's time may be.
    """

    def __init__(self, store: ImpressionStore, on_shown: OnShown, max_future_s: float) -> None:
        self._store = store
        self._on_shown = on_shown
        self._max_future_s = max_future_s

    async def accept(self, raw: Sequence[object], arrival_ms: int) -> list[ImpressionResult]:
        """Store the good ones (of parsed JSON values); what became of each, in their order.

        Raises:
            TooLargeError: more than 1,000, or than 64 of one user; nothing is stored. Or more than 64 of one user under several
                names: the others may be stored.
            StorageError: Redis did not answer, or one user is damaged. Some may be stored; the same request can be sent again.
        """
        if len(raw) > MOST:
            raise TooLargeError(f"{len(raw)} impressions in one request; at most {MOST} are taken")
        results: list[ImpressionResult | None] = [None] * len(raw)
        good: list[tuple[int, Seen, ListOrigin]] = []
        for index, one in enumerate(raw):
            found = self._check(index, one, arrival_ms)
            if isinstance(found, ImpressionResult):
                results[index] = found
            else:
                good.append((index, *found))
        of_user = Counter(seen.user_id for _, seen, _ in good if seen.user_id)
        if of_user and (most := of_user.most_common(1)[0])[1] > MOST_IDS:
            # Sent again, the first of them would not be known any more.
            raise TooLargeError(f"{most[1]} impressions of user {most[0]!r} in one request; at most {MOST_IDS} are taken")
        stored = await self._store.add([seen for _, seen, _ in good])
        failed = None
        for (index, seen, origin), flag in zip(good, stored, strict=True):
            if isinstance(flag, Exception):
                failed = failed or flag
            elif flag == "g":
                results[index] = ImpressionResult("rejected", (FieldError(index, "timestamp", _ERASED_MESSAGE),))
            else:
                results[index] = ImpressionResult(_STATUS[flag])
                if flag == "1":
                    self._on_shown(origin, len(seen.impression.item_ids))
        if failed is not None:
            raise failed
        return [result for result in results if result is not None]

    def _check(self, index: int, raw: object, arrival_ms: int) -> tuple[Seen, ListOrigin] | ImpressionResult:
        if not isinstance(raw, dict):
            return ImpressionResult("rejected", (FieldError(index, "", "an impression must be a JSON object"),))
        try:
            shown = ShownList.model_validate(raw)
        except ValidationError as error:
            return ImpressionResult("rejected", tuple(field_errors(index, error, ShownList)))
        time_ms = arrival_ms if shown.timestamp is None else shown.timestamp
        origin = read_list_id(shown.recommendation_id)
        wrong: list[tuple[str, str]] = []
        if origin is None:
            wrong.append(("recommendation_id", "is not that of a list of this service"))
        if shown.positions is not None and len(shown.positions) != len(shown.item_ids):
            wrong.append(("positions", f"must be as many as item_ids, {len(shown.item_ids)}"))
        if shown.propensities is not None and len(shown.propensities) != len(shown.item_ids):
            wrong.append(("propensities", f"must be as many as item_ids, {len(shown.item_ids)}"))
        if time_ms < 0:
            wrong.append(("timestamp", "is before 1970"))
        if time_ms > arrival_ms + int(self._max_future_s * 1000):
            wrong.append(("timestamp", f"is more than {self._max_future_s:g} s in the future; milliseconds are expected"))
        if wrong or origin is None:
            return ImpressionResult("rejected", tuple(FieldError(index, field, message) for field, message in wrong))
        impression = Impression(
            shown.recommendation_id,
            time_ms,
            tuple(shown.item_ids),
            _positions(shown.positions),
            _propensities(shown.propensities),
        )
        return Seen(shown.user_id or "", impression, [item_key(item_id) for item_id in shown.item_ids]), origin


def _positions(given: list[int] | None) -> tuple[int, ...]:
    return () if given is None or given == list(range(1, len(given) + 1)) else tuple(given)


def _propensities(given: list[float | None] | None) -> tuple[float | None, ...]:
    return () if given is None else tuple(given)
