"""A prepared data set made ready for one model: sequences, split, training queries, text embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from model.data.build import Dataset
from model.data.dataset import read_dataset, to_sequences
from model.data.dense import dense_matrix
from model.data.schema import DatasetManifest
from model.data.sequences import NUMBERS, Queries, Sequences, Split
from model.data.splits import by_time, leave_one_out, next_basket, select, training_queries
from model.inputs import Inputs
from model.labels import Labels, item_labels
from model.nets import ModelConfig
from model.settings import ConfigError, DataSettings, Settings
from model.text import TextEncoder


@dataclass(frozen=True)
class Task:
    """What is learned from and asked.

    Attributes:
        items: the vocabulary in row order: item_id, title, categories, ...
        labels: what items are about, or None where nothing says it.
        item_of_row: (E,) the item id of every event, in or out of the vocabulary; None without one.
        item_features: (N, F) or None: numbers by `feature_names`, then vectors, so long as `vectors` says by their names.
    """

    seq: Sequences
    split: Split
    train_queries: Queries
    inputs: Inputs
    items: pl.DataFrame
    item_of_row: list[str | None]
    item_text: np.ndarray | None
    item_features: np.ndarray | None
    feature_names: list[str]
    vectors: dict[str, int]
    data: dict[str, Any]
    repeats: bool
    labels: Labels | None

    def model_config(self, settings: Settings) -> ModelConfig:
        """The net's configuration: sizes from the data, the rest from the settings."""
        seq, chosen = self.seq, dict(settings.model)
        if not self.repeats:
            chosen["repeats"] = 0
        return ModelConfig(
            items=seq.items,
            event_types=len(seq.event_types),
            platforms=len(seq.platforms),
            text_width=0 if self.item_text is None else self.item_text.shape[1],
            feature_width=0 if self.item_features is None else self.item_features.shape[1],
            attribute_sizes=tuple(len(values) for values in seq.attribute_values),
            type_weights=tuple((seq.polarity * seq.weight).tolist()),
            number_edges=number_edges(seq, self.split),
            **chosen,
        )


def load_task(folder: Path, settings: DataSettings, item_text: np.ndarray | None = None) -> Task:
    """Read a prepared data set and cut it by the settings; `item_text` (N, W) saves embedding the item texts again.

    Raises:
        DataError: the folder is not a prepared data set.
        ConfigError: the settings do not fit the data (a time split of a data set without times, say).
    """
    return make_task(read_dataset(folder), settings, item_text)


def make_task(dataset: Dataset, settings: DataSettings, item_text: np.ndarray | None = None) -> Task:
    """As `load_task`, from a data set in memory."""
    manifest = dataset.manifest
    protocol = protocol_of(settings, manifest)
    if protocol != "loo" and not manifest.timed:
        raise ConfigError(f"data.protocol = {protocol!r} needs times, and {manifest.name} has none; use 'loo'")
    least = settings.min_item_events
    seq = to_sequences(dataset, min_item_events=least)
    split = _split(seq, protocol, settings, manifest.repeats)
    if protocol != "loo":
        # The vocabulary is what training saw; the cuts do not depend on it.
        seq = to_sequences(dataset, vocabulary_until_ms=split.valid_cut_ms, min_item_events=least)
        split = _split(seq, protocol, settings, manifest.repeats)
    if settings.items_only:
        seq = _items_alone(seq)
    told = seq
    if not settings.types:
        often = np.bincount(seq.type).argmax()
        told = replace(told, type=np.full_like(seq.type, often))
    if not settings.numbers:
        told = replace(told, numbers=np.full_like(seq.numbers, np.nan))
    items = pl.DataFrame({"item_id": seq.item_ids}).join(dataset.items, on="item_id", how="left", maintain_order="left")
    said = None
    if settings.text_encoder and (item_text is None or seq.text):
        encoder = TextEncoder(settings.text_encoder)
        if item_text is None:
            item_text = encoder.embed([title or "" for title in items.get_column("title").to_list()])
        said = event_text(seq, encoder)
    train_queries = training_queries(seq, split)
    if settings.platform:
        split = replace(
            split, valid=asked_on(seq, split.valid, settings.platform), test=asked_on(seq, split.test, settings.platform)
        )
        train_queries = asked_on(seq, train_queries, settings.platform)
    names, vectors = ([], {}) if settings.items_only else (manifest.item_features, manifest.item_vectors)
    features = dense_matrix(items, names, vectors)
    return Task(
        seq,
        split,
        train_queries,
        Inputs.of(told, item_text, said, features),
        items,
        # The same order as the sequences: users sorted, each one's events as they came.
        dataset.events.sort("user_id", maintain_order=True).get_column("item_id").to_list(),
        item_text,
        features,
        list(names),
        dict(vectors),
        {"name": manifest.name, "fingerprint": manifest.fingerprint},
        manifest.repeats,
        None if settings.items_only else item_labels(items, item_text),
    )


