"""Where nets are trained: on a CUDA device that torch sees, or on the CPU. Files hold CPU tensors, so either reads them.

What training on one GPU took is in docs/guide.md; several have not been tried.
"""

from __future__ import annotations

import os
from copy import copy
from typing import Any

import torch
from torch import Tensor

from model.errors import TrainerError

DEVICES = ("auto", "cpu", "cuda")
CPU = torch.device("cpu")


class DeviceError(TrainerError, RuntimeError):
    """The device that was asked for is not there."""


def device_of(asked: str) -> torch.device:
    """The device that one of `DEVICES` stands for on this machine; of several processes under torchrun each takes its own.

    Raises:
        DeviceError: "cuda" was asked for and torch sees none, or fewer than there are processes.
    """
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise DeviceError('train.device = "cuda": torch sees no CUDA device; use "auto" or "cpu"')
    place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= count:
        raise DeviceError(f"process {place + 1} of this machine has no CUDA device of its own: torch sees {count}")
    return torch.device("cuda", place)


def on_cpu(content: Any) -> Any:
    """The same with all tensors on the CPU, in dictionaries and lists of any depth; what is there already is not copied."""
    if isinstance(content, Tensor):
        return content.cpu()
    if isinstance(content, dict):
        moved = copy(content)  # with what a state_dict says of itself
        moved.update((key, on_cpu(value)) for key, value in content.items())
        return moved
    if isinstance(content, list):
        return [on_cpu(value) for value in content]
    return content
