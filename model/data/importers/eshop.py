"""UCI Clickstream data for online shopping: which products the visitors of a clothing shop looked at, April to August 2008.

Takes the published .zip or the .csv in it (`;` between columns), or a folder with either. What we make of a row:

- A visitor is known for one session: the session is the user, its country (a number of the source's list, 29 is Poland) an
  attribute. A click on a product is a view.
- Days are known, times of day are not. The sessions of a day are spread evenly over it in the order of their ids, and a session's
  clicks are a second apart: the order is that of the source, the times within a day are made up.
- The category of a product is the main page that it most often stands on (one product of 217 stands on two).
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import polars as pl

from model.data.build import Dataset, build_dataset
from model.data.clean import DAY_MS, Cleaning
from model.data.errors import UNREADABLE, DataError, first_line
from model.data.schema import EventType

NAME = "eshop-clickstream"
LICENCE = "CC BY 4.0: UCI Machine Learning Repository, Clickstream data for online shopping, doi 10.24432/C5QK7X"
CATEGORIES = {"1": "trousers", "2": "skirts", "3": "blouses", "4": "sale"}
COLUMNS = ("year", "month", "day", "order", "country", "session ID", "page 1 (main category)", "page 2 (clothing model)")


def read(path: Path) -> Dataset:
    """Import a file or folder. Raises DataError: there is none, it is damaged, or a column is missing."""
    file = _file(path)
    if file is None:
        raise DataError(f"{path}: no clickstream of the clothing shop (a .csv or .zip with 'shop' in its name)")
    cleaning = Cleaning(_rows(file))
    cleaning.missing_user()
    cleaning.missing_item()
    cleaning.refused_ids()
    cleaning.impossible_time()
    events = cleaning.events
    return build_dataset(
        events,
        cleaning.report(),
        name=NAME,
        source="UCI Machine Learning Repository, Clickstream data for online shopping (553)",
        licence=LICENCE,
        event_types=[EventType(name="view")],
        items=_items(events),
        users=events.group_by("user_id", maintain_order=True).agg(pl.col("country").first()),
        repeats=True,
        notes=["days are those of the source; times within a day are made up: sessions spread over it in the order of their ids"],
    )


def _rows(file: Path) -> pl.DataFrame:
    try:
        if file.suffix.lower() == ".zip":
            with zipfile.ZipFile(file) as archive:
                (name,) = [name for name in archive.namelist() if name.lower().endswith(".csv")]
                raw = pl.read_csv(archive.read(name), separator=";", infer_schema=False)
        else:
            raw = pl.read_csv(file, separator=";", infer_schema=False)
    except (ValueError, zipfile.BadZipFile, *UNREADABLE) as error:
        raise DataError(f"{file}: damaged, or not the published file: {first_line(error)}") from error
    for column in COLUMNS:
        if column not in raw.columns:
            raise DataError(f"{file}: column {column!r} is missing; the file has {', '.join(raw.columns)}")
    number = {name: pl.col(name).cast(pl.Int64, strict=False) for name in COLUMNS[:4]}
    day = pl.date(number["year"], number["month"], number["day"]).cast(pl.Datetime("ms")).dt.epoch("ms")
    rows = raw.select(
        pl.col("session ID").alias("user_id"),
        pl.col("page 2 (clothing model)").alias("item_id"),
        pl.lit("view").alias("type"),
        day.alias("_day"),
        number["order"].alias("_order"),
        pl.col("session ID").cast(pl.Int64, strict=False).alias("_session"),
        pl.col("page 1 (main category)").replace(CATEGORIES).alias("category"),
        pl.col("country"),
    )
    place = pl.col("_session").rank("dense").over("_day") - 1
    spread = (place * DAY_MS // (pl.col("_session").n_unique().over("_day") + 1)).cast(pl.Int64)
    return rows.with_columns((pl.col("_day") + spread + 1000 * pl.col("_order")).alias("timestamp"))


def _items(events: pl.DataFrame) -> pl.DataFrame:
    counts = events.drop_nulls("category").group_by("item_id", "category").len()
    best = counts.sort(["len", "category"], descending=[True, False]).unique("item_id", keep="first", maintain_order=True)
    return best.select("item_id", pl.concat_list("category").alias("categories"))


def _file(path: Path) -> Path | None:
    if path.is_file():
        fits = path.suffix.lower() in (".csv", ".zip") and "shop" in path.name.lower()
        return path if fits else None
    return next((file for file in sorted(path.glob("*")) if file.is_file() and _file(file)), None)
