"""What has left the ring: gated means of past interests that fade at several half-lives, in events and in time.

The weight of an event never depends on a later query, so one step costs the same for ever and a rebuild agrees.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.nets.config import LN_2
from model.nets.integers import at_least

BLOCK = 32
"""Events between two moments from which `everywhere` starts again."""


class Accumulators(nn.Module):
    """M means V_m = sum_t f_m(now - t) a_mt u_t / w_m and their weights w_m = sum_t f_m(now - t) a_mt, f an exponential decay.

    The first half-lives count events, the others seconds of the user's clock.
    """

    per_event: Tensor
    per_second: Tensor

    def __init__(self, width: int, inner: int, event_half_lives: Sequence[float], time_half_lives_s: Sequence[float]) -> None:
        super().__init__()
        count = len(event_half_lives) + len(time_half_lives_s)
        self.value = nn.Linear(width, inner)
        self.gate = nn.Linear(width, count)
        per_event = [1 / h for h in event_half_lives] + [0.0] * len(time_half_lives_s)
        per_second = [0.0] * len(event_half_lives) + [1 / h for h in time_half_lives_s]
        self.register_buffer("per_event", torch.tensor(per_event), persistent=False)
        self.register_buffer("per_second", torch.tensor(per_second), persistent=False)

    def decay(self, events: Tensor | int, elapsed_ms: Tensor) -> Tensor:
        """How much is left after so many events and milliseconds: one or (..., 1) int64, (..., 1) int64 -> (..., M) float32."""
        by_number = (events.to(torch.float32) if isinstance(events, Tensor) else events) * (self.per_event * -LN_2)
        return torch.exp(by_number + elapsed_ms.to(torch.float32) * (self.per_second * (-LN_2 / 1000)))

    def inputs(self, interest: Tensor) -> tuple[Tensor, Tensor]:
        """Interests (..., D) -> values u (..., Da) and gates a in (0, 1), (..., M)."""
        return self.value(interest), torch.sigmoid(self.gate(interest))

    def step(self, acc: Tensor, weight: Tensor, interest: Tensor, elapsed_ms: Tensor) -> tuple[Tensor, Tensor]:
        """One event: means acc (B, M, Da), weight (B, M), interest (B, D), elapsed (B, 1) int64 ms -> the same after it."""
        value, gate = self.inputs(interest)
        left = self.decay(1, elapsed_ms)
        after = weight * left + gate
        return acc + (gate / after)[..., None] * (value[:, None, :] - acc), after

    def at(self, acc: Tensor, weight: Tensor, interest: Tensor, clock: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The accumulators after the first s events of a chunk, for several s at once.

        Args:
            acc (B, M, Da), weight (B, M): before the chunk.
            interest: (B, T, D); clock: (B, T + 1) int64 ms, the user's clock before the chunk and after each event.
            positions: (B, P) int64 in 0..T.

        Returns:
            (B, P, M, Da) and (B, P, M).
        """
        value, gate = self.inputs(interest)
        index = torch.arange(clock.shape[1], device=clock.device)
        behind = positions[..., None] - index  # (B, P, T + 1)
        elapsed = torch.gather(clock, 1, positions)[..., None] - clock[:, None, :]
        past = (behind >= 0)[..., None]
        left = self.decay(at_least(behind, 0)[..., None], at_least(elapsed, 0)[..., None]) * past  # (B, P, T + 1, M)
        events = left[:, :, 1:] * gate[:, None]
        # One matrix product per accumulator: (B, M, P, T) @ (B, 1, T, Da).
        sums = torch.matmul(events.permute(0, 3, 1, 2), value[:, None]).permute(0, 2, 1, 3)
        carried = left[:, :, 0]
        after = events.sum(2) + carried * weight[:, None]
        # Before the first event there is no weight and no sum: zeros.
        return (sums + (carried * weight[:, None])[..., None] * acc[:, None]) / (after + 1e-12)[..., None], after

    def everywhere(self, acc: Tensor, weight: Tensor, interest: Tensor, clock: Tensor) -> Tensor:
        """`at` for every s in 0..T, (B, T + 1, M, Da), block by block: work grows with T, and not with its square."""
        users, events = interest.shape[:2]
        blocks = -(-events // BLOCK)
        missing = blocks * BLOCK - events
        starts = torch.arange(0, events, BLOCK, device=interest.device).expand(users, blocks)
        before, before_weight = self.at(acc, weight, interest, clock, starts)
        inside, _ = self.at(
            before.flatten(0, 1),
            before_weight.flatten(0, 1),
            nn.functional.pad(interest, (0, 0, 0, missing)).view(users * blocks, BLOCK, -1),
            torch.cat([clock, clock[:, -1:].expand(users, missing)], 1).unfold(1, BLOCK + 1, BLOCK).flatten(0, 1),
            torch.arange(1, BLOCK + 1, device=interest.device).expand(users * blocks, BLOCK),
        )
        return torch.cat([before[:, :1], inside.reshape(users, blocks * BLOCK, *inside.shape[2:])[:, :events]], 1)
