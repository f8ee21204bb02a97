"""The archive that the service writes of its event log: everything that every user did and that has not been erased.

A folder with numbered manifests, `_manifests/<20 digits>.json`, of which the newest names the Parquet files that count. Their
rows are records of the log, of a partition, at a place (ms, seq):

    e, h   an event: live, and of a bulk import or a merge
    x      the user was erased: earlier rows of the user do not count
    m      the user was merged into another, as whose the last `count` events stand again; those before are the other's, too
    r      the user was idle and left the service: what they did before counts
    a      attributes, the last ones count
    s      a sequence was rewritten: its events are sorted by time up to the h after it; may have attributes, too. Marked
           `d:<epoch>` it has the last `count` events of the user `other`, of that epoch, who had been told `n` events by then

The two records of a merge, `m` with the one and `s` with the other, are archived at different moments. Where there is an `s`
alone, the other one's events have moved; where there is an `m` alone, they stand nowhere else yet, and are all still to be
taken from there.

An event that is there twice with one event id (a retry from beyond the service's memory) counts once, the first time. Which event
types are negative is not in the archive: say so with --mapping (the tables event_types and options).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from model.data.build import Dataset
from model.data.clean import Cleaning
from model.data.errors import UNREADABLE, DataError, NoEventsError, first_line
from model.data.importers.table import Mapping, Options, build
from model.data.schema import (
    EVENT_COLUMNS,
    FEATURE_PREFIX,
    ITEM_COLUMNS,
    MOST_VECTOR_NAME,
    MOST_VECTORS,
    VECTOR_PREFIX,
)

MANIFESTS = "_manifests"
ITEMS = "items.jsonl"
FORMAT = 1
KINDS = ("e", "h", "s", "a", "x", "m", "r", "v")
EVENTS = ("e", "h")
DONE = "d:"

_USER = ["tenant", "partition", "user_id"]
_COLUMNS: dict[str, pl.DataType] = {
    "partition": pl.Int16(),
    "ms": pl.Int64(),
    "seq": pl.Int64(),
    "kind": pl.String(),
    "tenant": pl.String(),
    "event_id": pl.String(),
    "count": pl.Int64(),
    "other": pl.String(),
    "epoch": pl.Binary(),
    "n": pl.Int64(),
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
    items, notes = _items(path)
    dataset = build(events, mapping, path.resolve().name, now_ms, _attributes(rows), items)
    return replace(dataset, manifest=dataset.manifest.model_copy(update={"notes": [*dataset.manifest.notes, *notes]}))


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
        files = [(path / file["path"], int(file["rows"]), int(file["bytes"]), str(file["sha256"])) for file in manifest["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{newest}: damaged, or replaced while it was read: {error}") from error
    parts = []
    for file, expected, size, checksum in files:
        try:
            _check(file, size, checksum)
            lazy = pl.scan_parquet(file, hive_partitioning=False)
            there = lazy.collect_schema().names()
            taken = [
                (pl.col(name) if name in there else pl.lit(None)).cast(dtype, strict=False).alias(name)
                for name, dtype in _COLUMNS.items()
            ]
            part = lazy.select(taken).collect(engine="streaming")
        except UNREADABLE as error:
            raise DataError(f"{file}: damaged, or replaced while it was read: {first_line(error)}") from error
        if part.height != expected:
            raise DataError(f"{file}: has {part.height} rows, {newest.name} says {expected}")
        parts.append(part)
    return pl.concat(parts) if parts else pl.DataFrame(schema=_COLUMNS)


def _check(file: Path, size: int, checksum: str) -> None:
    """Raise DataError if it is not the file that was committed: one in which bits have changed can well be read, as other events.

    Raises OSError if it cannot be read.
    """
    found = file.stat().st_size
    if found == size:  # else there is no need to read it
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() == checksum:
                return
    raise DataError(f"{file}: damaged: is not the file that was committed ({found} bytes, {size} expected)")


def _in_force(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that no later erasure of their user has made void, under the names of those who have the events now."""
    rows = rows.with_row_index("_place")
    erased = pl.when(pl.col("kind") == "x").then(pl.col("_place")).max().over(_USER)
    in_force = rows.filter((pl.col("_place") > erased).fill_null(True))
    ever_taken = _ever_taken(rows)
    taken = _taken(rows, in_force, ever_taken)
    dropped, met = _halfway(in_force, taken)
    in_force = in_force.filter(~pl.col("_place").is_in(dropped))
    # Whoever was told more after that had not gone: Redis has lost it.
    told = pl.when(pl.col("kind").is_in([*EVENTS, "s", "a"])).then(pl.col("_place")).max().over(_USER)
    gone_last = (pl.col("kind") == "m") & (pl.col("_place") > told).fill_null(True)
    moves = in_force.filter(gone_last).unique(_USER, keep="last", maintain_order=True)
    # What the other one has says how much it is. Of whom nobody has anything yet, nothing has moved.
    last = taken.join(met, on=["tenant", "user_id", "_epoch"], how="anti").unique(["tenant", "user_id"], keep="last")
    moves = moves.join(last.select("tenant", "user_id", "_count"), on=["tenant", "user_id"], how="left", maintain_order="left")
    # Unless whom they went to had gone on to a third one since, with all they had.
    on = ever_taken.group_by("tenant", pl.col("user_id").alias("other")).agg(pl.col("_ms").max())
    moves = moves.join(on, on=["tenant", "other"], how="left", maintain_order="left")
    passed_on = pl.when(pl.col("_ms") >= pl.col("ms")).then("count").otherwise(0)
    moves = moves.select(*_USER, "other", pl.coalesce("_count", passed_on).alias("count"))
    gone = met.filter(pl.col("other").is_not_null()).select(*_USER, "other", pl.lit(0, pl.Int64()).alias("count"))
    moves = pl.concat([moves, gone.join(moves, on=_USER, how="anti")])
    return in_force if moves.is_empty() else _moved(in_force, moves)


