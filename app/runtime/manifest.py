"""The bundle's manifest: the only contract between the trainer and the service.

The trainer cannot import this module (and must not); it validates what it writes against `schema/manifest.schema.json`, which
`python -m app.runtime.manifest` generates from here. A test fails when that file is stale.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION = 1
LATEST_MS = 4_102_444_800_000  # the year 2100: a time beyond it is in another unit

GraphName = Literal["initial", "step", "encode", "interest", "item", "profile", "recent", "scan", "score"]
DType = Literal["float32", "int32", "int64", "bool"]
Name = Annotated[str, Field(min_length=1, max_length=128)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Tensor(_Strict):
    """One input or output of a graph. A dimension is a number or a letter (B users, T events, N items, K, D, R ...)."""

    name: Name
    dtype: DType
    shape: list[int | str]


class Graph(_Strict):
    file: Name
    inputs: list[Tensor]
    outputs: list[Tensor]


class StateTensor(_Strict):
    """One part of a user's state: graphs read it as `name` and return its successor as `name + "_out"`.

    `shape` is that of one user (no batch dimension); `dtype` is how it is stored, byte for byte, little-endian.
    """

    name: Name
    dtype: DType
    shape: list[Annotated[int, Field(gt=0)]]


class EventType(_Strict):
    """`weight` counts towards popularity and repeats; a negative or neutral type is an input to the fold, never a target."""

    name: Name
    polarity: Literal["positive", "negative", "neutral"]
    weight: Annotated[float, Field(ge=0)] = 1.0


class UserAttribute(_Strict):
    """A categorical attribute of a user; index 0 is missing or unseen, value i of the list is index i + 1."""

    name: Name
    values: list[str]


class Popularity(_Strict):
    """Decayed counts per item, one column per half-life, at the end of training; the service carries them on."""

    half_lives_s: list[Annotated[float, Field(gt=0)]]
    as_of_ms: Annotated[int, Field(ge=0, le=LATEST_MS)]


class Items(_Strict):
    """`items.jsonl` holds one object per row (id, title, categories); the arrays have one row per item in the same order.

    With `scales`, (N,) float32, `vectors` are int8, and an item's vector is its row times its scale; without, they are float32.
    """

    count: Annotated[int, Field(gt=0)]
    metadata: Name = "items/items.jsonl"
    vectors: Name = "items/vectors.npy"
    scales: Name | None = None
    bias: Name = "items/bias.npy"
    popularity: Name = "items/popularity.npy"


class Text(_Strict):
    """The text encoder: masked mean of the last hidden layer, then L2-normalised. Absent: texts are kept but not understood."""

    encoder: Name = "text/encoder.onnx"
    tokenizer: Name = "text/tokenizer.json"
    width: Annotated[int, Field(gt=0)]
    max_tokens: Annotated[int, Field(gt=0)]


class ItemVector(_Strict):
    """A vector of an item (of an image, a sound): so many numbers under one name."""

    name: Name
    width: Annotated[int, Field(gt=0)]


class Labels(_Strict):
    """What items are about, by which interests are named; `weights` is (N, C), how much of each item belongs to each label."""

    names: Annotated[list[Name], Field(min_length=1)]
    weights: Name = "items/labels.npy"


class Tolerance(_Strict):
    """How far a replayed golden vector may be off: absolute for state and interests, `top_k_gap` for swapped neighbours."""

    state: float = 1e-4
    interest: float = 1e-4
    score: float = 1e-3
    top_k_gap: float = 2e-4


class Metric(_Strict):
    protocol: str
    name: str
    value: float
    model: str = "longwave"


class Cold(_Strict):
    """How much of what a context makes of items is added to the scores of users with few events, as measured for this model.

    `weights` has one for each number of `events`, interpolated in between; the last is 0, and so is what is beyond.
    """

    facets: Annotated[list[Literal["platform", "country", "category"]], Field(min_length=1, max_length=3)]
    events: Annotated[list[Annotated[int, Field(ge=1, le=1000)]], Field(min_length=2, max_length=100)]
    weights: Annotated[list[Annotated[float, Field(ge=0, le=10)]], Field(min_length=2, max_length=100)]

    @model_validator(mode="after")
    def _fall_to_nothing(self) -> Cold:
        if len(self.events) != len(self.weights) or self.weights[-1] != 0:
            raise ValueError("needs a weight for each number of events, the last of them 0")
        if any(one >= other for one, other in pairwise(self.events)):
            raise ValueError("numbers of events must ascend")
        return self


_Named = TypeVar("_Named", StateTensor, EventType, UserAttribute, ItemVector)


def _distinct(parts: list[_Named]) -> list[_Named]:
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the name {name!r} appears twice")
    return parts


class Manifest(_Strict):
    """Everything the service must know of a model. Unknown fields are refused: a newer format has a newer number."""

    format_version: Literal[1]
    model_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    created_at: str
    source_commit: str
    data_fingerprint: str
    data_name: str
    opset: int
    width: Annotated[int, Field(gt=0, description="D: the width of item and interest vectors")]
    graphs: dict[GraphName, Graph]
    state: Annotated[list[StateTensor], AfterValidator(_distinct)]
    event_types: Annotated[list[EventType], Field(min_length=1), AfterValidator(_distinct)]
    platforms: list[str] = Field(description="index 0 is missing or unseen, platform i of the list is index i + 1")
    numbers: list[str] = Field(description="numeric fields of an event, in the order of the `numbers` input; NaN is missing")
    user_attributes: Annotated[list[UserAttribute], AfterValidator(_distinct)]
    weights: Literal["float32", "int8"] = Field(
        default="float32", description="for people, and the next update: graphs with rounded weights multiply them out themselves"
    )
    item_features: list[str] = Field(default=[], description="names of the dense item features that item.onnx takes")
    item_vectors: Annotated[list[ItemVector], AfterValidator(_distinct)] = Field(
        default=[], description="dense vectors of items; item.onnx takes their numbers in this order, behind the features"
    )
    labels: Labels | None = None
    bucket_edges: dict[str, list[float]] = Field(description="for people: the edges live inside the graphs")
    popularity: Popularity
    items: Items
    text: Text | None = None
    unknown_items: Literal["keep"] = "keep"
    seen_items: Literal["recommend", "exclude"] = Field(description="whether people come back to what they had")
    training_window: int
    metrics: list[Metric] = []
    cold: Cold | None = Field(default=None, description="of users with few events; absent: the model alone")
    tolerance: Tolerance = Tolerance()
    files: dict[str, Sha256] = Field(description="checksum of every file of the bundle but the manifest")

    @model_validator(mode="after")
    def _item_graph_takes_them(self) -> Manifest:
        taken = (
            next((one.shape[-1] for one in self.graphs["item"].inputs if one.name == "features" and one.shape), 0)
            if "item" in self.graphs
            else 0
        )
        named = len(self.item_features) + sum(vector.width for vector in self.item_vectors)
        if taken != named:
            raise ValueError(f"item.onnx takes {taken} features; item_features and item_vectors are {named}")
        return self


def json_schema() -> str:
    """The manifest's JSON schema, as `schema/manifest.schema.json` holds it."""
    return json.dumps(Manifest.model_json_schema(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    target = Path(__file__).parents[2] / "schema" / "manifest.schema.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json_schema(), encoding="utf-8")
