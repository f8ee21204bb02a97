"""A trained model on disk: the weights and everything that evaluation and export must know of the data it came from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.data.sequences import Sequences
from model.device import on_cpu
from model.errors import TrainerError
from model.files import replacing
from model.nets import Longwave, ModelConfig


class CheckpointError(TrainerError, ValueError):
    """A checkpoint is missing or damaged; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What training leaves behind.

    Attributes:
        net: in evaluation mode.
        settings: `Settings.as_dict()` of the run.
        item_ids: the vocabulary in row order. data: name, fingerprint, folder of the prepared data set.
        names: event types, polarities, weights, platforms and user attributes, by which the bundle's manifest names rows.
        item_text: (N, W) float32 embeddings of the item texts, or None. item_features: (N, F) features and vectors, or None.
        known_until_ms: events before it were known when training ended (training and validation); 0 where all were.
        training: resumable state of optimizer, schedule, random numbers and best weights; empty once training is done.
    """

    net: Longwave
    settings: dict[str, Any]
    item_ids: list[str]
    data: dict[str, Any]
    names: dict[str, Any]
    item_text: Tensor | None
    known_until_ms: int
    history: list[dict[str, Any]]
    training: dict[str, Any]
    item_features: Tensor | None = None


def names_of(seq: Sequences) -> dict[str, Any]:
    """What the rows of types, platforms and attributes are called."""
    return {
        "event_types": seq.event_types,
        "polarity": seq.polarity.tolist(),
        "weight": seq.weight.tolist(),
        "platforms": seq.platforms,
        "attribute_names": seq.attribute_names,
        "attribute_values": seq.attribute_values,
    }


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write whole or not at all, from whatever device; a file holds CPU tensors.

    Raises:
        OutputError: it cannot be written; what was there is still there.
    """
    content = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint) if f.name != "net"}
    content["config"] = dataclasses.asdict(checkpoint.net.config)
    content["weights"] = checkpoint.net.state_dict()
    save_whole(content, path)


def save_whole(content: dict[str, Any], path: Path) -> None:
    """What `torch.save` writes, whole or not at all, with all tensors on the CPU. Raises OutputError."""
    content = on_cpu(content)
    # Into a file that Python has opened: of one of its own torch does not say why it cannot be written.
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # of which it then says that bytes are missing at the end
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; only plain data is accepted, never code.

    Raises:
        CheckpointError: the file is missing, damaged, or of a model of another version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:
        raise CheckpointError(f"{path}: not a checkpoint: {first_line(error)}") from None
    if isinstance(content, dict) and "architecture" in content.get("settings", {}):
        raise CheckpointError(
            f"{path}: a run of the neural baseline {content['settings']['architecture']}, expected one of our net"
        )
    try:
        config = ModelConfig(**content.pop("config"))
        net = Longwave(config)
        net.load_state_dict(content.pop("weights"))
        return Checkpoint(net=net.eval(), **content)
    except (TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: written by another version of the trainer: {error}") from None


def first_line(error: Exception) -> str:
    """What an error says, without the advice that torch adds."""
    return next(iter(str(error).splitlines()), type(error).__name__)
