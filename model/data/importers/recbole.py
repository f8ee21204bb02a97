"""RecBole's atomic files: tab-separated, every header is `name:type` with type token, token_seq, float or float_seq.

`.inter` needs user_id and item_id; rating and timestamp are taken when there, and a token field `type`, `event_type` or
`behavior` as the type of event. Of `.item`: the title (a field whose name ends in title or name), every other token_seq as
categories, and every float or float_seq as dense features. Of `.user`: the token fields with at most 100 distinct values as
attributes (a zip code is no attribute).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from model.data.build import Dataset, build_dataset
from model.data.clean import Cleaning
from model.data.errors import UNREADABLE, DataError, first_line
from model.data.schema import FEATURE_PREFIX, EventType
from model.data.times import milliseconds, times_from_order

TYPES = ("token", "token_seq", "float", "float_seq")
TYPE_FIELDS = ("type", "event_type", "behavior")
MAX_ATTRIBUTE_VALUES = 100
EVENTS_PER_HOUR = 5_000


def recognise(path: Path) -> bool:
    return _inter(path) is not None


def read(path: Path, now_ms: int | None = None) -> Dataset:
    """Import a `.inter` file, or a folder with one, with the `.item` and `.user` files of the same name beside it.

    Raises:
        DataError: no `.inter` file, a header without a type, or a missing field.
    """
    inter = _inter(path)
    if inter is None:
        raise DataError(f"{path}: no .inter file; expected one, with RecBole's typed headers")
    rows, types = _read(inter, needed=("user_id", "item_id"))
    kind = next((field for field in TYPE_FIELDS if types.get(field) == "token"), None)
    timed = "timestamp" in types
    events = rows.select(
        "user_id",
        "item_id",
        (pl.col(kind) if kind else pl.lit("interaction")).alias("type"),
        (pl.col("rating") if "rating" in types else pl.lit(None)).cast(pl.Float32, strict=False).alias("value"),
        milliseconds(rows.get_column("timestamp")).alias("timestamp") if timed else times_from_order(),
    )
    cleaning = Cleaning(events)
    cleaning.missing_user()
    cleaning.missing_item()
    if kind:
        cleaning.drop("missing type", f"field {kind} is empty", pl.col("type").is_null())
    cleaning.refused_ids()
    if timed:
        cleaning.impossible_time(now_ms)
        cleaning.exact_duplicates()
        cleaning.robots(EVENTS_PER_HOUR)
    events = cleaning.events
    names = events.get_column("type").unique().sort().to_list()
    return build_dataset(
        events,
        cleaning.report(),
        name=inter.stem,
        source=f"RecBole atomic files, {inter.name}",
        licence="not stated in the files",
        event_types=[EventType(name=name) for name in names],
        items=_items(inter.with_suffix(".item")),
        users=_users(inter.with_suffix(".user"), events),
        timed=timed,
        repeats=bool(events.select(pl.struct("user_id", "item_id").is_duplicated().any()).item()),
        notes=["every type of event counts as positive: the files do not say otherwise"],
    )


def _inter(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".inter" else None
    return next(iter(sorted(path.glob("*.inter"))), None)


def _read(path: Path, needed: tuple[str, ...]) -> tuple[pl.DataFrame, dict[str, str]]:
    """Cells as text (empty is null) and the type of each field."""
    try:
        lazy = pl.scan_csv(path, separator="\t", quote_char=None, infer_schema=False)
        headers = lazy.collect_schema().names()
        frame = lazy.collect(engine="streaming")
    except UNREADABLE as error:
        raise DataError(f"{path}: damaged, not tab-separated text: {first_line(error)}") from error
    types = {}
    for header in headers:
        name, _, kind = header.partition(":")
        if kind not in TYPES:
            raise DataError(f"{path}: header {header!r} has no type; expected name:type with type {', '.join(TYPES)}")
        types[name] = kind
    for name in needed:
        if name not in types:
            raise DataError(f"{path}: field {name!r} is missing; the file has {', '.join(types)}")
    return frame.rename(dict(zip(headers, types, strict=True))), types


def _items(path: Path) -> pl.DataFrame | None:
    if not path.is_file():
        return None
    rows, types = _read(path, needed=("item_id",))
    title = next((name for name in types if name.lower().endswith(("title", "name"))), None)
    lists = [pl.col(name).str.split(" ").fill_null([]) for name, kind in types.items() if kind == "token_seq" and name != title]
    columns = [
        pl.col("item_id"),
        (pl.col(title) if title else pl.lit(None, pl.String)).alias("title"),
        (pl.concat_list(lists) if lists else pl.lit([], pl.List(pl.String))).alias("categories"),
    ]
    for name, kind in types.items():
        if kind == "float":
            columns.append(pl.col(name).cast(pl.Float32, strict=False).alias(FEATURE_PREFIX + name))
        elif kind == "float_seq":
            parts = pl.col(name).str.split(" ")
            width = rows.select(parts.list.len().max()).item() or 0
            columns += [
                parts.list.get(i, null_on_oob=True).cast(pl.Float32, strict=False).alias(f"{FEATURE_PREFIX}{name}_{i:03d}")
                for i in range(width)
            ]
    return rows.select(columns)


def _users(path: Path, events: pl.DataFrame) -> pl.DataFrame | None:
    if not path.is_file():
        return None
    rows, types = _read(path, needed=("user_id",))
    small = [
        name
        for name, kind in types.items()
        if kind == "token" and name != "user_id" and rows.get_column(name).n_unique() <= MAX_ATTRIBUTE_VALUES
    ]
    return rows.select("user_id", *small).join(events, on="user_id", how="semi")
