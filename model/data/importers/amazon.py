"""Amazon 5-core sequences as S3-Rec distributes them: `Beauty.txt`, one line per user, "user item item ...", in order of time.

There are no times. Titles come from `items.csv` (item_id, asin, title) beside the file, or in a neighbouring folder
`amazon-beauty-titles`.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from model.data.build import Dataset, build_dataset
from model.data.clean import Cleaning
from model.data.errors import UNREADABLE, DataError, first_line
from model.data.schema import EventType
from model.data.times import times_from_order

SEQUENCES = "Beauty.txt"


def recognise(path: Path) -> bool:
    return _sequences(path) is not None


def read(path: Path) -> Dataset:
    """Import `Beauty.txt` or the folder that has it.

    Raises:
        DataError: the file is missing or a line has no item.
    """
    file = _sequences(path)
    if file is None:
        raise DataError(f"{path}: {SEQUENCES} is not there")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    rows = pl.DataFrame({"line": lines}).with_row_index("number", offset=1)
    rows = rows.filter(pl.col("line").str.strip_chars() != "").with_columns(pl.col("line").str.strip_chars().str.split(" "))
    short = rows.filter(pl.col("line").list.len() < 2)
    if short.height:
        raise DataError(f"{file}: line {short.get_column('number')[0]} has no item; expected: user item item ...")
    events = (
        rows.select(pl.col("line").list.first().alias("user_id"), pl.col("line").list.slice(1).alias("item_id"))
        .explode("item_id", empty_as_null=True)
        .with_columns(times_from_order(), pl.lit("review").alias("type"))
    )
    cleaning = Cleaning(events)
    cleaning.missing_user()
    cleaning.missing_item()
    cleaning.refused_ids()
    return build_dataset(
        cleaning.events,
        cleaning.report(),
        name="amazon-beauty",
        source="Amazon product reviews 2014 (McAuley), 5-core Beauty, sequences of S3-Rec (CIKM 2020)",
        licence="research use; not to be redistributed",
        event_types=[EventType(name="review")],
        items=_titles(file),
        timed=False,
    )


def _sequences(path: Path) -> Path | None:
    file = path if path.is_file() else path / SEQUENCES
    return file if file.name == SEQUENCES and file.is_file() else None


def _titles(file: Path) -> pl.DataFrame | None:
    for titles in (file.parent / "items.csv", file.parent.parent / "amazon-beauty-titles" / "items.csv"):
        if titles.is_file():
            try:
                return pl.read_csv(titles, infer_schema=False).select("item_id", "title")
            except UNREADABLE as error:
                raise DataError(f"{titles}: expected columns item_id and title: {first_line(error)}") from error
    return None
