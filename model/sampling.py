"""Sampled softmax: a step scores some items instead of all, and counts each for those that it stands for.

Source: log-Q correction (Bengio & Senecal 2008; Yi et al. 2019, "Sampling-bias-corrected neural modeling"), here with the chance
that an item is among the candidates at all: the sum over candidates of exp(score) / chance is then right on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.device import CPU
from model.losses import Additions, Popularity

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """The items that a step needs, and those of them that its queries are scored against.

    Attributes:
        needed: (n) int64 rows of the vocabulary, ascending: of events, own repeats and candidates.
        place: (N) int64 where each needed row stands in `needed`; anything for the others.
        chosen: (C) int64 places in `needed`, ascending. log_chance: (C) logarithm of the chance to be a candidate.
    """

    needed: Tensor
    place: Tensor
    chosen: Tensor
    log_chance: Tensor

    def among(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where needed rows (...) stand among the candidates, and whether they do; 0 where they do not."""
        place = self.place[rows]
        found = torch.searchsorted(self.chosen, place).clamp(max=len(self.chosen) - 1)
        there = self.chosen[found] == place
        return torch.where(there, found, 0), there

    def own(self, owner: Tensor, target: Tensor, queries: int) -> Additions:
        """Each query's targets are candidates for certain: they stand for themselves alone."""
        nth = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
        rows = owner.new_zeros(queries, int(nth.max()) + 1)
        amount = self.log_chance.new_zeros(rows.shape)
        found, _ = self.among(target)
        rows[owner, nth], amount[owner, nth] = found, self.log_chance[found]
        return Additions(rows, amount)

    def repeated(self, rows: Tensor, amount: Tensor) -> Additions:
        """What own repeats add to the scores, (n, R) both; those that are no candidates play no part."""
        found, there = self.among(rows)
        return Additions(found, torch.where(there, amount, 0.0))

    def popularity(self, weight: Tensor, logs: Tensor, slot: Tensor) -> Popularity:
        """As `Popularity`, of the candidates alone."""
        used, slot = torch.unique(slot, return_inverse=True)
        return Popularity(weight, logs[used[:, None], self.needed[self.chosen]], slot)


class CandidateSampler:
    """Draws the candidates that all queries of a step share."""

    def __init__(self, counts: Float64, negatives: int, device: torch.device = CPU) -> None:
        """`counts`: (N,) how often each item is a training target; `negatives`: draws a step, with replacement.

        Drawn on the CPU, the same on any machine, for a net on `device`.
        """
        self.negatives = negatives
        self.share = counts / max(1.0, counts.sum())
        # Half by popularity, where most of the softmax lies, half evenly, so that no item is left out.
        self.chance = 0.5 * self.share + 0.5 / len(counts)
        self._upto = np.cumsum(self.chance)
        self._upto[-1] = 1.0
        self._place = torch.zeros(len(counts), dtype=torch.int64, device=device)

    def draw(self, target: Tensor, needed: Tensor, rng: np.random.Generator) -> Candidates:
        """Candidates of a step: all its targets (t), and what is drawn. `needed`: item rows that it reads besides, or -1."""
        drawn = np.searchsorted(self._upto, rng.random(self.negatives), side="right")
        rows = np.union1d(drawn, target.cpu().numpy())
        # Not drawn as a negative in any draw, and nobody's target.
        chance, share = (np.minimum(each[rows], 1 - 1e-9) for each in (self.chance, self.share))
        missed = self.negatives * np.log1p(-chance) + len(target) * np.log1p(-share)
        all_needed = np.union1d(rows, np.maximum(needed.cpu().numpy().ravel(), 0))
        device = self._place.device
        there = torch.as_tensor(all_needed, device=device)
        self._place[there] = torch.arange(len(all_needed), device=device)
        return Candidates(
            there,
            self._place,
            torch.as_tensor(np.searchsorted(all_needed, rows), device=device),
            torch.as_tensor(np.log(-np.expm1(missed)), dtype=torch.float32, device=device),
        )
