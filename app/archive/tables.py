"""CSV and Parquet files of events, row by row in the words of the API, with a mapping that says which column is what."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from app.errors import ImportFileError

# As `longwave-train prepare` calls them; each may also be called as events call it.
FIELDS: Final = {
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
    "id": "event_id",
}
_NUMBERS: Final = frozenset({"value", "quantity", "price"})
_BATCH_ROWS: Final = 8_192
_1970: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SEPARATORS: Final = {".csv": ",", ".tsv": "\t"}
SUFFIXES: Final = (".parquet", *_SEPARATORS)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a file, the first of which is number `first` (from 1, without a header); `done` is how far it is read, 0 to 1."""

    first: int
    events: list[dict[str, Any]]
    done: float


def read_mapping(options: Sequence[str]) -> dict[str, str]:
    """Field -> column, of options like `user=customer_id`.

    Raises:
        ImportFileError: an option is no such pair, names an unknown field, or one twice.
    """
    fields = FIELDS | {name: name for name in FIELDS.values()}
    mapping: dict[str, str] = {}
    for option in options:
        name, sign, column = option.partition("=")
        if not sign or not column:
            raise ImportFileError(f"column option {option!r}: expected key=column, for instance user=customer_id")
        field = fields.get(name.strip())
        if field is None:
            raise ImportFileError(f"column option {option!r}: {name!r} is unknown; the keys are {', '.join(FIELDS)}")
        if field in mapping:
            raise ImportFileError(f"column option {option!r}: {field} is given twice")
        mapping[field] = column
    return mapping


def read_events(path: Path, mapping: Mapping[str, str], event_type: str | None = None) -> Iterator[Rows]:
    """The rows of a file as events that `validate` takes; what cannot be converted is left for it to refuse.

    Args:
        mapping: field -> column; a field that is not in it is taken from the column of its own name, if there is one.
        event_type: of all events, where no column says it.

    Raises:
        ImportFileError: the file is missing, damaged or of another format, or lacks a column.
    """
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in SUFFIXES:
        raise ImportFileError(f"{path}: expected a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    try:
        batches = _parquet(path, mapping) if suffix == ".parquet" else _csv(path, mapping, _SEPARATORS[suffix])
        first = 1
        unit: dict[str, Callable[[float], int]] = {}
        for batch, done in batches:
            columns = {name: _values(name, batch.column(name), unit) for name in batch.schema.names}
            if event_type is not None:
                columns.setdefault("type", [event_type] * batch.num_rows)
            names = list(columns)
            rows = zip(*columns.values(), strict=True)
            yield Rows(first, [{n: v for n, v in zip(names, row, strict=True) if v is not None} for row in rows], done)
            first += batch.num_rows
    except (OSError, pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise ImportFileError(f"{path}: damaged, not {suffix[1:]}: {str(error).splitlines()[0]}") from error


def _parquet(path: Path, mapping: Mapping[str, str]) -> Iterator[tuple[pa.RecordBatch, float]]:
    with pq.ParquetFile(path) as parquet:
        taken = _taken(path, parquet.schema_arrow.names, mapping)
        total, read = parquet.metadata.num_rows, 0
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(taken.values()))):
            read += batch.num_rows
            yield _renamed(batch, taken), read / max(total, 1)


def _csv(path: Path, mapping: Mapping[str, str], separator: str) -> Iterator[tuple[pa.RecordBatch, float]]:
    with path.open(newline="", encoding="utf-8-sig") as text:
        header = next(csv.reader(text, delimiter=separator), [])
    taken = _taken(path, header, mapping)
    size = path.stat().st_size
    with path.open("rb") as raw:
        reader = pyarrow.csv.open_csv(
            raw,
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                include_columns=list(dict.fromkeys(taken.values())),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
                null_values=[""],
            ),
        )
        for batch in reader:
            yield _renamed(batch, taken), min(1.0, raw.tell() / size)


def _taken(path: Path, there: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    taken = {name: name for name in FIELDS.values() if name in there} | dict(mapping)
    for field, column in taken.items():
        if column not in there:
            raise ImportFileError(f"{path}: column {column!r} (for {field}) is missing; the file has {', '.join(there)}")
    for field in ("user_id", "timestamp"):
        if field not in taken:
            raise ImportFileError(f"{path}: which column is the {field}? it has {', '.join(there)} (--column {field}=...)")
    return taken


def _renamed(batch: pa.RecordBatch, taken: Mapping[str, str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([batch.column(column) for column in taken.values()], list(taken))


def _values(field: str, column: pa.Array, unit: dict[str, Callable[[float], int]]) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if field == "timestamp":
        return _times(column, unit)
    values = column.to_pylist()
    if field in _NUMBERS:
        return [_number(value) for value in values]
    return [_text(value) for value in values]


def _text(value: Any) -> Any:
    if isinstance(value, bytes):  # a text, by a writer that does not say so
        value = _decoded(value)
    if value is None or value == "":
        return None
    if isinstance(value, float):  # an id column with gaps is often float ("17850.0"): the number is meant, not its spelling
        return str(int(value)) if value.is_integer() else None if value != value else str(value)
    return value if isinstance(value, str | bytes | list | dict) else str(value)


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _number(value: Any) -> Any:
    if value is None or value != value:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value


def _times(column: pa.Array, unit: dict[str, Callable[[float], int]]) -> list[Any]:
    """Unix milliseconds; what is no time stays as it is. Times without a zone are UTC; the unit of numbers is the file's."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return list(column.cast(pa.timestamp("ms", getattr(column.type, "tz", None)), safe=False).cast(pa.int64()).to_pylist())
    values = [_as_number(value) for value in column.to_pylist()]
    numbers = [abs(value) for value in values if _is_number(value)]
    if numbers and "timestamp" not in unit:
        unit["timestamp"] = _unit(statistics.median(numbers))
    scale = unit.get("timestamp", round)
    return [_moment(value) if isinstance(value, str) else scale(value) if _is_number(value) else value for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _as_number(value: Any) -> Any:
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, bytes):
        value = _decoded(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            try:
                number = float(value)
            except ValueError:
                return value
            return number if number - number == 0 else value
    return None if value != value else value


def _unit(median: float) -> Callable[[float], int]:
    # 1e11 s is the year 5138, 1e11 ms is 1973: a factor of a thousand apart, so no real date is ambiguous.
    if median < 1e11:
        return lambda value: round(value * 1000)
    per_ms = next((scale for bound, scale in ((1e14, 1), (1e17, 1_000)) if median < bound), 1_000_000)
    return lambda value: int(value // per_ms)


def _moment(text: str) -> Any:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return text
    # Not by its seconds: as floats some of them are less than they say, by one millisecond.
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _1970) // timedelta(milliseconds=1)
