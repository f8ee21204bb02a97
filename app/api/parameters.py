"""Parameters that several routes take."""

from __future__ import annotations

import random
import secrets
from collections.abc import Collection, Iterable
from time import time_ns
from typing import Annotated, Final, Literal

from fastapi import Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, PlainValidator
from pydantic_core import PydanticCustomError

from app.ingest.schema import Id, check_user_id, parse_time

_LAST_MS = 253_402_300_799_999  # the end of the year 9999
_MOST_UNKNOWN: Final = 20  # that are named: an address has room for many thousands


def now_ms() -> int:
    """Unix milliseconds."""
    return time_ns() // 1_000_000


# Seeds must differ, not be secret.
_random = random.Random(secrets.token_bytes(32))


def refuse_unknown(given: Iterable[str], known: Collection[str]) -> None:
    """Raise RequestValidationError for query parameters that a route does not have: a misspelt filter must not be no filter."""
    unknown = [name for name in dict.fromkeys(given) if name not in known][:_MOST_UNKNOWN]
    if unknown:
        message = f"is not a parameter: this route has {', '.join(known) or 'none'}"
        raise RequestValidationError([{"type": "unknown", "loc": ("query", name), "msg": message} for name in unknown])


def only_known(request: Request) -> None:
    """A dependency of every route under /v1 that FastAPI answers."""
    refuse_unknown(request.query_params, [field.alias for field in request.scope["route"].dependant.query_params])


def new_seed() -> int:
    """A seed for exploration where the request gives none."""
    return _random.getrandbits(53)


def _moment(value: object) -> int:
    text = value.strip() if isinstance(value, str) else value
    parsed = parse_time(int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 20 else text)
    if not 0 <= parsed <= _LAST_MS:
        raise PydanticCustomError("time", "must lie between the years 1970 and 9999")
    return parsed


UserId = Annotated[Id, Path(description="Your id of the user.", examples=["17850"])]
KnownUserId = Annotated[UserId, AfterValidator(check_user_id)]
Moment = Annotated[int, PlainValidator(_moment, json_schema_input_type=str | int)]
AsOf = Annotated[
    Moment | None,
    Query(
        description="The clock of this request, for replays and tests: RFC 3339 or unix milliseconds. Default: now.",
        examples=["2011-12-09T12:50:00Z"],
    ),
]
K = Annotated[int, Query(ge=1, le=1000, description="How many items; fewer come back only if fewer are eligible.")]
Exclude = Annotated[
    list[Id],
    Query(max_length=1_000, description="Items that must not be in the list; may be given again. Unknown ids exclude nothing."),
]
Platform = Annotated[Id | None, Query(description="Where the list is shown, as in events.", examples=["app"])]
Country = Annotated[
    Id | None, Query(max_length=64, description="Where the user is, as `country` of the context in events and in POST requests.")
]
ScenarioParameter = Annotated[Id | None, Query(description="Rules that are stored under a name, see `/v1/scenarios`.")]
ExperimentParameter = Annotated[
    Id | None, Query(description="The arm that the user is in decides, see `/v1/experiments`; not together with `scenario`.")
]
FilterParameter = Annotated[
    str | None, Query(min_length=1, max_length=4_096, description="Only items of which this is true, see docs/filters.md.")
]
ExplainParameter = Annotated[
    Literal["false", "true", "exact"],
    Query(
        description="Say of each item what brought it: `true` by what the model looked at, `exact` by folding the user's last 20 "
        "events again without each of them."
    ),
]
ACCOUNTS: Final[dict[str | bool, Literal["quick", "exact"] | None]] = {
    False: None,
    "false": None,
    True: "quick",
    "true": "quick",
    "exact": "exact",
}
"""How `explain` is meant, as a parameter and as a field."""
