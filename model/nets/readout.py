"""From a state and a moment to interests: what the user would want next, asked at `as_of` on a platform."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.nets.buckets import GapEmbedding
from model.nets.calendar import CalendarEmbedding
from model.nets.config import ModelConfig
from model.nets.dropout import Dropout
from model.nets.kinship import Kinship
from model.nets.ring import RingAttention
from model.nets.transition import Transition


class InterestReadout(nn.Module):
    """z = F(LayerNorm(i_t + V + accumulators + gap + platform)); J interest vectors and popularity weights are linear in z."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.width = width
        self.interests = config.interests
        self.gap = GapEmbedding(config.gap_edges_s, width)
        # Without query time neither the calendar nor the gap is seen: both would say when the next event happens.
        self.calendar = CalendarEmbedding(width) if config.query_time else None
        self.platform = nn.Embedding(config.platforms + 1, width)
        self.attention = RingAttention(width, config.ring, config.ring_width, config.heads, config.gap_edges_s)
        self.accumulated = nn.Linear(config.accumulators * config.accumulator_width, width)
        self.norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), Dropout(config.dropout), nn.Linear(2 * width, width))
        self.out_norm = nn.LayerNorm(width)
        self.interest = nn.Linear(width, config.interests * width)
        self.popularity = nn.Linear(width, len(config.popularity_half_lives_s))
        self.transition = Transition(width, config.transition, config.transition_decays) if config.transition else None
        self.kinship = Kinship(width, config.kinship_decays) if config.kinship_decays else None
        if self.kinship is not None:
            # What the net says begins small beside it: as noise it would be learned by heart.
            self.interest.weight.data.mul_(0.1)
        # Which of the items that the user had before are had again: some things are bought once, others every month.
        self.again = nn.Linear(width, config.item_width) if config.repeats else None
        for table in (self.gap.table, self.platform):
            nn.init.normal_(table.weight, std=0.05)

    def asked(self, last: Tensor, now_ms: Tensor, gap_ms: Tensor, platform: Tensor) -> Tensor:
        """What n moments ask the ring with, (n, D): last (n, D), now and gap (n, 1) ms, platform (n).

        A gap below 0 says that there was no event before.
        """
        asked: Tensor = last + self.platform(platform)
        if self.calendar is None:
            return asked
        asked = asked + self.gap(gap_ms) + self.calendar(now_ms)
        return asked

    def known(
        self, asked: Tensor, mixed: Tensor, accumulated: Tensor, recent: Tensor | None, kin: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What follows from asked (n, D), what the ring answered (n, D), accumulated (n, M * Da), and the sums recent (n, W)
        of the transition and kin (n, G D) of the kinship.

        Returns:
            z (n, D), interests (n, J, D + 2 W), repeat interest (n, D + 2 W), popularity weights (n, P) >= 0.
        """
        z = self.norm(asked + mixed + self.accumulated(accumulated))
        z = self.out_norm(z + self.feed(z))
        interests = self.interest(z).view(-1, self.interests, self.width)
        if self.kinship is not None and kin is not None:
            interests = interests + self.kinship.interest(kin, z)[:, None]
        if self.transition is not None and recent is not None:
            follows = self.transition.interest(recent, z)[:, None]
            interests = torch.cat([interests, follows.expand(-1, self.interests, -1)], 2)
        again = torch.zeros_like(interests[:, 0]) if self.again is None else self.again(z)
        return z, interests, again, nn.functional.softplus(self.popularity(z))


RARE = 0.05
"""What is added to a decayed count before its logarithm: an item not seen for long is worth a twentieth of an event."""


def recency(popularity: Tensor) -> Tensor:
    """What the scores take of decayed counts: their logarithm."""
    return torch.log(popularity + RARE)


def item_scores(
    interests: Tensor, item_matrix: Tensor, item_bias: Tensor, popularity: Tensor, popularity_weight: Tensor
) -> Tensor:
    """`scores_of`, from decayed counts at the moment of asking."""
    return scores_of(interests, item_matrix, item_bias, recency(popularity), popularity_weight)


def scores_of(interests: Tensor, item_matrix: Tensor, item_bias: Tensor, recent: Tensor, popularity_weight: Tensor) -> Tensor:
    """Scores of all items without own repeats.

    Args:
        interests (n, J, D), item_matrix (N, D), popularity_weight (n, P).
        item_bias: (N), or one for each moment, (n or 1, N).
        recent: `recency` at the moment of asking, (N, P) or one table per moment (n, N, P).

    Returns:
        (n, N): the best match of the J interests, plus bias, plus the weighted logarithm of recent popularity.
    """
    if recent.dim() == 2:
        beside = torch.addmm(item_bias, popularity_weight, recent.t())
    else:
        beside = torch.matmul(recent, popularity_weight[..., None]).flatten(1) + item_bias
    if interests.shape[1] == 1:
        return torch.addmm(beside, interests[:, 0], item_matrix.t())
    return torch.matmul(interests, item_matrix.t()).amax(1) + beside


def add_repeats(scores: Tensor, rows: Tensor, repeat_scores: Tensor, repeat_interest: Tensor, item_matrix: Tensor) -> Tensor:
    """Add to each remembered item its slot's score and its match with the repeat interest.

    Args:
        scores (n, N), rows (n, R) int64 with -1 for no item, repeat_scores (n, R), repeat_interest (n, D), item_matrix (N, D).
    """
    index, amount = repeat_additions(rows, repeat_scores, repeat_interest, item_matrix)
    return scores.scatter_add(1, index, amount)


def repeat_additions(rows: Tensor, repeat_scores: Tensor, repeat_interest: Tensor, item_matrix: Tensor) -> tuple[Tensor, Tensor]:
    """What `add_repeats` adds where: item rows (n, R) int64 and amounts (n, R), 0 where there is no item."""
    known = rows >= 0
    index = torch.where(known, rows, 0)
    match = torch.matmul(item_matrix[index], repeat_interest[..., None]).flatten(1)  # by flattening nothing is copied
    return index, torch.where(known, repeat_scores + match, 0.0)