def _ever_taken(rows: pl.DataFrame) -> pl.DataFrame:
    """What others' records say of events that they have from a user: tenant, user_id, other (who has them), _epoch, _count, _n
    (0: not known) and _ms."""
    marked = (pl.col("kind") == "s") & pl.col("event_id").str.contains(f"^{DONE}[0-9a-f]{{16}}$") & pl.col("other").is_not_null()
    return rows.filter(marked).select(
        "tenant",
        pl.col("other").alias("user_id"),
        pl.col("user_id").alias("other"),
        pl.col("event_id").str.strip_prefix(DONE).str.decode("hex").alias("_epoch"),
        pl.col("count").alias("_count"),
        pl.col("n").fill_null(0).alias("_n"),
        pl.col("ms").alias("_ms"),
    )


def _taken(rows: pl.DataFrame, in_force: pl.DataFrame, taken: pl.DataFrame) -> pl.DataFrame:
    """That of the users' present lives, oldest first."""
    ever, present = (some.join(taken, on=["tenant", "user_id"], how="semi", maintain_order="left") for some in (rows, in_force))
    rested = pl.when(pl.col("kind") == "r").then(pl.col("_place")).max().over(_USER)
    present = present.filter((pl.col("_place") > rested).fill_null(True))
    who = ["tenant", "user_id", "_epoch"]
    seen, now = (some.select("tenant", "user_id", pl.col("epoch").alias("_epoch")).unique() for some in (ever, present))
    return taken.join(seen.join(now, on=who, how="anti"), on=who, how="anti").sort("_ms", maintain_order=True)


def _halfway(in_force: pl.DataFrame, taken: pl.DataFrame) -> tuple[list[int], pl.DataFrame]:
    """Of users whose own records do not say that they were merged, or say more than that: the places of events that have moved,
    and for each of them _USER, _epoch and other, which is null where the user has gone on since."""
    told = in_force.filter(pl.col("kind").is_in([*EVENTS, "s", "a", "r", "m"]))
    of = told.join(taken, on=["tenant", "user_id"], how="inner")
    more = (pl.col("n") > pl.col("_n")) & (pl.col("_n") > 0)
    later = of.filter((pl.col("kind") != "m") & (pl.col("_ms") < pl.col("ms")) | more)
    without = taken.join(told.filter(pl.col("kind") == "m"), on=["tenant", "user_id"], how="anti")
    odd = pl.concat([some.select("tenant", "user_id") for some in (later, without)]).unique()
    dropped: list[int] = []
    met: list[tuple[str, int, str, bytes, str | None]] = []
    moves: dict[tuple[str, str], list[tuple[bytes, str, int, int, int]]] = {}
    for tenant, user, *move in taken.join(odd, on=["tenant", "user_id"], how="semi").iter_rows():
        other, epoch, count, n, ms = move
        moves.setdefault((tenant, user), []).append((epoch, other, count, n, ms))
    for key, own in told.join(odd, on=["tenant", "user_id"], how="semi").group_by(_USER, maintain_order=True):
        tenant, number, user = key
        for epoch, other, places in _left(own, moves[str(tenant), str(user)]):
            dropped += places
            met.append((str(tenant), int(str(number)), str(user), epoch, other))
    schema = {"tenant": pl.String(), "partition": pl.Int16(), "user_id": pl.String(), "_epoch": pl.Binary(), "other": pl.String()}
    return dropped, pl.DataFrame(met, schema=schema, orient="row")


