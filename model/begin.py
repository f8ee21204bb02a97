"""A training that begins where another ended: `longwave-train train --init-from BUNDLE`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import names_of
from model.nets import Longwave
from model.settings import Settings
from model.task import Task
from model.update.origin import Origin, OriginError

ROWS = ("event_types", "polarity", "weight", "platforms", "attribute_names", "attribute_values")
"""What has rows of its own in the net, and what its memory counts events by; items have rows too, and theirs are found by id."""
SAME_TEXT = 0.01
"""How far a number of a text's vector, which is of unit length, may be off: another machine rounds otherwise."""


def as_begun(settings: Settings, origin: Origin | None) -> dict[str, Any]:
    """A run's settings as its checkpoint keeps them; of one that begins with a bundle: in its shape, and with its name."""
    described = settings.as_dict()
    if origin is not None:
        described |= {"model": origin.checkpoint.settings["model"], "init_from": origin.model_id}
    return described


@torch.no_grad()
def begun(origin: Origin, task: Task, text_encoder: str = "") -> Longwave:
    """A bundle's net for a task: its weights, with the task's items in the task's order.

    An item that the bundle does not know begins as in an update; one that the task does not know is left behind.

    Args:
        text_encoder: what has read the task's texts; its name counts where bundle and task have no title in common.

    Raises:
        OriginError: the data have other event types, platforms, attributes, texts or features than the bundle, or count events
            otherwise.
    """
    checkpoint = origin.checkpoint
    found = names_of(task.seq)
    for name in ROWS:
        if found[name] != checkpoint.names[name]:
            raise OriginError(
                f"{origin.folder}: its {name} are {checkpoint.names[name]}, those of the data {found[name]}; "
                "the same are needed to go on from its weights"
            )
    config = checkpoint.net.config
    width = 0 if task.item_text is None else task.item_text.shape[1]
    if width != config.text_width:
        raise OriginError(f"{origin.folder}: has texts of {config.text_width} numbers, the data and the configuration of {width}")
    if width and not _same_encoder(origin, task, text_encoder):
        before = checkpoint.settings["data"]["text_encoder"]
        raise OriginError(
            f"{origin.folder}: its texts were read by {before!r}, and {text_encoder!r} makes other vectors of them: "
            "the same encoder is needed to go on from its weights"
        )
    if tuple(task.feature_names) != origin.features:
        raise OriginError(
            f"{origin.folder}: its item features are {list(origin.features)}, those of the data {task.feature_names}; "
            "the same are needed to go on from its weights"
        )
    if list(task.vectors.items()) != list(origin.vectors.items()):
        raise OriginError(
            f"{origin.folder}: its item vectors are {origin.vectors}, those of the data {task.vectors}; "
            "the same are needed to go on from its weights"
        )
    row_of = {item: row for row, item in enumerate(checkpoint.item_ids)}
    ids = task.seq.item_ids
    new = [item for item in ids if item not in row_of]
    row_of |= {item: row for row, item in enumerate(new, len(checkpoint.item_ids))}
    whole = Longwave(dataclasses.replace(config, items=len(row_of)))
    rows = torch.tensor([row_of[item] for item in ids], dtype=torch.int64)
    weights = extended(checkpoint.net, whole)
    for name in ("item.id.weight", "item.bias", "item.beside.weight"):
        if name in weights:
            weights[name] = weights[name][rows]
    net = Longwave(dataclasses.replace(config, items=len(ids)))
    net.load_state_dict(weights)
    return net


def _same_encoder(origin: Origin, task: Task, text_encoder: str) -> bool:
    """Whether both read texts alike, by the vectors of titles that both have: a name says little of what is in its folder.

    By most of them: after an update, an item has its newest title and the vector of the one that it was trained with.
    """
    seen, said = origin.checkpoint.item_text, task.item_text
    assert seen is not None
    assert said is not None
    before = {title: row for row, title in enumerate(origin.titles) if title}
    titles = task.items.get_column("title").to_list()
    both = np.array([(before[title], row) for row, title in enumerate(titles) if title in before])
    if not len(both):
        return text_encoder in ("", origin.checkpoint.settings["data"]["text_encoder"])
    apart = np.abs(seen.numpy()[both[:, 0]] - said[both[:, 1]]).max(1)
    return bool(np.median(apart) < SAME_TEXT)


@torch.no_grad()
def extended(before: Longwave, into: Longwave) -> dict[str, Tensor]:
    """The weights of a net, for one with more items: rows behind the old ones start as those of an item that nobody has used.

    With content, that is the ID and the bias of an unseen item (so the vector comes from the text alone); without it, the mean
    of all IDs and the median bias. The direct transition starts with nothing.
    """
    weights = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    fresh = into.config.items - before.config.items
    item = before.item
    by_content = item.gate is not None
    vector = item.no_id if by_content else item.id.weight.mean(0)
    bias = item.no_bias if by_content else item.bias.median()[None]
    weights["item.id.weight"] = torch.cat([item.id.weight, vector.expand(fresh, -1)])
    weights["item.bias"] = torch.cat([item.bias, bias.expand(fresh)])
    if item.beside is not None:
        weights["item.beside.weight"] = torch.nn.functional.pad(item.beside.weight, (0, 0, 0, fresh))
    return weights
