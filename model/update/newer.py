"""What has happened since the bundle, in the model's own terms: old rows keep their place, new items get rows behind them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from model.checkpoint import Checkpoint
from model.data.build import Dataset
from model.data.dataset import read_dataset, to_sequences
from model.data.dense import dense_matrix
from model.data.importers import archive
from model.data.importers.table import Mapping, Options, read_meaning
from model.data.schema import VECTOR_PREFIX, EventType
from model.data.sequences import Queries, Sequences, Split
from model.data.splits import clock, every_question, select, split_at
from model.errors import TrainerError
from model.settings import DataSettings
from model.task import asked_on, protocol_of
from model.update.origin import Origin

FEWEST = 20
"""Questions that are enough to judge by. (An interval over users is asked for, too.)"""
KNOWN_SHARE = 0.5
"""At least so much of what was bought before must be of the model's vocabulary, or it is another shop's archive."""
_POLARITY = {1: "positive", 0: "neutral", -1: "negative"}


class NothingNewError(TrainerError, ValueError):
    """The events do not fit the bundle or bring it nothing to learn; the message says which."""


@dataclass(frozen=True)
class Newer:
    """Old and new events.

    Attributes:
        seq: all of them. items: item_id, title, categories, `feature_*`, `vector_*` of the vocabulary in row order.
        old_items: the first so many rows are those of the checkpoint, in its order.
        since_ms: events from here on are new. split: learns from what is before its `cut_ms`; `split.valid` has the new questions
            before it, `split.test` those after it.
        learnable: all questions before the cut, old and new.
        fingerprint: of the data set. left_out: events of types that the model does not know.
    """

    seq: Sequences
    items: pl.DataFrame
    old_items: int
    since_ms: int
    split: Split
    learnable: Queries
    fingerprint: str
    left_out: int

    @property
    def new_events(self) -> npt.NDArray[np.bool_]:
        """(E,)"""
        return clock(self.seq) >= self.since_ms


def read_events(events: Path, origin: Origin, mapping: Path | None = None) -> Dataset:
    """An archive, its event types as the model has them, or a folder that `prepare` wrote.

    Args:
        mapping: for an archive, a TOML file whose table `options` counts.

    Raises:
        DataError: neither is there, or it is damaged.
    """
    if not archive.recognise(events):
        return read_dataset(events)
    names = origin.checkpoint.names
    types = [
        EventType(name=name, polarity=_POLARITY[sign], weight=weight)  # type: ignore[arg-type]
        for name, sign, weight in zip(names["event_types"], names["polarity"], names["weight"], strict=True)
    ]
    options = read_meaning(mapping).options if mapping is not None else Options(source="the event log of a Longwave service")
    if options.repeats is None:
        options = options.model_copy(update={"repeats": origin.repeats})
    return archive.read(events, Mapping(columns={}, event_types=types, options=options))


def newer(dataset: Dataset, origin: Origin, holdout: float) -> Newer:
    """Cut the events into old ones, new ones to learn from and the newest to judge by.

    Args:
        holdout: share of the new positive events, the newest, that is kept for judging.

    Raises:
        NothingNewError: nothing is new, too little is, nothing is old, or the old is not what the model was trained on.
    """
    checkpoint = origin.checkpoint
    since, name = checkpoint.known_until_ms, dataset.manifest.name
    settings = DataSettings(**checkpoint.settings["data"])
    protocol = protocol_of(settings, dataset.manifest)
    if protocol == "loo" or not since:
        raise NothingNewError(f"{origin.folder}: trained by leave-one-out, which has no common time: train it anew instead")
    dataset, left_out = _of_known_types(dataset, checkpoint)
    positive = {t.name for t in dataset.manifest.event_types if t.polarity == "positive"}
    bought = dataset.events.filter(pl.col("type").is_in(positive) & pl.col("item_id").is_not_null())
    old = bought.filter(pl.col("timestamp") < since)
    if not old.height:
        raise NothingNewError(
            f"{name}: has nothing from before {_date(since)}, up to when the bundle knows; an update needs the old users, too: "
            "load the history into the service (`longwave import`), or give all events as a prepared folder"
        )
    share = float(old.get_column("item_id").is_in(checkpoint.item_ids).mean() or 0.0)  # type: ignore[arg-type]
    if share < KNOWN_SHARE:
        raise NothingNewError(
            f"{name}: of another data set: {share:.0%} of what was bought before {_date(since)} is an item of the bundle "
            f"({checkpoint.data['name']}), expected at least {KNOWN_SHARE:.0%}"
        )
    new = np.sort(bought.filter(pl.col("timestamp") >= since).get_column("timestamp").to_numpy())
    if not len(new):
        newest = _date(int(old.get_column("timestamp").to_numpy()[-1]))
        raise NothingNewError(f"{name}: no new events: the newest purchase is of {newest}, the bundle knows up to {_date(since)}")
    cut = int(np.quantile(new, 1 - holdout, method="higher"))
    items = _vocabulary(bought, checkpoint, cut, settings.min_item_events)
    seq = in_the_models_rows(to_sequences(dataset, items), checkpoint)
    questions = every_question(seq, protocol)
    if settings.platform:  # learned to answer there alone, and is to be judged by nothing else
        questions = asked_on(seq, questions, settings.platform)
    split = split_at(seq, protocol, questions, since, cut, filter_seen=not origin.repeats)
    learned = len(split.valid)
    if not learned or len(split.test) < FEWEST:
        raise NothingNewError(
            f"{name}: too little is new since {_date(since)}: {learned} questions to learn from (at least 1 is needed) and "
            f"{len(split.test)} to judge by (at least {FEWEST}); wait for more events"
        )
    return Newer(
        seq,
        _described(dataset, origin, items),
        len(checkpoint.item_ids),
        since,
        split,
        select(questions, questions.position < split.train_end[questions.user]),
        dataset.manifest.fingerprint,
        left_out,
    )


def known_by_old(newer: Newer) -> Sequences:
    """The same events as the model before knows them: new items are outside of its vocabulary."""
    seq = newer.seq
    item = np.where(seq.item < newer.old_items, seq.item, -1).astype(np.int32)
    return replace(seq, item=item, item_ids=seq.item_ids[: newer.old_items])


def _of_known_types(dataset: Dataset, checkpoint: Checkpoint) -> tuple[Dataset, int]:
    """The events of the types that the model knows, declared as it has them, and how many were left out."""
    names = checkpoint.names
    events = dataset.events.filter(pl.col("type").is_in(names["event_types"]))
    types = [
        EventType(name=name, polarity=_POLARITY[sign], weight=weight)  # type: ignore[arg-type]
        for name, sign, weight in zip(names["event_types"], names["polarity"], names["weight"], strict=True)
    ]
    manifest = dataset.manifest.model_copy(update={"event_types": types})
    return replace(dataset, events=events, manifest=manifest), dataset.events.height - events.height


def _vocabulary(bought: pl.DataFrame, checkpoint: Checkpoint, until_ms: int, least: int) -> list[str]:
    """The checkpoint's items in its order, then the new ones that were bought often enough before the cut, by id."""
    counts = bought.filter(pl.col("timestamp") < until_ms).group_by("item_id").len().filter(pl.col("len") >= least)
    known = set(checkpoint.item_ids)
    fresh = [item for item in counts.get_column("item_id").sort().to_list() if item not in known]
    return [*checkpoint.item_ids, *fresh]