def _left(own: pl.DataFrame, moves: list[tuple[bytes, str, int, int, int]]) -> Iterator[tuple[bytes, str | None, list[int]]]:
    """Of one user's records, in order: each epoch that has moved, where to unless the user has gone on, and the places of its
    events."""
    events: list[tuple[int, int]] = []  # time and place
    epoch, n, awaited, seen, last_ms = b"", 0, 0, set(), 0
    rows = own.select("kind", "epoch", "n", "count", "time_ms", "ms", "_place").rows()
    for kind, record_epoch, number, count, time_ms, ms, place in rows:
        if kind == "m" and place == rows[-1][-1]:
            return
        for moved, _, move_count, move_n, move_ms in moves:
            counted = kind == "e" and record_epoch == moved and move_n
            later = kind == "m" or (number > move_n if counted else ms > move_ms)
            if moved == epoch and kind != "h" and later:
                places = _last(events, n, move_count, move_n)
                yield moved, None, places
                events = events[: len(events) - len(places)]
                moves = [move for move in moves if move[0] != moved]
                break
        if kind == "m":  # and Redis has lost it
            continue
        if kind == "h":
            events.append((time_ms, place))
            awaited -= 1
            n += awaited < 0  # what announced it is not there
            if awaited <= 0:
                events.sort()
        elif kind == "e":
            events.append((time_ms, place))
            n = number
        elif kind == "s":
            awaited, n = count, n + count
            events.sort()
        elif kind == "r":
            events, n = [], 0
        epoch, last_ms = record_epoch, max(last_ms, ms)
        seen.add(epoch)
    for moved, other, move_count, move_n, move_ms in moves:  # more than one, if Redis had lost the first
        if moved == epoch or (moved not in seen and move_ms >= last_ms):
            places = _last(events, n, move_count, move_n)
            yield moved, other if moved == moves[-1][0] else None, places
            events, n = events[: len(events) - len(places)], 0


def _last(events: list[tuple[int, int]], n: int, count: int, of: int) -> list[int]:
    """The places of those that are among the last `count` of `of` events (0: not known), where `n` are here."""
    if of:
        count = 0 if of < n else max(0, count - (of - n))
    return [place for _, place in events[max(0, len(events) - count) :]]


def _moved(rows: pl.DataFrame, moves: pl.DataFrame) -> pl.DataFrame:
    """The rows without those that moved to another user with the last events of their own one; the rest are the other's, too."""
    # Of who has moved to somebody who was erased, whose name is taken from the archive then, all has gone.
    gone = moves.select(*_USER, pl.when(pl.col("other").is_null()).then(2**40).otherwise(pl.col("count")).alias("_moved"))
    rows = rows.join(gone, on=_USER, how="left", maintain_order="left")
    of_moved = rows.filter(pl.col("_moved").is_not_null() & pl.col("kind").is_in([*EVENTS, "s", "r"]))
    # A rewritten sequence is sorted by time; what came later follows in its own order.
    rewritten = pl.when(pl.col("kind").is_in(["h", "s"])).then(pl.col("_place")).max().over(_USER)
    late = (pl.col("_place") > rewritten).fill_null(True)
    life = (pl.col("kind") == "r").cum_sum().over(_USER)  # a sequence is sorted since the user came back
    events = of_moved.with_columns(late.alias("_late"), life.alias("_life")).filter(pl.col("kind").is_in(EVENTS))
    by_time = pl.when("_late").then(pl.lit(0)).otherwise(pl.col("time_ms"))
    events = events.sort("_life", "_late", by_time, "_place", maintain_order=True)
    older = events.filter(pl.int_range(pl.len()).over(_USER) < pl.len().over(_USER) - pl.col("_moved"))
    kept = pl.concat([rows.filter(pl.col("_moved").is_null()), older.drop("_late", "_life")]).sort("_place")
    heirs = {(tenant, user): other for tenant, user, other in moves.select("tenant", "user_id", "other").iter_rows()}
    ends = [(tenant, user, _heir(heirs, tenant, user)) for tenant, user in heirs]
    names = pl.DataFrame(ends, schema=["tenant", "user_id", "_heir"], orient="row")
    kept = kept.join(names, on=["tenant", "user_id"], how="left", maintain_order="left")
    return kept.with_columns(pl.coalesce("_heir", "user_id").alias("user_id")).drop("_heir", "_moved")


