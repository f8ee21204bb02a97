"""How alike an item's text is to what the user had, as the own-repeat memory remembers it: no state beside it, nothing learned.

The interests say what kind of thing comes next, and this says which of that kind: a cold item that comes as another
pattern of something bought is hardly told from its neighbours by a narrow vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.memory import Memories
from model.nets.repeats import seconds


def profiles(memories: Memories, queries: Tensor, as_of: Tensor, text: Tensor, rate: float) -> Tensor:
    """(n, W) unit mean of the texts in the memories of n queries, each with its count at `as_of` (n) ms; zeros for an empty one.

    Args:
        text: (N, W) unit vectors. rate: by how much a second the counts fade.
    """
    slots, rows = memories.at(queries)
    now = seconds(torch.maximum(as_of, memories.clock[queries]))[:, None]
    # The second to last channel is the longest half-life of what was wanted.
    weight = slots.count[..., -2] * torch.exp((now - slots.time).clamp(min=0).to(torch.float32) * -rate)
    weight = torch.where(rows >= 0, weight, 0.0)
    mean = torch.matmul(weight[:, None], text[rows.clamp(min=0)])[:, 0]
    return torch.nn.functional.normalize(mean, dim=1)


def blended(scores: Tensor, likeness: Tensor, weight: float = 1.0) -> Tensor:
    """Two kinds of scores (n, N) of the same items, each brought to mean 0 and deviation 1 over them, and added up."""
    return _standard(scores) + weight * _standard(likeness)


def _standard(scores: Tensor) -> Tensor:
    centred = scores - scores.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True).sqrt() + 1e-6)
