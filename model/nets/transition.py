"""What follows the last few items directly: an untied low-rank transition, summed with fast decays.

score(y) gets sum_s decay^(t - s) p(item_s) . q(y), where p and q are embeddings of their own: what an item leads to has little
to do with what it is like, and one vector per item cannot say both.
Source: factorised Markov chains (Rendle et al. 2010, FPMC), with several decays in place of one basket.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.nets.event import EventBatch


class FadingSums(nn.Module):
    """Sums over a user's events of what each leads to, W channels, in groups that each have a decay of their own.

    A user's state has one sum, (W).
    """

    rate: Tensor

    def __init__(self, channels: int, decays: Sequence[float]) -> None:
        super().__init__()
        rate = torch.log(torch.tensor(decays, dtype=torch.float32))
        self.register_buffer("rate", rate.repeat_interleave(channels // len(decays)), persistent=False)

    @abstractmethod
    def leads(self, events: EventBatch) -> Tensor:
        """What events (...) add, zeros where there is no item that is known -> (..., W)."""

    def step(self, recent: Tensor, event: EventBatch) -> Tensor:
        """The sums (B, W) after one event per user."""
        return recent * torch.exp(self.rate) + self.leads(event)

    def everywhere(self, recent: Tensor, events: EventBatch) -> Tensor:
        """The sums before, (B, W), and after each of T events: (B, T + 1, W)."""
        added = torch.cat([recent[:, None], self.leads(events)], 1)
        number = torch.arange(added.shape[1], device=added.device)
        behind = (number[:, None] - number).to(torch.float32)
        rates = torch.unique_consecutive(self.rate)
        left = torch.where(behind >= 0, torch.exp(torch.relu(behind) * rates[:, None, None]), 0.0)  # (decays, T + 1, T + 1)
        groups = added.view(*added.shape[:2], len(rates), -1).permute(2, 0, 1, 3)  # (decays, B, T + 1, W / decays)
        return torch.matmul(left[:, None], groups).permute(1, 2, 0, 3).flatten(2)

    def after(self, recent: Tensor, events: EventBatch, count: Tensor) -> Tensor:
        """The sums after the first `count` (B, 1) of T events, (B, W) like those before."""
        added = torch.cat([recent[:, None], self.leads(events)], 1)
        behind = (count - torch.arange(added.shape[1], device=added.device))[..., None]
        left = torch.where(behind >= 0, torch.exp(torch.relu(behind.to(torch.float32)) * self.rate), 0.0)  # (B, T + 1, W)
        return (left * added).sum(1)


class Transition(FadingSums):
    """The sums of p, and how much they count at a moment. An item's vector ends with q and p, W numbers each."""

    def __init__(self, width: int, channels: int, decays: Sequence[float]) -> None:
        super().__init__(channels, decays)
        self.channels = channels
        self.gain = nn.Linear(width, channels)
        nn.init.zeros_(self.gain.weight)
        nn.init.ones_(self.gain.bias)

    def leads(self, events: EventBatch) -> Tensor:
        """p of the items of events (...) -> (..., W)."""
        return torch.where(events.item_known[..., None], events.item_vector[..., -self.channels :], 0.0)

    def interest(self, recent: Tensor, z: Tensor) -> Tensor:
        """What the sums add to the interest: (n, W), z (n, D) -> (n, 2 W), to be matched with an item's q; nothing with its p."""
        found = recent * self.gain(z)
        return torch.cat([found, torch.zeros_like(found)], 1)