def _heir(heirs: dict[tuple[str, str], str], tenant: str, user: str) -> str:
    """Where the moves of a user end."""
    for _ in heirs:
        if (tenant, user) not in heirs:
            break
        user = heirs[tenant, user]
    return user


def _once(events: pl.DataFrame) -> pl.DataFrame:
    first = pl.struct("tenant", "user_id", "event_id").is_first_distinct()
    return events.filter(pl.col("event_id").is_null() | first)


def _items(path: Path) -> tuple[pl.DataFrame | None, list[str]]:
    """Titles, categories, features and vectors of the items of which anything was said; and what is to be noted of them."""
    file = path / ITEMS
    if not file.exists():
        return None, []
    try:
        said = [json.loads(line) for line in file.read_bytes().splitlines()]
        rows = [
            {
                "item_id": str(one["id"]),
                "title": one["item"].get("title"),
                "categories": [str(name) for name in one["item"].get("categories") or []],
                **{
                    name: float(value)
                    for name, value in one["item"].get("features", {}).items()
                    if name.startswith(FEATURE_PREFIX)
                },
            }
            for one in said
        ]
        names = sorted({name for row in rows for name in row if name.startswith(FEATURE_PREFIX)})
        schema = {**ITEM_COLUMNS, **dict.fromkeys(names, pl.Float32())}
        vectors, notes = _vectors([one["item"].get("vectors", {}) for one in said])
        items = pl.DataFrame(rows, schema=schema, orient="row").with_columns(vectors)
        return items.unique("item_id", keep="last", maintain_order=True), notes
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file}: damaged: {first_line(error)}") from error


def _vectors(said: list[dict[str, str]]) -> tuple[list[pl.Series], list[str]]:
    """A column for each name of vectors, which the service stores as base64 of float32; and which vectors were left out.

    A service takes any name, and any length under one that its model does not know: the names count that most items have, and of
    a name the length that most items have.
    """
    columns, notes = [], []
    items_of = Counter(name for vectors in said for name in vectors)
    named = [name for name in sorted(items_of, key=lambda name: (-items_of[name], name)) if len(name) <= MOST_VECTOR_NAME]
    for name in sorted(items_of.keys() - named[:MOST_VECTORS]):
        why = f"at most {MOST_VECTORS} are taken" if name in named else f"a name has at most {MOST_VECTOR_NAME} characters"
        notes.append(f"the vectors {name!r} of {items_of[name]} items are left out: {why}")
    for name in sorted(named[:MOST_VECTORS]):
        packed = [None if name not in vectors else base64.b64decode(vectors[name], validate=True) for vectors in said]
        lengths = Counter(len(cell) for cell in packed if cell is not None)
        ((most, count),) = lengths.most_common(1)
        kept = [row for row, cell in enumerate(packed) if cell is not None and len(cell) == most]
        values = np.frombuffer(b"".join(packed[row] or b"" for row in kept), "<f4").reshape(len(kept), -1)
        place = np.full(len(packed), -1)
        place[kept] = np.arange(len(kept))
        where = pl.Series(place).replace(-1, None)
        columns.append(pl.Series(VECTOR_PREFIX + name, values).cast(pl.List(pl.Float32)).gather(where))
        if count < lengths.total():
            others = lengths.total() - count
            notes.append(f"{others} items have a vector {name!r} of other than {most // 4} numbers, which is left out")
    return columns, notes


def _attributes(rows: pl.DataFrame) -> pl.DataFrame | None:
    """The last attributes of each user, a column each."""
    told = pl.col("kind").is_in(["a", "s"]) & pl.col("attributes").is_not_null()
    last = rows.filter(told).unique("user_id", keep="last", maintain_order=True)
    known = [{"user_id": user, **json.loads(text)} for user, text in last.select("user_id", "attributes").iter_rows()]
    names = sorted({name for row in known for name in row} - {"user_id"})
    if not names:
        return None
    return pl.DataFrame(
        [[row["user_id"], *(row.get(name) for name in names)] for row in known],
        schema=dict.fromkeys(["user_id", *names], pl.String()),
        orient="row",
    )
