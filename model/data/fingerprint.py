"""A checksum of what a table says, not of how a file encodes it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import polars as pl


def fingerprint(frames: Mapping[str, pl.DataFrame]) -> str:
    """sha256 (64 hex) over names, columns and cells of the frames.

    Row order counts; the order of columns and of frames, Parquet's compression, row groups and polars' chunks do not. Null and
    NaN are both "missing".
    """
    digest = hashlib.sha256()
    for name in sorted(frames):
        frame = frames[name]
        digest.update(f"{name}:{frame.height}\n".encode())
        for column in sorted(frame.columns):
            digest.update(f"{column}\n".encode())
            _feed(digest, frame.get_column(column))
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, cells: pl.Series) -> None:
    if cells.dtype == pl.String:
        # Lengths beside the joined bytes: "ab","c" and "a","bc" differ; -1 tells null from "".
        digest.update(cells.str.len_bytes().cast(pl.Int64).fill_null(-1).to_numpy().astype("<i8").tobytes())
        digest.update("".join(cells.drop_nulls().to_list()).encode())
    elif isinstance(cells.dtype, pl.List):
        digest.update(cells.list.len().cast(pl.Int64).fill_null(-1).to_numpy().astype("<i8").tobytes())
        _feed(digest, cells.drop_nulls().list.explode(empty_as_null=False))
    elif cells.dtype.is_float():
        values = cells.cast(pl.Float64).to_numpy().astype("<f8")  # null becomes NaN
        values[np.isnan(values)] = np.nan  # one bit pattern for every NaN
        digest.update((values + 0.0).tobytes())  # -0.0 + 0.0 is 0.0
    else:
        digest.update(cells.cast(pl.Int64).is_null().to_numpy().tobytes())
        digest.update(cells.cast(pl.Int64).fill_null(0).to_numpy().astype("<i8").tobytes())
