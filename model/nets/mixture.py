"""Several interests, and a gate that says for each user and item how much each of them counts: a mixture of logits, for ablation.

Source: Zhai et al. 2023, "Revisiting Neural Retrieval on Accelerators" (arXiv:2306.04039). As there, the gate sees the user, the
item and the logits themselves; here an item has one vector, the one that it has everywhere, and the gate is linear.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mixture(nn.Module):
    """s = sum_j pi_j s_j with s_j = <interest_j, item> and pi = softmax_j(<U_j, z> + <V_j, item> + w s_j)."""

    def __init__(self, width: int, item_width: int, interests: int) -> None:
        super().__init__()
        self.user = nn.Linear(width, interests)
        self.item = nn.Parameter(torch.randn(interests, item_width) / item_width**0.5)
        self.cross = nn.Parameter(torch.tensor(1.0))

    def forward(self, interests: Tensor, context: Tensor, item_matrix: Tensor) -> Tensor:
        """interests (n, J, D + 2 W), context z (n, D), item_matrix (N, D + 2 W) -> what the items match, (n, N)."""
        match = torch.matmul(interests, item_matrix.t()).to(item_matrix.dtype)
        # All three parts of the gate as one product: over all items, sums of their own cost more than it does.
        asked = torch.cat([self.cross * interests + self.item, self.user(context)[..., None]], 2)
        gate = torch.matmul(asked, torch.nn.functional.pad(item_matrix, (0, 1), value=1.0).t()).to(item_matrix.dtype)
        return (torch.softmax(gate, 1) * match).sum(1)
