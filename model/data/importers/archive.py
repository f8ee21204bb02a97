"""The archive that the service writes of its event log: everything that every user did and that has not been erased.

A folder with numbered manifests, `_manifests/<20 digits>.json`, of which the newest names the Parquet files that count. Their
rows are records of the log, of a partition, at a place (ms, seq):

    e, h   an event: live, and of a bulk import or a merge
    x, m   the user was erased, or moved into another, which has the events now: earlier rows of the user do not count
    r      the user was idle and left the service: what they did before counts, and a later move has not taken it along
    a      attributes, the last ones count
    s      a sequence was rewritten: says nothing that is not in the events

An event that is there twice with one event id (a retry from beyond the service's memory) counts once, the first time. Which event
types are negative is not in the archive: say so with --mapping (the tables event_types and options).
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from model.data.build import Dataset
from model.data.clean import Cleaning
from model.data.errors import DataError, NoEventsError, first_line
from model.data.importers.table import Mapping, Options, build
from model.data.schema import EVENT_COLUMNS

MANIFESTS = "_manifests"
FORMAT = 1
KINDS = ("e", "h", "s", "a", "x", "m", "r")
EVENTS = ("e", "h")

_USER = ["tenant", "partition", "user_id"]
_COLUMNS: dict[str, pl.DataType] = {
    "partition": pl.Int16(),
    "ms": pl.Int64(),
    "seq": pl.Int64(),
    "kind": pl.String(),
    "tenant": pl.String(),
    "event_id": pl.String(),
    "attributes": pl.String(),
    "time_ms": pl.Int64(),
    **{name: dtype for name, dtype in EVENT_COLUMNS.items() if name != "timestamp"},
}
_SOURCE = "the event log of a Longwave service"


def recognise(path: Path) -> bool:
    return path.is_dir() and _newest(path) is not None


def read(path: Path, mapping: Mapping | None = None, now_ms: int | None = None) -> Dataset:
    """Import an archive as its newest manifest has it.

    Raises:
        DataError: there is no archive, or it is damaged, of another format, or changed while it was read.
    """
    mapping = mapping or Mapping(columns={}, options=Options(source=_SOURCE))
    rows = _rows(path)
    unknown = set(rows.get_column("kind").unique()) - set(KINDS)
    if unknown:
        raise DataError(f"{path}: has records of the unknown kind {sorted(unknown)[0]!r}; this version knows {', '.join(KINDS)}")
    rows = _in_force(rows.sort("partition", "ms", "seq"))
    events = _once(rows.filter(pl.col("kind").is_in(EVENTS)))
    if rows.get_column("tenant").n_unique() > 1:
        # Two tenants' users of one name are two users.
        both = pl.concat_str("tenant", pl.lit("/"), "user_id").alias("user_id")
        rows, events = rows.with_columns(both), events.with_columns(both)
    events = events.with_columns(pl.col("time_ms").alias("timestamp")).select(list(EVENT_COLUMNS))
    if not events.height:
        raise NoEventsError(f"{path}: the archive has no event of a user who is still there", Cleaning(events).report())
    return build(events, mapping, path.resolve().name, now_ms, _attributes(rows))


def _newest(path: Path) -> Path | None:
    numbered = [file for file in (path / MANIFESTS).glob("*.json") if file.stem.isdecimal()]
    return max(numbered, key=lambda file: int(file.stem), default=None)


def _rows(path: Path) -> pl.DataFrame:
    """All rows of the files that count; columns that an older file does not have yet are null."""
    newest = _newest(path)
    if newest is None:
        raise DataError(f"{path}: no archive is there (no {MANIFESTS}/*.json)")
    try:
        manifest = json.loads(newest.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise DataError(f"{newest}: has format {manifest['format']}, this version reads {FORMAT}")
        files = [(path / file["path"], int(file["rows"])) for file in manifest["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{newest}: damaged, or replaced while it was read: {error}") from error
    parts = []
    for file, expected in files:
        try:
            lazy = pl.scan_parquet(file, hive_partitioning=False)
            there = lazy.collect_schema().names()
            taken = [
                (pl.col(name) if name in there else pl.lit(None)).cast(dtype, strict=False).alias(name)
                for name, dtype in _COLUMNS.items()
            ]
            part = lazy.select(taken).collect(engine="streaming")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{file}: damaged, or replaced while it was read: {first_line(error)}") from error
        if part.height != expected:
            raise DataError(f"{file}: has {part.height} rows, {newest.name} says {expected}")
        parts.append(part)
    return pl.concat(parts) if parts else pl.DataFrame(schema=_COLUMNS)


def _in_force(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows, in order, that no later erasure or move of their user has made void. A move takes along what came since the user
    was last idle for too long: nothing else was there to be moved."""
    rows = rows.with_row_index("_place")
    place = pl.col("_place")
    erased, moved = (pl.when(pl.col("kind") == kind).then(place).max().over(_USER) for kind in ("x", "m"))
    rows = rows.with_columns(erased.alias("_erased"), moved.alias("_moved"))
    rested = pl.when((pl.col("kind") == "r") & (place < pl.col("_moved"))).then(place).max().over(_USER)
    there = (place > pl.col("_moved")) | (place <= rested.fill_null(-1))
    return rows.filter((place > pl.col("_erased")).fill_null(True) & there.fill_null(True))


def _once(events: pl.DataFrame) -> pl.DataFrame:
    first = pl.struct("tenant", "user_id", "event_id").is_first_distinct()
    return events.filter(pl.col("event_id").is_null() | first)


def _attributes(rows: pl.DataFrame) -> pl.DataFrame | None:
    """The last attributes of each user, a column each."""
    last = rows.filter(pl.col("kind") == "a").unique("user_id", keep="last", maintain_order=True)
    known = [{"user_id": user, **json.loads(text)} for user, text in last.select("user_id", "attributes").iter_rows()]
    names = sorted({name for row in known for name in row} - {"user_id"})
    if not names:
        return None
    return pl.DataFrame(
        [[row["user_id"], *(row.get(name) for name in names)] for row in known],
        schema=dict.fromkeys(["user_id", *names], pl.String()),
        orient="row",
    )
