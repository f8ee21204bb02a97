"""A neural baseline on disk."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.baselines.nets.encoder import Encoder
from model.baselines.nets.gru4rec import GRU4Rec
from model.baselines.nets.sasrec import SASRec
from model.checkpoint import CheckpointError, first_line, save_whole
from model.settings import BASELINES, Gru4recSettings, SasrecSettings, Settings, TrainSettings

ARCHITECTURES = tuple(BASELINES)
SHARED = (
    "epochs",
    "least_steps",
    "warmup_steps",
    "clip",
    "average",
    "smoothing",
    "mask_seen",
    "patience",
    "valid_queries",
    "seed",
    "threads",
    "precision",
    "device",
    "compile",
)
"""What of [train] a neural baseline goes by; the rest is about our own net."""


@dataclass(frozen=True)
class EncoderCheckpoint:
    """As `model.checkpoint.Checkpoint`; `settings` are those of `described`, and `items` is the size of the vocabulary."""

    net: Encoder
    settings: dict[str, Any]
    items: int
    data: dict[str, Any]
    history: list[dict[str, Any]]
    training: dict[str, Any]


def training_of(architecture: str, settings: Settings) -> TrainSettings:
    """How an architecture is trained: as our net, but for its own number of epochs."""
    own = getattr(settings, architecture).epochs
    return dataclasses.replace(settings.train, epochs=own or settings.train.epochs)


def described(architecture: str, settings: Settings) -> dict[str, Any]:
    """All settings that a run of the architecture depends on."""
    data, train = dataclasses.asdict(settings.data), dataclasses.asdict(training_of(architecture, settings))
    del data["text_encoder"]
    return {
        "architecture": architecture,
        "data": data,
        "train": {key: train[key] for key in SHARED},
        "model": dataclasses.asdict(getattr(settings, architecture)),
    }


def build(items: int, settings: dict[str, Any]) -> Encoder:
    """An untrained net from what `described` gave."""
    if settings["architecture"] == "sasrec":
        return SASRec(items, SasrecSettings(**settings["model"]))
    return GRU4Rec(items, Gru4recSettings(**settings["model"]))


def save_encoder(kept: EncoderCheckpoint, path: Path) -> None:
    """As `save_checkpoint`."""
    content = {f.name: getattr(kept, f.name) for f in dataclasses.fields(kept) if f.name != "net"}
    save_whole(content | {"weights": kept.net.state_dict()}, path)


def load_encoder(path: Path) -> EncoderCheckpoint:
    """Read a checkpoint; only plain data is accepted, never code.

    Raises:
        CheckpointError: the file is damaged, or of another version or kind of net.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        net = build(content["items"], content["settings"])
        net.load_state_dict(content.pop("weights"))
        return EncoderCheckpoint(net=net.eval(), **content)
    except Exception as error:
        raise CheckpointError(f"{path}: not a checkpoint of a neural baseline: {first_line(error)}") from None
