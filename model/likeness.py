"""How alike an item's text is to what the user had, as the own-repeat memory remembers it: no state beside it, nothing learned.

The interests say what kind of thing comes next, and this says which of that kind: a cold item that comes as another
pattern of something bought is hardly told from its neighbours by a narrow vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.memory import Memories

NEAREST = 5
WEIGHT = 2.0  # of likeness beside interests; chosen on validation (docs/ablations.md)


def likeness(memories: Memories, queries: Tensor, text: Tensor, nearest: int = NEAREST) -> Tensor:
    """(n, N) sum of the cosines of each text (N, W), of unit length, with the `nearest` ones in the memories of n queries."""
    _, rows = memories.at(queries)
    cosine = torch.matmul(text[rows.clamp(min=0)], text.t())
    # An empty place is like nothing.
    cosine = torch.where((rows >= 0)[..., None], cosine, 0.0)
    return cosine.topk(min(nearest, rows.shape[1]), dim=1).values.sum(1)


def blended(scores: Tensor, likeness: Tensor, weight: float = WEIGHT) -> Tensor:
    """Two kinds of scores (n, N) of the same items, each brought to mean 0 and deviation 1 over them, and added up."""
    return _standard(scores) + weight * _standard(likeness)


def _standard(scores: Tensor) -> Tensor:
    centred = scores - scores.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True).sqrt() + 1e-6)
