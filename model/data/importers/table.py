"""Any CSV or Parquet table of events, with a mapping that says which column is what.

The mapping is given as options (`user=customer_id`) or as a TOML file; a key may also be called as
the service's events call it (user_id, item_id, timestamp, session_id, basket_id):

    [columns]               # user, and item or text, are needed; the rest is taken when given
    user = "customer_id"
    item = "sku"
    time = "bought_at"      # without it, the order of the rows is the time
    basket = "order_no"     # also: type, value, quantity, price, platform, session, text, title, category

    [[event_types]]         # optional; a type that is not listed is positive with weight 1
    name = "return"
    polarity = "negative"

    [options]               # optional
    name = "my-shop"
    repeats = true          # default: whether at least one event in twenty repeats an earlier (user, item)
    robots_per_hour = 1000  # 0 switches the rule off
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.data.build import Dataset, build_dataset
from model.data.clean import Cleaning
from model.data.errors import UNREADABLE, DataError, first_line
from model.data.schema import EventType
from model.data.times import milliseconds, times_from_order

CANONICAL = {
    "user": "user_id",
    "item": "item_id",
    "type": "type",
    "time": "timestamp",
    "value": "value",
    "quantity": "quantity",
    "price": "price",
    "platform": "platform",
    "session": "session_id",
    "basket": "basket_id",
    "text": "text",
    "title": "title",
    "category": "category",
}
KEYS = {key: key for key in CANONICAL} | {name: key for key, name in CANONICAL.items()}
NUMBERS = ("value", "quantity", "price")
REPEATS_FROM = 0.05


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Options(_Strict):
    name: str | None = None
    source: str = "a table of the user's own"
    licence: str = "not stated"
    repeats: bool | None = None
    robots_per_hour: int = Field(default=1000, ge=0)


class Mapping(_Strict):
    """Which column is what; see the module's text."""

    columns: dict[str, str]
    event_types: list[EventType] = []
    options: Options = Options()


def read_mapping(path: Path | None, columns: list[str]) -> Mapping:
    """The mapping of a TOML file with `key=column` options over it.

    Raises:
        DataError: the file is missing or not TOML, an unknown key, a key given twice, or no user, item or text column.
    """
    given: dict[str, str] = {}
    for option in columns:
        key, sign, column = option.partition("=")
        if not sign or not column:
            raise DataError(f"column option {option!r}: expected key=column, for instance user=customer_id")
        _add(given, key.strip(), column)
    mapping = read_meaning(path)
    stated: dict[str, str] = {}
    for key, column in mapping.columns.items():
        _add(stated, key, column)
    mapping = mapping.model_copy(update={"columns": stated | given})
    if "user" not in mapping.columns or not {"item", "text"} & mapping.columns.keys():
        raise DataError(
            "mapping: a table needs at least the columns user, and item or text (--column user=... --column item=...)"
        )
    return mapping


def read_meaning(path: Path | None) -> Mapping:
    """A TOML file's mapping as it stands, for a source whose columns are known. Raises DataError like `read_mapping`."""
    raw: dict[str, object] = {}
    if path is not None:
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise DataError(f"{path}: cannot be read as TOML: {error}") from error
    try:
        return Mapping.model_validate({"columns": {}, **raw})
    except ValidationError as error:
        said = error.errors()[0]
        raise DataError(f"{path or 'mapping'}: {'.'.join(map(str, said['loc']))}: {said['msg']}") from error


def _add(columns: dict[str, str], key: str, column: str) -> None:
    if key not in KEYS:
        raise DataError(f"mapping: {key!r} is unknown; the keys are {', '.join(CANONICAL)}")
    if KEYS[key] in columns:
        raise DataError(f"mapping: {KEYS[key]} is given twice, as {columns[KEYS[key]]!r} and as {column!r}")
    columns[KEYS[key]] = column


def read(path: Path, mapping: Mapping, now_ms: int | None = None) -> Dataset:
    """Import one .csv, .tsv or .parquet file.

    Raises:
        DataError: the file is missing, damaged or of another format, or a mapped column is not in it.
    """
    return build(_scan(path, mapping), mapping, path.stem, now_ms)


