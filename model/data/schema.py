"""What the canonical data set's tables and manifest contain."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

EVENT_COLUMNS: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "type": pl.String(),
    "timestamp": pl.Int64(),
    "value": pl.Float32(),
    "quantity": pl.Float32(),
    "price": pl.Float32(),
    "platform": pl.String(),
    "session_id": pl.String(),
    "basket_id": pl.String(),
    "text": pl.String(),
}
ITEM_COLUMNS: dict[str, pl.DataType] = {"item_id": pl.String(), "title": pl.String(), "categories": pl.List(pl.String())}
FEATURE_PREFIX = "feature_"
VECTOR_PREFIX = "vector_"
MOST_VECTORS = 8
MOST_VECTOR_NAME = 128  # characters, as a bundle's manifest takes them
MOST_VECTOR_NUMBERS = 4_096

MISSING_POLICY = (
    "A row without a user, or with neither item nor text, or without a possible time, is dropped. Every other missing value "
    "stays missing (null): it is never filled in, and the model has an embedding of its own for it."
)

# Data without times gets them from the order of the source, one second apart from here (2000-01-01T00:00:00Z).
SYNTHETIC_ORIGIN_MS = 946_684_800_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EventType(_Strict):
    """`polarity` positive may be a target; negative and neutral are only inputs. `weight` counts towards popularity."""

    name: str = Field(min_length=1, max_length=128)
    polarity: Literal["positive", "negative", "neutral"] = "positive"
    weight: float = Field(default=1.0, ge=0)


class Counts(_Strict):
    events: int
    users: int
    items: int
    baskets: int
    by_type: dict[str, int]


class DatasetManifest(_Strict):
    format_version: Literal[1] = 1
    name: str
    source: str = Field(description="where the rows came from, in words")
    licence: str = Field(description="the licence the source states, in words")
    event_types: list[EventType] = Field(min_length=1)
    baskets: bool = Field(description="events come in baskets (`basket_id`): the target is the whole next basket")
    timed: bool = Field(description="false: times are made up from the order, one second apart from 2000-01-01")
    repeats: bool = Field(description="people come back to the same item: seen items are not filtered from a ranking")
    user_attributes: list[str]
    item_features: list[str] = []
    item_vectors: dict[str, int] = Field(default={}, description="how many numbers each `vector_*` has")
    missing_values: str = MISSING_POLICY
    notes: list[str] = []
    counts: Counts
    first_ms: int
    last_ms: int
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