def in_the_models_rows(seq: Sequences, checkpoint: Checkpoint) -> Sequences:
    """Platforms and attributes by the rows that the net has for them; what it does not know is missing."""
    names = checkpoint.names
    place = {name: row + 1 for row, name in enumerate(names["platforms"])}
    platform = np.array([0, *(place.get(name, 0) for name in seq.platforms)], np.int32)[seq.platform]
    attributes = np.zeros((seq.users, len(names["attribute_names"])), np.int32)
    for column, (name, values) in enumerate(zip(names["attribute_names"], names["attribute_values"], strict=True)):
        if name in seq.attribute_names:
            here = seq.attribute_names.index(name)
            row = {value: index + 1 for index, value in enumerate(values)}
            lookup = np.array([0, *(row.get(value, 0) for value in seq.attribute_values[here])], np.int32)
            attributes[:, column] = lookup[seq.attributes[:, here]]
    seq = replace(
        seq,
        platform=platform,
        platforms=list(names["platforms"]),
        attributes=attributes,
        attribute_names=list(names["attribute_names"]),
        attribute_values=[list(values) for values in names["attribute_values"]],
    )
    if checkpoint.settings["data"].get("items_only"):
        seq = replace(seq, numbers=np.full_like(seq.numbers, np.nan), text={})
    return seq


def _described(dataset: Dataset, origin: Origin, items: list[str]) -> pl.DataFrame:
    """Titles and categories as the events' own table has them, else as the bundle has them; an archive has those that were said
    while the service ran."""
    frame = pl.DataFrame({"item_id": items}).join(dataset.items, on="item_id", how="left", maintain_order="left")
    fresh = len(items) - len(origin.titles)
    before = pl.DataFrame(
        {"title": [*origin.titles, *[None] * fresh], "categories": [*origin.categories, *[[]] * fresh]},
        schema={"title": pl.String, "categories": pl.List(pl.String)},
    )
    said = pl.when(frame.get_column("categories").list.len().fill_null(0) > 0)
    return frame.with_columns(
        pl.coalesce("title", before.get_column("title")).alias("title"),
        said.then(pl.col("categories")).otherwise(before.get_column("categories")).alias("categories"),
    )


def features_of(newer: Newer, origin: Origin) -> npt.NDArray[np.float32] | None:
    """(N, F) dense item features and vectors, as the model reads them; None where it has none.

    Old items have those that training saw: what has been learned of them was learned of those. (A checkpoint of before does not
    have them; then the events' own count.)

    Raises:
        NothingNewError: the events come without the features or vectors that the model has, or with vectors of another length.
    """
    names = [*origin.features, *(VECTOR_PREFIX + name for name in origin.vectors)]
    missing = [name for name in names if name not in newer.items.columns]
    if missing:
        raise NothingNewError(
            f"the model reads of items {', '.join(names)}, and the items of these events have no {missing[0]}: "
            "give the events as a prepared folder with the same features and vectors"
        )
    for name, width in origin.vectors.items():
        found = newer.items.select(pl.col(VECTOR_PREFIX + name).list.len().max()).item()
        if found is not None and found != width:
            raise NothingNewError(
                f"the items of these events have {VECTOR_PREFIX}{name} of {found} numbers, the model reads {width}"
            )
    features = dense_matrix(newer.items, origin.features, origin.vectors)
    seen = origin.checkpoint.item_features
    if features is not None and seen is not None:
        features[: len(seen)] = seen.numpy()
    return features


def _date(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
