"""MovieLens 100k and 1M: ratings of films, with titles, genres and who rated.

- 100k: u.data, u.item, u.user. 1M: ratings.dat, movies.dat, users.dat. All are Latin-1.
- 1M as `ml1m_stable_sequences.csv.gz` (the data set of the SASRec family: items with at least five ratings, each user in stable
  order, real times for half of the users). The order is its `pos`. Read whole, times are made up from the order for everybody
  (`timed` false); with `timed_users_only`, only the users with real times are read, and `timed` is true.

A rating is one positive event with the stars as its value: the protocols in use count every rating as an interaction. There is no
rule against robots: people rate a page of films in a minute.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import polars as pl

from model.data.build import Dataset, build_dataset
from model.data.clean import Cleaning
from model.data.errors import UNREADABLE, DataError, first_line
from model.data.schema import ITEM_COLUMNS, EventType
from model.data.times import milliseconds, times_from_order

LICENCE = "GroupLens research licence: no redistribution without permission, no commercial use"
STABLE = "ml1m_stable_sequences.csv.gz"
GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
AGES_1M = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56+"}
OCCUPATIONS_1M = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)


def recognise(path: Path) -> bool:
    return path.is_dir() and any(_find(path, name) is not None for name in ("u.data", "ratings.dat", STABLE))


def read(path: Path, now_ms: int | None = None, timed_users_only: bool = False) -> Dataset:
    """Import a MovieLens folder.

    Args:
        timed_users_only: of `ml1m_stable_sequences.csv.gz`, read only the users that have real times.

    Raises:
        DataError: a file is missing or not in MovieLens' format.
    """
    if not timed_users_only and (ratings := _find(path, "u.data")) is not None:
        return _build(
            "ml-100k",
            _ratings(ratings, "\t", 1),
            _items_100k(_needed(path, "u.item")),
            _users_100k(_needed(path, "u.user")),
            now_ms,
        )
    items, users = _needed(path, "movies.dat"), _needed(path, "users.dat")
    if not timed_users_only and (ratings := _find(path, "ratings.dat")) is not None:
        return _build("ml-1m", _ratings(ratings, ":", 2), _items_1m(items), _users_1m(users), now_ms)
    events = _stable(_needed(path, STABLE), timed_users_only)
    name = "ml-1m-timed" if timed_users_only else "ml-1m"
    return _build(name, events, _items_1m(items), _users_1m(users), now_ms, timed=timed_users_only)


def _build(
    name: str, events: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame, now_ms: int | None, timed: bool = True
) -> Dataset:
    cleaning = Cleaning(events)
    cleaning.missing_user()
    cleaning.missing_item()
    cleaning.refused_ids()
    cleaning.impossible_time(now_ms)
    cleaning.exact_duplicates()
    seen = cleaning.events.select(pl.col("user_id").unique())
    return build_dataset(
        cleaning.events.with_columns(pl.lit("rating").alias("type")),
        cleaning.report(),
        name=name,
        source="MovieLens, GroupLens Research (Harper and Konstan 2015, doi 10.1145/2827872)",
        licence=LICENCE,
        event_types=[EventType(name="rating")],
        items=items,
        users=users.join(seen, on="user_id", how="semi"),
        timed=timed,
        notes=["value is the rating, 1 to 5 stars; a low rating is still an interaction (positive)"]
        + ([] if timed else [f"order within a user is `pos` of {STABLE}"]),
    )


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / "original" / name) if p.is_file()), None)


def _needed(folder: Path, name: str) -> Path:
    found = _find(folder, name)
    if found is None:
        raise DataError(f"{folder}: {name} is not there; a MovieLens folder has it beside its ratings")
    return found


def _ratings(path: Path, separator: str, step: int) -> pl.DataFrame:
    """user, item, rating, seconds; "::" is read as ":" with an empty column between, and `step` passes those over."""
    try:
        lazy = pl.scan_csv(path, has_header=False, separator=separator, infer_schema=False, quote_char=None)
        names = lazy.collect_schema().names()[::step]
        if len(names) != 4:
            raise DataError(f"{path}: has {len(names)} fields a line, expected 4: user, item, rating, time")
        rows = lazy.select(pl.col(old).alias(new) for old, new in zip(names, ("user_id", "item_id", "value", "t"), strict=True))
        frame = rows.with_columns(pl.col("value").cast(pl.Float32, strict=False)).collect(engine="streaming")
    except UNREADABLE as error:
        raise DataError(f"{path}: damaged: {first_line(error)}") from error
    return frame.select("user_id", "item_id", "value", milliseconds(frame.get_column("t")).alias("timestamp"))


def _stable(path: Path, timed_users_only: bool) -> pl.DataFrame:
    try:
        rows = pl.read_csv(path, infer_schema=False)
    except (EOFError, zlib.error, *UNREADABLE) as error:
        raise DataError(f"{path}: damaged: {first_line(error)}") from error
    for column in ("user_id", "pos", "movie_id", "rating", "timestamp"):
        if column not in rows.columns:
            raise DataError(f"{path}: column {column!r} is missing; the file has {', '.join(rows.columns)}")
    rows = rows.sort(pl.col("user_id").cast(pl.Int64), pl.col("pos").cast(pl.Int64), maintain_order=True)
    if timed_users_only:
        rows = rows.filter(pl.col("timestamp").is_not_null().all().over("user_id"))
    return rows.select(
        "user_id",
        pl.col("movie_id").alias("item_id"),
        pl.col("rating").cast(pl.Float32, strict=False).alias("value"),
        milliseconds(rows.get_column("timestamp")).alias("timestamp") if timed_users_only else times_from_order(),
    )


def _lines(path: Path, separator: str, fields: int) -> list[list[str]]:
    """The fields of each line of a small Latin-1 file."""
    lines = [line.split(separator) for line in path.read_text(encoding="latin-1").split("\n") if line.strip()]
    for number, line in enumerate(lines, start=1):
        if len(line) != fields:
            raise DataError(f"{path}: line {number} has {len(line)} fields, expected {fields}")
    return lines


def _items_1m(path: Path) -> pl.DataFrame:
    lines = _lines(path, "::", 3)
    return _items([(i, title, genres.strip().split("|")) for i, title, genres in lines])


def _items_100k(path: Path) -> pl.DataFrame:
    lines = _lines(path, "|", 5 + len(GENRES_100K))
    flags = [[genre for genre, flag in zip(GENRES_100K, line[5:], strict=True) if flag.strip() == "1"] for line in lines]
    return _items([(line[0], line[1], [g for g in genres if g != "unknown"]) for line, genres in zip(lines, flags, strict=True)])


def _items(rows: list[tuple[str, str, list[str]]]) -> pl.DataFrame:
    items = pl.DataFrame(rows, schema=ITEM_COLUMNS, orient="row")
    # Film 267 of 100k is called "unknown", without genre: it has no title.
    return items.with_columns(pl.when(pl.col("title") != "unknown").then(pl.col("title").str.strip_chars()).alias("title"))


def _users_1m(path: Path) -> pl.DataFrame:
    rows = [(u, gender, AGES_1M.get(age), _occupation(job)) for u, gender, age, job, _ in _lines(path, "::", 5)]
    return pl.DataFrame(rows, schema=dict.fromkeys(["user_id", "gender", "age_band", "occupation"], pl.String), orient="row")


def _occupation(code: str) -> str | None:
    return OCCUPATIONS_1M[int(code)] if code.isdecimal() and int(code) < len(OCCUPATIONS_1M) else None


def _users_100k(path: Path) -> pl.DataFrame:
    rows = [
        (user, gender, f"{int(age) // 10 * 10}-{int(age) // 10 * 10 + 9}" if age.isdecimal() else None, job)
        for user, age, gender, job, _ in _lines(path, "|", 5)
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(["user_id", "gender", "age_band", "occupation"], pl.String), orient="row")
