"""A bundle of a small untrained net, through the real exporter: for tests of the service that need a fold but no learning."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from model.checkpoint import Checkpoint
from model.export.bundle import Catalogue, export_bundle
from model.labels import Labels
from model.nets import Longwave, ModelConfig
from model.rounding import with_stored_weights

ITEMS = 60
DAY_S = 86_400.0
EVENT_TYPES = [("purchase", "positive", 1.0), ("view", "neutral", 0.2), ("cancellation", "negative", 1.0)]
COUNTRIES = ["United Kingdom", "France", "Norway"]
TRAINED_UNTIL_MS = 1_300_000_000_000
SIGNS = {"positive": 1, "neutral": 0, "negative": -1}


def item_id(row: int) -> str:
    return f"item-{row:03d}"


LABELS = ["books", "cups", "lamps"]


FEATURES = ["feature_round", "feature_warm"]


def write_tiny_bundle(
    folder: Path,
    seed: int = 0,
    seen_items: str = "recommend",
    stored: str = "float32",
    content: bool = False,
    vectors: dict[str, int] | None = None,
) -> Path:
    """Write a bundle of ITEMS items (`item_id(row)`, titled "Thing <row>") as `folder` and return it; with `content` it
    understands items by their FEATURES, and with `vectors` by those, so long by name."""
    torch.manual_seed(seed)
    names, vectors = FEATURES if content else [], vectors or {}
    width = len(names) + sum(vectors.values())
    config = ModelConfig(
        items=ITEMS,
        event_types=len(EVENT_TYPES),
        platforms=2,
        attribute_sizes=(len(COUNTRIES),),
        type_weights=(1.0, 0.2, -1.0),
        number_edges=((1.0, 3.0), (1.0, 10.0), (1.0, 5.0, 20.0)),
        width=16,
        layers=2,
        heads=2,
        ring=8,
        ring_width=8,
        accumulator_width=8,
        repeats=16,
        repeat_hidden=8,
        popularity_half_lives_s=(7 * DAY_S, 60 * DAY_S),
        feature_width=width,
    )
    net = Longwave(config).eval()
    torch.nn.init.normal_(net.item.id.weight)
    torch.nn.init.normal_(net.item.bias, std=0.1)
    checkpoint = Checkpoint(
        net=with_stored_weights(net, stored),
        settings={"train": {"chunk": 64}},
        item_ids=[item_id(row) for row in range(ITEMS)],
        data={"name": "tiny", "fingerprint": "test"},
        names={
            "event_types": [name for name, _, _ in EVENT_TYPES],
            "polarity": [SIGNS[polarity] for _, polarity, _ in EVENT_TYPES],
            "weight": [weight for _, _, weight in EVENT_TYPES],
            "platforms": ["web", "app"],
            "attribute_names": ["country"],
            "attribute_values": [COUNTRIES],
        },
        item_text=None,
        known_until_ms=TRAINED_UNTIL_MS,
        history=[],
        training={},
    )
    catalogue = Catalogue(
        ids=checkpoint.item_ids,
        titles=[f"Thing {row}" for row in range(ITEMS)],
        categories=[["things"]] * ITEMS,
        text=None,
        features=np.random.default_rng(seed).normal(size=(ITEMS, width)).astype(np.float32) if width else None,
        feature_names=names,
        vectors=vectors,
        popularity=np.random.default_rng(seed).uniform(0, 20, size=(ITEMS, 2)),
        as_of_ms=TRAINED_UNTIL_MS,
        labels=Labels(LABELS, np.eye(len(LABELS), dtype=np.float32)[np.arange(ITEMS) % len(LABELS)]),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        bundle = export_bundle(checkpoint, catalogue, [], Path(out), seen_items=seen_items, item_vectors=stored, weights=stored)
        return bundle.folder.rename(folder)
