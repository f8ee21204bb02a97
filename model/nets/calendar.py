"""Where a moment lies in the day, the week and the year: people and shops live by the calendar."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

DAY_MS = 86_400_000
CYCLES_MS = (DAY_MS, 7 * DAY_MS, 365.2425 * DAY_MS, 365.2425 * DAY_MS / 2)


class CalendarEmbedding(nn.Module):
    """A linear map of sine and cosine of the phases of a day, a week, a year and half a year."""

    cycles_ms: Tensor
    radians: Tensor
    ahead: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * len(CYCLES_MS), width, bias=False)
        nn.init.normal_(self.mix.weight, std=0.02)
        # Each cycle twice, the second time a quarter ahead: its cosine.
        cycles = torch.tensor([int(cycle) for cycle in CYCLES_MS], dtype=torch.int64).repeat(2)
        self.register_buffer("cycles_ms", cycles, persistent=False)
        self.register_buffer("radians", (2 * math.pi / cycles.double()).float(), persistent=False)
        self.register_buffer("ahead", torch.tensor([0.0, math.pi / 2]).repeat_interleave(len(CYCLES_MS)), persistent=False)

    def forward(self, time_ms: Tensor) -> Tensor:
        """(n, 1) int64 unix milliseconds -> (n, D)."""
        # The phase is taken in whole milliseconds: float32 could not tell two days of this century apart.
        within = torch.remainder(time_ms, self.cycles_ms)
        embedded: Tensor = self.mix(torch.sin(within.to(torch.float32) * self.radians + self.ahead))
        return embedded