def protocol_of(settings: DataSettings, manifest: DatasetManifest) -> str:
    """The protocol that is asked for; "auto" is what the data can be asked: baskets, else times, else the order alone."""
    if settings.protocol != "auto":
        return settings.protocol
    return "loo" if not manifest.timed else "basket" if manifest.baskets else "time"


def number_edges(seq: Sequences, split: Split, buckets: int = 12) -> tuple[tuple[float, ...], ...]:
    """Ascending bucket edges of value, quantity and price: quantiles of the training events; empty where there is none."""
    training = np.arange(len(seq.item)) < split.train_end[seq.user]
    edges = []
    for index in range(len(NUMBERS)):
        numbers = seq.numbers[training, index]
        numbers = numbers[~np.isnan(numbers)]
        quantiles = np.quantile(numbers, np.linspace(0, 1, buckets + 1)[1:-1]) if len(numbers) else []
        # Rounded to float32 first: the graph compares in float32, and equal edges would leave a bucket empty.
        edges.append(tuple(float(x) for x in np.unique(np.asarray(quantiles, np.float32))))
    return tuple(edges)


def _split(seq: Sequences, protocol: str, settings: DataSettings, repeats: bool) -> Split:
    if protocol == "loo":
        return leave_one_out(seq, filter_seen=not repeats)
    cut = {"time": by_time, "basket": next_basket}.get(protocol)
    if cut is None:
        raise ConfigError(f"data.protocol must be auto, loo, time or basket, got {protocol!r}")
    try:
        return cut(seq, settings.test_quantile, settings.valid_quantile, filter_seen=not repeats)
    except ValueError as error:
        raise ConfigError(f"data: {error}") from None


def asked_on(seq: Sequences, queries: Queries, platform: str) -> Queries:
    """The queries whose answers happened on a platform.

    Raises:
        ConfigError: the data set has no such platform.
    """
    if platform not in seq.platforms:
        known = ", ".join(seq.platforms) or "none"
        raise ConfigError(f"data.platform must be one of the data set's platforms ({known}), got {platform!r}")
    return select(queries, seq.platform[queries.position] == seq.platforms.index(platform) + 1)


def _items_alone(seq: Sequences) -> Sequences:
    """The same events without their numbers and texts, of users without attributes."""
    return replace(
        seq,
        numbers=np.full_like(seq.numbers, np.nan),
        text={},
        attribute_names=[],
        attribute_values=[],
        attributes=seq.attributes[:, :0],
    )


def event_text(seq: Sequences, encoder: TextEncoder) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the distinct texts of events, (texts, W), and the row of each event's, (E,), -1 without."""
    distinct = sorted(set(seq.text.values()))
    row_of = {text: row for row, text in enumerate(distinct)}
    rows = np.full(len(seq.item), -1, np.int64)
    for event, text in seq.text.items():
        rows[event] = row_of[text]
    return encoder.embed(distinct), rows
