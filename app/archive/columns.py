"""Records <-> Arrow tables: the columns of the archive's Parquet files.

An impression has `recommendation_id` and `time_ms` as an event has, and `list_items` at `list_positions`. Rows that name a list
of ours say where it came from: `list_model`, `list_scenario` with its `list_version`, `list_source`, `list_ms` when it was made,
`list_experiment` with its `list_experiment_version` and `list_arm`. `list_propensities`, where an impression says them, are those
of its items, null where one is not known.

Every field of `StoredEvent` is a column of its own name; a field that is added there is a column here, and older files read as
having none. Strings are `large_string`: in memory, a column of texts may pass 2 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import UnionType
from typing import Any, Final, get_args, get_type_hints

import msgspec
import pyarrow as pa

from app.archive.record import IMPRESSION, Record
from app.state.events import StoredEvent
from app.state.impressions import Impression
from app.state.lists import read_list_id

ODD: Final = "\ufffe"
"""How an id begins that is no valid Unicode (half a surrogate pair), or that begins so itself: the rest is its bytes in hex."""

_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode

_ARROW: Final = {str: pa.large_string(), int: pa.int64(), float: pa.float64(), dict: pa.large_string()}


def _arrow_type(annotation: Any) -> pa.DataType:
    """The column type of a field: `str | None` and the like; a dict is JSON text."""
    options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    (kind,) = [option for option in options if option is not type(None)]
    return _ARROW[getattr(kind, "__origin__", kind)]


_EVENT_TYPES: Final = {name: _arrow_type(hint) for name, hint in get_type_hints(StoredEvent).items()}
EVENT_FIELDS: Final = StoredEvent.__struct_fields__
_CONTEXT: Final = EVENT_FIELDS.index("context")
_LIST_ID: Final = EVENT_FIELDS.index("recommendation_id")
_TIME: Final = EVENT_FIELDS.index("time_ms")

SCHEMA: Final = pa.schema(
    [
        pa.field("partition", pa.int16(), nullable=False),
        pa.field("ms", pa.int64(), nullable=False),  # of the stream id: arrival, unix ms
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("kind", pa.large_string(), nullable=False),
        pa.field("tenant", pa.large_string(), nullable=False),
        pa.field("user_id", pa.large_string(), nullable=False),
        pa.field("epoch", pa.large_binary()),
        pa.field("n", pa.int64()),
        pa.field("count", pa.int64()),
        pa.field("other", pa.large_string()),
        pa.field("attributes", pa.large_string()),
        pa.field("gone_ms", pa.int64()),
        pa.field("extra", pa.large_string()),
        pa.field("event_id", pa.large_string()),
        pa.field("list_items", pa.large_list(pa.large_string())),
        pa.field("list_positions", pa.large_list(pa.int64())),
        pa.field("list_model", pa.large_string()),
        pa.field("list_scenario", pa.large_string()),
        pa.field("list_version", pa.int64()),
        pa.field("list_source", pa.large_string()),
        pa.field("list_ms", pa.int64()),
        *(pa.field(name, _EVENT_TYPES[name]) for name in EVENT_FIELDS),
        pa.field("list_experiment", pa.large_string()),
        pa.field("list_experiment_version", pa.int64()),
        pa.field("list_arm", pa.large_string()),
        pa.field("list_propensities", pa.large_list(pa.float64())),
    ]
)
# What a record is made of again, beside its event, in the order in which `to_records` takes it.
_OF_RECORD: Final = (
    "partition",
    "ms",
    "seq",
    "kind",
    "tenant",
    "user_id",
    "epoch",
    "n",
    "count",
    "other",
    "attributes",
    "gone_ms",
    "extra",
    "event_id",
    "list_items",
    "list_positions",
    "list_propensities",
)
_OF_IMPRESSION: Final = 3  # the last of them
ORDER: Final = [("partition", "ascending"), ("ms", "ascending"), ("seq", "ascending")]


def to_table(records: Sequence[Record]) -> pa.Table:
    """Records as rows, in their order."""
    columns: dict[str, list[Any]] = {
        "partition": [r.partition for r in records],
        "ms": [r.ms for r in records],
        "seq": [r.seq for r in records],
        "kind": [r.kind for r in records],
        "tenant": [to_text(r.tenant) for r in records],
        "user_id": [to_text(r.user_id) for r in records],
        "epoch": [r.epoch or None for r in records],
        "n": [r.n or None for r in records],
        "count": [r.count if r.kind in ("s", "m") else None for r in records],
        "other": [to_text(r.other) if r.other else None for r in records],
        "attributes": [None if r.attributes is None else _json(r.attributes) for r in records],
        "gone_ms": [r.gone_ms for r in records],
        "extra": [None if r.extra is None else _json(r.extra) for r in records],
        "event_id": [None if r.event_id is None else to_text(r.event_id) for r in records],
    }
    columns |= _of_lists(records)
    for name in EVENT_FIELDS:
        columns[name] = [None if r.event is None else getattr(r.event, name) for r in records]
    for place, r in enumerate(records):
        if r.impression is not None:
            columns["recommendation_id"][place], columns["time_ms"][place] = r.impression.recommendation_id, r.impression.time_ms
    columns["context"] = [None if context is None else _json(context) for context in columns["context"]]
    return pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def to_records(table: pa.Table) -> Iterator[Record]:
    """Rows as records, in their order; a column that the file did not have yet is empty."""
    for batch in table.to_batches(max_chunksize=8_192):
        rows = {name: batch.column(name).to_pylist() for name in batch.schema.names}
        absent: list[Any] = [None] * batch.num_rows
        values = [rows.get(name, absent) for name in (*_OF_RECORD, *EVENT_FIELDS)]
        for partition, ms, seq, kind, tenant, user, epoch, n, count, other, attributes, gone_ms, extra, event_id, *rest in zip(
            *values, strict=True
        ):
            (items, positions, propensities), event = rest[:_OF_IMPRESSION], rest[_OF_IMPRESSION:]
            yield Record(
                kind=kind,
                tenant=from_text(tenant),
                user_id=from_text(user),
                partition=partition,
                ms=ms,
                seq=seq,
                epoch=epoch or b"",
                n=n or 0,
                event=None if event[0] is None else _event(event),
                event_id=None if event_id is None else from_text(event_id),
                count=count or 0,
                other=from_text(other or ""),
                attributes=None if attributes is None else _decode_json(attributes),
                gone_ms=gone_ms,
                impression=None if kind != IMPRESSION else _impression(event, items, positions, propensities),
                extra=None if extra is None else _decode_json(extra),
            )


def canonical(tables: Iterable[pa.Table]) -> pa.Table:
    """One table with the columns of this version; those that a file did not have yet are empty."""
    empty = SCHEMA.empty_table()
    table = pa.concat_tables([empty, *tables], promote_options="default")
    return table.select(SCHEMA.names).cast(SCHEMA)


def to_text(identifier: str) -> str:
    """An id as a column can hold it; `from_text` gives it back."""
    raw = identifier.encode("utf-8", "surrogatepass")
    try:
        raw.decode()
    except UnicodeDecodeError:
        return ODD + raw.hex()
    return ODD + raw.hex() if identifier.startswith(ODD) else identifier


def from_text(text: str) -> str:
    return bytes.fromhex(text[1:]).decode("utf-8", "surrogatepass") if text.startswith(ODD) else text


def _event(values: list[Any]) -> StoredEvent:
    if values[_CONTEXT] is not None:
        values[_CONTEXT] = _decode_json(values[_CONTEXT])
    return StoredEvent(*values)


def _impression(values: list[Any], items: list[str], positions: list[int], propensities: list[float | None] | None) -> Impression:
    numbered = tuple(positions)
    return Impression(
        values[_LIST_ID],
        values[_TIME],
        tuple(map(from_text, items)),
        () if numbered == tuple(range(1, len(numbered) + 1)) else numbered,
        tuple(propensities or ()),
    )


def _of_lists(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The columns of lists: what was seen of them, and where those come from that events and impressions name."""
    columns: dict[str, list[Any]] = {
        "list_items": [None if r.impression is None else [*map(to_text, r.impression.item_ids)] for r in records],
        "list_positions": [
            None if r.impression is None else list(r.impression.positions or range(1, len(r.impression.item_ids) + 1))
            for r in records
        ],
    }
    columns["list_propensities"] = [None if r.impression is None else list(r.impression.propensities) or None for r in records]
    named = [r.impression or r.event for r in records]
    origins = [
        read_list_id(one.recommendation_id) if one is not None and one.recommendation_id is not None else None for one in named
    ]
    columns["list_model"] = [None if origin is None else origin.model_id for origin in origins]
    columns["list_scenario"] = [None if origin is None else origin.scenario or None for origin in origins]
    columns["list_version"] = [None if origin is None else origin.version or None for origin in origins]
    columns["list_source"] = [None if origin is None else "fallback" if origin.fallback else "model" for origin in origins]
    columns["list_ms"] = [None if origin is None else origin.made_s * 1000 for origin in origins]
    columns["list_experiment"] = [None if origin is None else origin.experiment or None for origin in origins]
    columns["list_experiment_version"] = [None if origin is None else origin.experiment_version or None for origin in origins]
    columns["list_arm"] = [None if origin is None else origin.arm or None for origin in origins]
    return columns


def _json(value: Any) -> str:
    return _encode_json(value).decode()
