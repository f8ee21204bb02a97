"""The canonical data set: one folder of Parquet that every importer writes and every trainer reads.

events.parquet   one row per event, stably sorted by time; ties keep the order of the source
items.parquet    item_id, title, categories, dense features named `feature_*`, and vectors named `vector_*`
users.parquet    user_id and one text column per attribute
manifest.json    what the columns mean; counts; the fingerprint of the content
cleaning.json    what was dropped or merged on the way, and why
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import ValidationError

from model.data.build import Dataset, check
from model.data.clean import CleaningReport
from model.data.codes import basket_numbers, item_keys, row_numbers
from model.data.errors import UNREADABLE, DataError, first_line
from model.data.fingerprint import fingerprint
from model.data.schema import DatasetManifest
from model.data.sequences import Int32, Sequences
from model.files import OutputError, check_place

__all__ = ["Dataset", "check_replaceable", "load_sequences", "read_dataset", "to_sequences", "write_dataset"]

FILES = ("events.parquet", "items.parquet", "users.parquet")
WRITING, OLD = ".{}.writing-", ".old"
"""How the name of what is being written begins, and how that of what it replaces ends until it is in its place."""


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """Write the folder whole or not at all; an older data set there is replaced.

    Raises:
        DataError: `folder` exists and is not a data set; nothing is touched.
        OutputError: it cannot be written; what was there is still there.
    """
    folder = Path(os.path.abspath(folder))
    check_replaceable(folder)
    try:
        _write(dataset, folder)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise OutputError(f"{folder}: cannot be written: {first_line(error)}") from error


def _write(dataset: Dataset, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _put_right(folder)
    staging = Path(tempfile.mkdtemp(prefix=WRITING.format(folder.name), dir=folder.parent))
    writing = os.open(staging, os.O_RDONLY)
    try:
        with suppress(OSError):  # there are file systems without
            fcntl.flock(writing, fcntl.LOCK_EX)  # for `_put_right`: released when this process dies, however it does
        staging.chmod(0o755)  # mkdtemp makes it 0700, which a container of another user could not read
        for file, frame in zip(FILES, (dataset.events, dataset.items, dataset.users), strict=True):
            frame.write_parquet(staging / file, compression="zstd")
        (staging / "cleaning.json").write_text(dataset.cleaning.to_json(), encoding="utf-8")
        (staging / "manifest.json").write_text(dataset.manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(staging.with_name(staging.name + OLD))
        staging.rename(folder)
        shutil.rmtree(staging.with_name(staging.name + OLD), ignore_errors=True)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        os.close(writing)


def _put_right(folder: Path) -> None:
    """Clear up behind a process that was killed while it wrote this data set: an older one goes back to its place.

    Between two renames there is none in its place for a moment; what a process leaves behind then is as large as two.
    """
    for left in list(folder.parent.glob(f"{glob.escape(WRITING.format(folder.name))}*")):
        with suppress(OSError):  # another's, or cleared up by another meanwhile
            staging = left.with_suffix("") if left.suffix == OLD else left
            if not left.is_dir() or _strangers(left) or not _unlocked(staging):
                continue
            if left.suffix == OLD and not folder.exists():
                left.rename(folder)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _unlocked(folder: Path) -> bool:
    """Whether no process is writing it."""
    if not folder.exists():
        return True
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(opened)
    return True


def check_replaceable(folder: Path) -> None:
    """Refuse to write where anything but an older data set lies.

    Raises:
        DataError: `folder` is a file, or has files that no data set has.
        OutputError: the folder that it lies in is a file, or cannot be written.
    """
    check_place(Path(os.path.abspath(folder)).parent)  # where it is written first
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file, expected a folder; not overwritten")
    if strangers := _strangers(folder):
        raise DataError(f"{folder}: exists and is not a data set (it has {strangers[0]}); not overwritten")


def _strangers(folder: Path) -> list[str]:
    """What lies in a folder and is of no data set."""
    return sorted({entry.name for entry in folder.iterdir()} - {*FILES, "manifest.json", "cleaning.json"})


def read_dataset(folder: Path) -> Dataset:
    """Read a folder that `write_dataset` wrote and check it against its own fingerprint.

    Raises:
        DataError: a file is missing, damaged or not what the manifest says, a column is missing or of another type.
    """
    folder = Path(folder)
    if not folder.exists():
        with suppress(OSError):  # a place that cannot be written to is as it is
            _put_right(Path(os.path.abspath(folder)))
    try:
        manifest = DatasetManifest.model_validate_json(_read_text(folder / "manifest.json"))
        cleaning = CleaningReport.from_json(_read_text(folder / "cleaning.json"))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{folder / 'manifest.json'}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{folder / 'cleaning.json'}: not a cleaning report: {error!r}") from error
    events, items, users = (_read_parquet(folder / file) for file in FILES)
    dataset = Dataset(events, items, users, manifest, cleaning)
    check(dataset, str(folder))
    found = fingerprint({"events": events, "items": items, "users": users})
    if found != manifest.fingerprint:
        raise DataError(
            f"{folder}: content does not match manifest.json (fingerprint {found[:12]}, expected {manifest.fingerprint[:12]}): "
            "files were changed or mixed; prepare the data set again"
        )
    return dataset


def to_sequences(
    dataset: Dataset,
    vocabulary: Sequence[str] | None = None,
    vocabulary_until_ms: int | None = None,
    min_item_events: int = 1,
) -> Sequences:
    """Every user's events as flat arrays: users sorted by id, each user's events in stable time order.

    Args:
        vocabulary: the items to know, in row order. Default: those with at least `min_item_events` positive events (before
            `vocabulary_until_ms`, if given), sorted by id. Events of other items stay, with item -1 and their key.

    A basket is a run of consecutive events of a user with one `basket_id`: an event without one is a basket of its own, and an id
    that comes back after other events starts a new basket (arrival order is the only order there is when serving).

    Raises:
        DataError: `vocabulary` names an item twice, or no item is left in it.
    """
    types = dataset.manifest.event_types
    events = dataset.events.sort("user_id", maintain_order=True)
    if vocabulary is None:
        vocabulary = _vocabulary(dataset, vocabulary_until_ms, min_item_events)
    item_ids = list(vocabulary)
    if not item_ids:
        raise DataError("the vocabulary is empty")
    if len(set(item_ids)) != len(item_ids):
        raise DataError("the vocabulary names an item twice")
    platforms = events.get_column("platform").drop_nulls().unique().sort().to_list()
    users = events.group_by("user_id", maintain_order=True).len()
    offsets = np.concatenate([[0], np.cumsum(users.get_column("len").to_numpy())]).astype(np.int64)
    text = events.get_column("text")
    text_rows = text.is_not_null().arg_true()
    numbers = events.select(pl.col("value", "quantity", "price").fill_null(np.nan)).to_numpy().astype(np.float32)
    names, values, attributes = _attributes(dataset, users.select("user_id"))
    return Sequences(
        user_ids=users.get_column("user_id").to_list(),
        item_ids=item_ids,
        offsets=offsets,
        item=row_numbers(events.get_column("item_id"), item_ids),
        item_key=item_keys(events.get_column("item_id")),
        type=row_numbers(events.get_column("type"), [t.name for t in types]),
        time=events.get_column("timestamp").to_numpy().astype(np.int64),
        numbers=np.ascontiguousarray(numbers),
        platform=row_numbers(events.get_column("platform"), platforms) + np.int32(1),
        basket=basket_numbers(events, offsets),
        text=dict(zip(text_rows.to_list(), text.gather(text_rows).to_list(), strict=True)),
        event_types=[t.name for t in types],
        polarity=np.array([{"positive": 1, "neutral": 0, "negative": -1}[t.polarity] for t in types], dtype=np.int32),
        weight=np.array([t.weight for t in types], dtype=np.float32),
        platforms=platforms,
        attribute_names=names,
        attribute_values=values,
        attributes=attributes,
    )


def load_sequences(
    folder: Path, vocabulary: Sequence[str] | None = None, vocabulary_until_ms: int | None = None, min_item_events: int = 1
) -> Sequences:
    """`to_sequences` of the data set in a folder."""
    return to_sequences(read_dataset(folder), vocabulary, vocabulary_until_ms, min_item_events)


def _vocabulary(dataset: Dataset, until_ms: int | None, min_item_events: int) -> list[str]:
    """Raises DataError if no item is left."""
    name = dataset.manifest.name
    positive = [t.name for t in dataset.manifest.event_types if t.polarity == "positive"]
    events = dataset.events.filter(pl.col("type").is_in(positive) & pl.col("item_id").is_not_null())
    if not events.height:
        raise DataError(f"{name}: has no positive event with an item; the vocabulary is empty")
    known = events if until_ms is None else events.filter(pl.col("timestamp") < until_ms)
    if not known.height:
        raise DataError(
            f"{name}: none of {events.height:,} positive events lies before the validation part, to be trained on: "
            'too few events, or too many of one moment; use more data, another data.valid_quantile, or data.protocol = "loo"'
        )
    counts = known.group_by("item_id").len().filter(pl.col("len") >= min_item_events)
    if not counts.height:
        raise DataError(f"{name}: no item has {min_item_events} positive events to train on; lower data.min_item_events")
    return counts.get_column("item_id").sort().to_list()


def _attributes(dataset: Dataset, users: pl.DataFrame) -> tuple[list[str], list[list[str]], Int32]:
    """Names, sorted values of each, and (U, A) 0 for missing, i for `values[i - 1]`."""
    names = dataset.manifest.user_attributes
    frame = users.join(dataset.users, on="user_id", how="left", maintain_order="left")
    values = [frame.get_column(name).drop_nulls().unique().sort().to_list() for name in names]
    columns = [row_numbers(frame.get_column(name), known) + np.int32(1) for name, known in zip(names, values, strict=True)]
    return names, values, np.stack(columns, axis=1) if columns else np.zeros((users.height, 0), dtype=np.int32)


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: not there; expected a folder written by `longwave-train prepare`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: damaged, not JSON: {error}") from error
    return text


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: not there; the data set is incomplete") from error
    except UNREADABLE as error:
        raise DataError(f"{path}: damaged, not Parquet: {first_line(error)}") from error
