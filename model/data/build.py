"""Frames of any importer brought into canonical form, checked and described."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from model.data.clean import CleaningReport
from model.data.dense import with_vectors
from model.data.errors import DataError, NoEventsError, first_line
from model.data.fingerprint import fingerprint
from model.data.schema import EVENT_COLUMNS, FEATURE_PREFIX, ITEM_COLUMNS, VECTOR_PREFIX, Counts, DatasetManifest, EventType


@dataclass(frozen=True)
class Dataset:
    """Events, items and users as polars frames with the columns of the canonical folder, and what they mean."""

    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    manifest: DatasetManifest
    cleaning: CleaningReport


def build_dataset(
    events: pl.DataFrame,
    cleaning: CleaningReport,
    *,
    name: str,
    source: str,
    licence: str,
    event_types: list[EventType],
    items: pl.DataFrame | None = None,
    users: pl.DataFrame | None = None,
    baskets: bool = False,
    timed: bool = True,
    repeats: bool = False,
    notes: list[str] | None = None,
) -> Dataset:
    """Bring frames into canonical form and describe them.

    Args:
        events: any subset of `EVENT_COLUMNS`, at least user_id, type and timestamp (unix ms); other columns are left out.
            Sorted here by time, stably.
        items: item_id, and title, categories, `feature_*`, `vector_*` where known; items of events that are not in it are added.
        users: user_id and text attributes; users of events that are not in it are added.

    Raises:
        NoEventsError: every row was dropped, or there was none.
        DataError: a column of another kind, a type that is not declared, a duplicate item or user, or a number that is infinite
            as float32.
    """
    if events.height == 0:
        raise NoEventsError(f"{name}: no event is left of {cleaning.rows_read:,}; the cleaning report has the reasons", cleaning)
    columns = [
        (pl.col(column) if column in events.columns else pl.lit(None)).cast(dtype).alias(column)
        for column, dtype in EVENT_COLUMNS.items()
    ]
    try:
        events = events.select(columns)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{name}: events do not have the canonical column types: {first_line(error)}") from error
    events = events.with_columns(pl.col("value", "quantity", "price").fill_nan(None)).sort("timestamp", maintain_order=True)
    items = _with_ids_of(events, items, "item_id", name).with_columns(
        pl.col("title").cast(pl.String) if _has(items, "title") else pl.lit(None, pl.String).alias("title"),
        pl.col("categories").fill_null([]) if _has(items, "categories") else pl.lit([], pl.List(pl.String)).alias("categories"),
    )
    features = sorted(c for c in items.columns if c.startswith(FEATURE_PREFIX))
    items, vectors = with_vectors(items, f"{name}: items")
    items = items.select(
        *ITEM_COLUMNS,
        *[pl.col(c).cast(pl.Float32).fill_nan(None) for c in features],
        *[VECTOR_PREFIX + vector for vector in vectors],
    )
    users = _with_ids_of(events, users, "user_id", name)
    attributes = [column for column in users.columns if column != "user_id"]
    users = users.select("user_id", *[pl.col(a).cast(pl.String) for a in attributes])
    by_type = dict(events.group_by("type").len().sort("type").iter_rows())
    manifest = DatasetManifest(
        name=name,
        source=source,
        licence=licence,
        event_types=event_types,
        baskets=baskets,
        timed=timed,
        repeats=repeats,
        user_attributes=attributes,
        item_features=features,
        item_vectors=vectors,
        notes=notes or [],
        counts=Counts(
            events=events.height,
            users=events.get_column("user_id").n_unique(),
            items=items.height,
            baskets=events.get_column("basket_id").drop_nulls().n_unique(),
            by_type=by_type,
        ),
        first_ms=events.get_column("timestamp")[0],
        last_ms=events.get_column("timestamp")[-1],
        fingerprint=fingerprint({"events": events, "items": items, "users": users}),
    )
    dataset = Dataset(events, items, users, manifest, cleaning)
    check(dataset, name)
    return dataset


def with_events(
    dataset: Dataset,
    events: pl.DataFrame,
    items: pl.DataFrame | None = None,
    users: pl.DataFrame | None = None,
    notes: list[str] | None = None,
) -> Dataset:
    """The same data set with other events, and with other items, users or notes where they are given. Errors as above."""
    known = dataset.manifest
    return build_dataset(
        events,
        dataset.cleaning,
        name=known.name,
        source=known.source,
        licence=known.licence,
        event_types=known.event_types,
        items=dataset.items if items is None else items,
        users=dataset.users if users is None else users,
        baskets=known.baskets,
        timed=known.timed,
        repeats=known.repeats,
        notes=known.notes if notes is None else notes,
    )


def check(dataset: Dataset, where: str) -> None:
    """Refuse frames that are not canonical; the message names the file and the column."""
    text: pl.DataType = pl.String()
    user_columns = dict.fromkeys(["user_id", *dataset.manifest.user_attributes], text)
    expected: dict[str, tuple[pl.DataFrame, dict[str, pl.DataType]]] = {
        "events.parquet": (dataset.events, EVENT_COLUMNS),
        "items.parquet": (
            dataset.items,
            ITEM_COLUMNS
            | {f: pl.Float32() for f in dataset.manifest.item_features}
            | {VECTOR_PREFIX + vector: pl.List(pl.Float32()) for vector in dataset.manifest.item_vectors},
        ),
        "users.parquet": (dataset.users, user_columns),
    }
    for file, (frame, columns) in expected.items():
        for column, dtype in columns.items():
            if column not in frame.columns:
                raise DataError(f"{where}: {file} has no column {column!r}; it has {', '.join(frame.columns)}")
            if frame.schema[column] != dtype:
                raise DataError(f"{where}: {file}: column {column!r} is {frame.schema[column]}, expected {dtype}")
    for column in ("value", "quantity", "price"):
        endless = dataset.events.filter(~pl.col(column).is_finite())
        if endless.height:
            user, item, number = endless.select("user_id", "item_id", column).row(0)
            raise DataError(f"{where}: events.parquet: column {column!r}, user {user!r}, item {item!r}: {number} is not finite")
    for column in dataset.manifest.item_features:
        endless = dataset.items.filter(~pl.col(column).is_finite())
        if endless.height:
            item, number = endless.select("item_id", column).row(0)
            raise DataError(f"{where}: items.parquet: column {column!r}, item {item!r}: {number} is not finite")
    _, vectors = with_vectors(dataset.items, f"{where}: items.parquet")
    if vectors != dataset.manifest.item_vectors:
        raise DataError(f"{where}: items.parquet: has vectors {vectors}, the manifest says {dataset.manifest.item_vectors}")
    for column in ("user_id", "type", "timestamp"):
        if dataset.events.get_column(column).has_nulls():
            raise DataError(f"{where}: events.parquet: column {column!r} has missing values")
    declared = {event_type.name for event_type in dataset.manifest.event_types}
    unknown = set(dataset.events.get_column("type").unique()) - declared
    if unknown:
        raise DataError(f"{where}: events have the type {sorted(unknown)[0]!r}; declared are {', '.join(sorted(declared))}")
    if not dataset.events.get_column("timestamp").is_sorted():
        raise DataError(f"{where}: events.parquet: column 'timestamp' is not sorted")


def _has(frame: pl.DataFrame | None, column: str) -> bool:
    return frame is not None and column in frame.columns


def _with_ids_of(events: pl.DataFrame, frame: pl.DataFrame | None, key: str, name: str) -> pl.DataFrame:
    """`frame` with a row for every id of the events, sorted by id."""
    ids = events.select(pl.col(key).drop_nulls().unique())
    if frame is None:
        return ids.sort(key)
    frame = frame.with_columns(pl.col(key).cast(pl.String))
    if frame.get_column(key).has_nulls():
        raise DataError(f"{name}: {key} is missing in a row of its table")
    if frame.get_column(key).is_duplicated().any():
        twice = frame.filter(pl.col(key).is_duplicated()).get_column(key)[0]
        raise DataError(f"{name}: {key} {twice!r} stands twice in its table")
    return pl.concat([frame, ids.join(frame, on=key, how="anti")], how="diagonal").sort(key)