def build(
    rows: pl.DataFrame,
    mapping: Mapping,
    name: str,
    now_ms: int | None = None,
    users: pl.DataFrame | None = None,
    items: pl.DataFrame | None = None,
) -> Dataset:
    """A data set of rows with canonical column names, cleaned by the rules for data that nothing is known about.

    Args:
        mapping: its event types and options count.
        name: where the mapping has none.
        users: attributes, where they are known; of users that have events left.
        items: titles, categories and features, where they are known; of items that have events left. Otherwise the rows' own.
    """
    timed = "timestamp" in rows.columns
    events = rows.with_columns(
        *[pl.col(c).cast(pl.Float32, strict=False).fill_nan(None) for c in NUMBERS if c in rows.columns],
        milliseconds(rows.get_column("timestamp")).alias("timestamp") if timed else times_from_order(),
        *([] if "type" in rows.columns else [pl.lit("event").alias("type")]),
        *([] if "item_id" in rows.columns else [pl.lit(None, pl.String).alias("item_id")]),
    )
    cleaning = Cleaning(events)
    cleaning.missing_user()
    cleaning.missing_item()
    cleaning.drop("missing type", "the type of the event is empty", pl.col("type").is_null())
    cleaning.refused_ids()
    if timed:
        cleaning.impossible_time(now_ms)
        cleaning.exact_duplicates()
    for column in ("quantity", "price"):
        if column not in cleaning.events.columns:
            cleaning.events = cleaning.events.with_columns(pl.lit(None, pl.Float32).alias(column))
    cleaning.amounts()
    if "basket_id" in events.columns:
        cleaning.merge_basket_rows()
    if timed and mapping.options.robots_per_hour:
        cleaning.robots(mapping.options.robots_per_hour)
    events = cleaning.events
    declared = {event_type.name for event_type in mapping.event_types}
    others = [name for name in events.get_column("type").unique().sort() if name not in declared]
    repeated = events.filter(pl.col("item_id").is_not_null()).select(
        pl.struct("user_id", "item_id").is_first_distinct().not_().mean()
    )
    repeats = mapping.options.repeats
    if users is not None:
        users = users.join(events.select(pl.col("user_id").unique()), on="user_id", how="semi")
    if items is not None:
        items = items.join(events.select(pl.col("item_id").unique()), on="item_id", how="semi")
    return build_dataset(
        events,
        cleaning.report(),
        name=mapping.options.name or name,
        source=mapping.options.source,
        licence=mapping.options.licence,
        event_types=[*mapping.event_types, *(EventType(name=name) for name in others)],
        items=_items(events) if items is None else items,
        users=users,
        baskets="basket_id" in events.columns,
        timed=timed,
        repeats=(repeated.item() or 0.0) >= REPEATS_FROM if repeats is None else repeats,
    )


def _scan(path: Path, mapping: Mapping) -> pl.DataFrame:
    """The mapped columns only, under canonical names, ids and words as text; streamed, so other columns cost nothing."""
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".csv", ".tsv", ".parquet"):
        raise DataError(f"{path}: expected a .csv, .tsv or .parquet file")
    try:
        if suffix == ".parquet":
            lazy = pl.scan_parquet(path)
        else:
            lazy = pl.scan_csv(path, infer_schema=False, separator="\t" if suffix == ".tsv" else ",")
        schema = lazy.collect_schema()
        for key, column in mapping.columns.items():
            if column not in schema.names():
                raise DataError(f"{path}: column {column!r} (for {key}) is missing; the file has {', '.join(schema.names())}")
        taken = []
        for key, column in mapping.columns.items():
            name = CANONICAL[key]
            cell = pl.col(column)
            if name not in (*NUMBERS, "timestamp"):
                # An id column with gaps is often float ("17850.0"): the number is meant, not its spelling.
                whole = cell.cast(pl.Int64, strict=False) if schema[column].is_float() else cell
                cell = whole.cast(pl.String)
            taken.append(cell.alias(name))
        return lazy.select(taken).collect(engine="streaming")
    except UNREADABLE as error:
        raise DataError(f"{path}: damaged, not {suffix[1:]}: {first_line(error)}") from error


def _items(events: pl.DataFrame) -> pl.DataFrame | None:
    """The most frequent title of each item, and all its categories ("a|b" is two)."""
    described = [column for column in ("title", "category") if column in events.columns]
    rows = events.filter(pl.col("item_id").is_not_null())
    if not described or not rows.height:
        return None
    items = rows.select(pl.col("item_id").unique().sort())
    if "title" in described:
        counts = rows.drop_nulls("title").group_by("item_id", "title").len()
        best = counts.sort(["len", "title"], descending=[True, False]).unique("item_id", keep="first", maintain_order=True)
        items = items.join(best.select("item_id", "title"), on="item_id", how="left")
    if "category" in described:
        lists = rows.drop_nulls("category").select("item_id", pl.col("category").str.split("|")).explode("category")
        lists = lists.group_by("item_id").agg(pl.col("category").unique().sort().alias("categories"))
        items = items.join(lists, on="item_id", how="left")
    return items
