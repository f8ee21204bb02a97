"""Any spelling of time to unix milliseconds."""

from __future__ import annotations

import polars as pl

from model.data.schema import SYNTHETIC_ORIGIN_MS

# Text without a zone is taken as UTC.
FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    # %y before %Y: chrono reads the year 10 from "12/1/10" with %Y.
    "%m/%d/%y %H:%M",
    "%m/%d/%Y %H:%M",
)


def milliseconds(times: pl.Series) -> pl.Series:
    """Unix milliseconds (Int64) of a column of times; null where a cell is missing or no time.

    Numbers are seconds, milliseconds, microseconds or nanoseconds since 1970, by the magnitude of the column's median (a column
    has one unit). Text is ISO 8601 with or without a zone, the American m/d/y H:M of the UCI exports, or a number as text.
    """
    if times.dtype.is_temporal():
        return times.cast(pl.Datetime("ms")).dt.epoch("ms")
    if times.dtype.is_numeric():
        return _from_numbers(times)
    text = times.cast(pl.String).str.strip_chars()
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.count() > text.count() // 2:
        return _from_numbers(numbers)
    plain = pl.col("t").str.replace("T", " ", literal=True).str.replace("Z$", "+00:00")
    zoned = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%z", strict=False, time_unit="ms").dt.replace_time_zone(None)
    parsed = [plain.str.to_datetime(form, strict=False, time_unit="ms") for form in FORMATS]
    day = plain.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("ms"))
    return text.to_frame("t").select(pl.coalesce(zoned, *parsed, day).dt.epoch("ms")).to_series()


def times_from_order() -> pl.Expr:
    """Made-up times for data without any: one second apart within each user, in the order of the rows."""
    return (SYNTHETIC_ORIGIN_MS + 1000 * pl.int_range(pl.len(), dtype=pl.Int64).over("user_id")).alias("timestamp")


def _from_numbers(numbers: pl.Series) -> pl.Series:
    values = numbers.cast(pl.Float64)
    finite = values.filter(values.is_finite()).abs()
    median = finite.median() if len(finite) else 0.0
    assert isinstance(median, float)
    # 1e11 s is the year 5138, 1e11 ms is 1973: a factor of a thousand apart, so no real date is ambiguous.
    per_ms = next((scale for bound, scale in ((1e11, 1e3), (1e14, 1.0), (1e17, 1e-3)) if median < bound), 1e-6)
    exact = numbers if numbers.dtype.is_integer() else values.round()
    if per_ms == 1.0:
        return exact.cast(pl.Int64, strict=False)
    return (values * per_ms).cast(pl.Int64, strict=False)
