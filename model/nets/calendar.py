"""Where a moment lies in the day, the week and the year: people and shops live by the calendar."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

DAY_MS = 86_400_000
CYCLES_MS = (DAY_MS, 7 * DAY_MS, 365.2425 * DAY_MS, 365.2425 * DAY_MS / 2)


class CalendarEmbedding(nn.Module):
    """A linear map of sine and cosine of the phases of a day, a week, a year and half a year."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cycles_ms = [int(cycle) for cycle in CYCLES_MS]
        self.mix = nn.Linear(2 * len(CYCLES_MS), width, bias=False)
        nn.init.normal_(self.mix.weight, std=0.02)

    def forward(self, time_ms: Tensor) -> Tensor:
        """(n) int64 unix milliseconds -> (n, D)."""
        # The phase is taken in whole milliseconds: float32 could not tell two days of this century apart.
        phases = [
            (time_ms - torch.div(time_ms, cycle, rounding_mode="trunc") * cycle).to(torch.float32) * (2 * math.pi / cycle)
            for cycle in self.cycles_ms
        ]
        phase = torch.stack(phases, -1)
        embedded: Tensor = self.mix(torch.cat([torch.sin(phase), torch.cos(phase)], -1).to(self.mix.weight.dtype))
        return embedded
