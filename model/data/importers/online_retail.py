"""UCI Online Retail and Online Retail II: the invoices of a gift wholesaler, 2009-12 to 2011-12.

Takes Parquet copies, the published .xlsx workbooks (every sheet) and .csv exports, or a folder with any of them. The workbooks
disagree on column names (Invoice / InvoiceNo, Price / UnitPrice, Customer ID / CustomerID); both are known.

What the rows say and what we make of them:

- An invoice is one basket and one moment: its rows take the time of its first row and stay together (65 invoices straddle a
  minute). Local UK times, stated without a zone, are taken as UTC.
- An invoice number that starts with C is a cancellation: a negative event with the quantity made positive.
- StockCode is stripped and upper-cased: rows without a customer spell the same codes in lower case (85123a, 85123A).
- A product's code starts with five digits. Every other code (POST, DOT, M, D, S, BANK CHARGES, gift vouchers, tests) is not a
  product; the report lists them. 118 products of a partner shop (DCGS...) go with them; a customer bought none of those.
- A price of zero is a free sample or book-keeping, not a choice: dropped.
- The two years overlap: from the first day of a later part on, an earlier part's rows are dropped.
- The title of an item is its most frequent description on kept rows. Stock-takers' notes ("check", "damages") stand on rows
  without a customer, so they never get there.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from model.data.build import Dataset, build_dataset
from model.data.clean import DAY_MS, Cleaning
from model.data.errors import UNREADABLE, DataError, first_line
from model.data.schema import EventType
from model.data.times import milliseconds

NAME = "online-retail"
LICENCE = "CC BY 4.0: Chen, D. (2015) doi 10.24432/C5BW33; Chen, D. (2012) doi 10.24432/C5CG6D; UCI Machine Learning Repository"
SUFFIXES = (".parquet", ".xlsx", ".csv")

# canonical name: names in the sources, lower case, without blanks
COLUMNS = {
    "basket_id": ("invoice", "invoiceno"),
    "item_id": ("stockcode",),
    "title": ("description",),
    "quantity": ("quantity",),
    "timestamp": ("invoicedate",),
    "price": ("price", "unitprice"),
    "user_id": ("customerid",),
    "country": ("country",),
}
PLACEHOLDERS = ("", "?", "UNKNOWN", "NAN", "NONE")
UNSTATED_COUNTRIES = ("UNSPECIFIED", "EUROPEAN COMMUNITY", "")
INVOICES_PER_HOUR = 60


def recognise(path: Path) -> bool:
    return bool(_files(path))


def read(path: Path, now_ms: int | None = None) -> Dataset:
    """Import a file or folder.

    Raises:
        DataError: no file with Online Retail's columns, a damaged file, or a missing column.
    """
    files = _files(path)
    if not files:
        raise DataError(f"{path}: no Parquet, xlsx or csv file with Online Retail's columns ({_wanted()})")
    parts = [part for file in files for sheet in _sheets(file) for part in _parts(_canonical(sheet, file))]
    parts.sort(key=lambda part: part.select(pl.col("timestamp").min()).item() or 0)
    starts = [part.select(pl.col("timestamp").min()).item() for part in parts]
    # The first day of the next part, for each part: from then on the next part tells the same.
    until = [start // DAY_MS * DAY_MS if start is not None else None for start in starts[1:]] + [None]
    rows = pl.concat([part.with_columns(pl.lit(end, pl.Int64).alias("_until")) for part, end in zip(parts, until, strict=True)])
    cleaning = Cleaning(rows)
    _clean(cleaning, now_ms)
    events = cleaning.events
    return build_dataset(
        events,
        cleaning.report(),
        name=NAME,
        source="UCI Machine Learning Repository, Online Retail (352) and Online Retail II (502)",
        licence=LICENCE,
        event_types=[EventType(name="purchase"), EventType(name="cancellation", polarity="negative")],
        items=_titles(events),
        users=_countries(events),
        baskets=True,
        repeats=True,
        notes=[
            "times are UK local times, stated without a zone and taken as UTC; an invoice has the time of its first row",
            "price is pounds sterling per unit; quantity of a cancellation is positive",
            "item_id is the stock code in upper case; country is that of the customer's first invoice",
        ],
    )


def _clean(cleaning: Cleaning, now_ms: int | None) -> None:
    cleaning.drop(
        "overlap of two files",
        "rows of the earlier part from the first day of the later part on: the later part repeats them",
        pl.col("timestamp") >= pl.col("_until"),
    )
    cleaning.events = cleaning.events.drop("_until")
    cleaning.missing_user()
    cleaning.missing_item()
    cleaning.refused_ids()
    cleaning.impossible_time(now_ms)
    cleaning.exact_duplicates()
    cleaning.events = cleaning.events.with_columns(pl.col("item_id").str.strip_chars().str.to_uppercase())
    cleaning.drop(
        "non-product", "stock code does not start with five digits", ~pl.col("item_id").str.contains(r"^\d{5}"), "item_id"
    )
    cancelled = pl.col("basket_id").str.starts_with("C")
    cleaning.events = cleaning.events.with_columns(
        pl.when(cancelled).then(pl.lit("cancellation")).otherwise(pl.lit("purchase")).alias("type"),
        # A cancellation with a positive quantity would be a mistake of ours: made negative here, `amounts` drops it.
        pl.when(cancelled).then(-pl.col("quantity")).otherwise(pl.col("quantity")).alias("quantity"),
    )
    cleaning.drop("free of charge", "price zero: a sample or book-keeping, not a choice", pl.col("price") == 0)
    cleaning.amounts()
    cleaning.merge_basket_rows()
    # A basket is one moment; sorted so that no invoice of the same minute stands between its rows.
    cleaning.events = (
        cleaning.events.with_row_index("_row")
        .with_columns(pl.col("timestamp", "_row").min().over("basket_id"))
        .sort("timestamp", "_row", maintain_order=True)
        .drop("_row")
    )
    cleaning.robots(INVOICES_PER_HOUR)


def _titles(events: pl.DataFrame) -> pl.DataFrame:
    title = pl.col("title").str.strip_chars().str.replace_all(r"\s+", " ")
    return (
        events.select("item_id", title)
        .filter(~pl.col("title").str.to_uppercase().is_in(PLACEHOLDERS))
        .group_by("item_id", "title")
        .len()
        .sort(["len", "title"], descending=[True, False])
        .unique("item_id", keep="first", maintain_order=True)
        .select("item_id", "title")
    )


def _countries(events: pl.DataFrame) -> pl.DataFrame:
    # The first and not the most frequent: an attribute sets the initial state, which must not know the future.
    country = pl.col("country").str.strip_chars()
    stated = pl.when(~country.str.to_uppercase().is_in(UNSTATED_COUNTRIES)).then(country)
    return events.group_by("user_id", maintain_order=True).agg(stated.first().alias("country"))


def _wanted() -> str:
    return ", ".join(" or ".join(names) for names in COLUMNS.values())


def _mapping(columns: list[str]) -> dict[str, str]:
    """canonical name -> the column of this file, for those it has."""
    plain = {column.lower().replace(" ", "").replace("_", "").strip("\ufeff"): column for column in columns}
    return {name: plain[alias] for name, aliases in COLUMNS.items() for alias in aliases if alias in plain}


def _files(path: Path) -> list[Path]:
    """The files to read, of one format only: a folder may hold the same rows as workbook and as its conversion."""
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES and _looks_right(path) else []
    for suffix in SUFFIXES:
        files = sorted(p for p in path.glob("*") if p.suffix.lower() == suffix and _looks_right(p))
        if files:
            return files
    return []


def _looks_right(path: Path) -> bool:
    if path.suffix.lower() == ".xlsx":
        return "retail" in path.name.lower()  # opening a workbook takes seconds: go by its name, `read` checks the columns
    try:
        columns = (
            pl.read_parquet_schema(path) if path.suffix.lower() == ".parquet" else pl.read_csv(path, n_rows=0, encoding="latin-1")
        )
    except UNREADABLE:
        return "retail" in path.name.lower()  # damaged: let `read` say so rather than pass it over
    mapping = _mapping(list(columns) if isinstance(columns, dict) else columns.columns)
    return "basket_id" in mapping and "item_id" in mapping


def _sheets(file: Path) -> list[pl.DataFrame]:
    try:
        if file.suffix.lower() == ".parquet":
            return [pl.read_parquet(file)]
        if file.suffix.lower() == ".csv":
            return [pl.read_csv(file, infer_schema=False, encoding=_encoding(file))]
        sheets = pl.read_excel(file, sheet_id=0, infer_schema_length=0)
        return [sheet for sheet in sheets.values() if sheet.width]
    except ImportError as error:
        raise DataError(f"{file}: reading .xlsx needs the package fastexcel (pip install 'longwave[train]')") from error
    except (Exception, *UNREADABLE) as error:  # fastexcel and polars raise many kinds; each means the file cannot be read
        raise DataError(f"{file}: damaged or not the format its name says: {first_line(error)}") from error


def _encoding(file: Path) -> str:
    # The CSV that UCI serves is UTF-8, copies in circulation are Latin-1 (the pound sign of gift vouchers).
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            if b"\xa3" in block.replace(b"\xc2\xa3", b""):
                return "latin-1"
    return "utf8"


def _canonical(rows: pl.DataFrame, file: Path) -> pl.DataFrame:
    """The sheet with canonical names and types; what cannot be parsed is null."""
    mapping = _mapping(rows.columns)
    for name, aliases in COLUMNS.items():
        if name not in mapping:
            raise DataError(f"{file}: column {' or '.join(aliases)} is missing; the file has {', '.join(rows.columns)}")
    number = pl.col(mapping["user_id"]).cast(pl.Float64, strict=False).cast(pl.Int64, strict=False)
    return rows.select(
        pl.col(mapping["basket_id"]).cast(pl.String).str.strip_chars().str.to_uppercase().alias("basket_id"),
        pl.col(mapping["item_id"]).cast(pl.String).alias("item_id"),
        pl.col(mapping["title"]).cast(pl.String).alias("title"),
        pl.col(mapping["quantity"]).cast(pl.Float64, strict=False).alias("quantity"),
        milliseconds(rows.get_column(mapping["timestamp"])).alias("timestamp"),
        pl.col(mapping["price"]).cast(pl.Float64, strict=False).alias("price"),
        number.cast(pl.String).alias("user_id"),
        pl.col(mapping["country"]).cast(pl.String).alias("country"),
    )


def _parts(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """A file that goes back in time by more than a day is two years glued together (Online Retail II as one csv)."""
    part = (rows.get_column("timestamp").diff().fill_null(0) < -DAY_MS).cum_sum().alias("_part")
    return rows.with_columns(part).partition_by("_part", maintain_order=True, include_key=False)
