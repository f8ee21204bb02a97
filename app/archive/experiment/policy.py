"""A target policy's file: how likely it would have shown each of the items that were shown, in the place where it stood."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.archive.experiment.keys import Keys, column_keys, pair_keys, places_in
from app.errors import ReportError

_COLUMNS: Final = {"recommendation_id": pa.large_string(), "item_id": pa.large_string(), "probability": pa.float64()}
_BATCH_ROWS: Final = 65_536


@dataclass(frozen=True, slots=True)
class Policy:
    """(P,) pairs of list and item, sorted, with their probabilities; a pair that is not here has none."""

    pair_key: Keys
    probability: NDArray[np.float64]

    def of(self, pairs: Keys) -> NDArray[np.float64]:
        at = places_in(self.pair_key, pairs)
        return np.where(at >= 0, np.append(self.probability, 0.0)[at], 0.0)


def read_policy(path: Path) -> Policy:
    """The policy in a .parquet or .csv file with the columns recommendation_id, item_id and probability.

    Raises:
        ReportError: it cannot be read, lacks a column or a value, names a pair twice, or a probability is none.
    """
    pairs, probabilities = [np.empty(0, np.uint64)], [np.empty(0)]
    first = 1
    try:
        for batch in _batches(path):
            for name in _COLUMNS:
                if batch.column(name).null_count:
                    row = first + int(np.flatnonzero(batch.column(name).is_null().to_numpy(zero_copy_only=False))[0])
                    raise ReportError(f"{path}: row {row} has no {name}")
            chances = batch.column("probability").to_numpy()
            wrong = np.flatnonzero(~((chances >= 0) & (chances <= 1)))
            if len(wrong):
                raise ReportError(f"{path}: row {first + wrong[0]}: {chances[wrong[0]]} is no probability (0 to 1)")
            pairs.append(pair_keys(column_keys(batch.column("recommendation_id")), column_keys(batch.column("item_id"))))
            probabilities.append(chances)
            first += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise ReportError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    keys = np.concatenate(pairs)
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(again):
        raise ReportError(f"{path}: row {1 + order[again[0] + 1]} has the list and item of row {1 + order[again[0]]}")
    return Policy(keys[order], np.concatenate(probabilities)[order])


def _batches(path: Path) -> pa.RecordBatchReader | list[pa.RecordBatch]:
    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as parquet:
            _demand(path, parquet.schema_arrow.names)
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(_COLUMNS)):
                yield _typed(batch)
    elif path.suffix.lower() == ".csv":
        options = pyarrow.csv.ConvertOptions(column_types=_COLUMNS, strings_can_be_null=True, quoted_strings_can_be_null=False)
        with pyarrow.csv.open_csv(path, convert_options=options) as reader:
            _demand(path, reader.schema.names)
            for batch in reader:
                yield _typed(batch)
    else:
        raise ReportError(f"{path}: expected a .parquet or .csv file")


def _demand(path: Path, names: list[str]) -> None:
    lacking = [name for name in _COLUMNS if name not in names]
    if lacking:
        raise ReportError(f"{path}: has no column {lacking[0]}; a policy has {', '.join(_COLUMNS)}")


def _typed(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pc.cast(batch.column(name), kind) for name, kind in _COLUMNS.items()], names=list(_COLUMNS)
    )
