"""What a user's items are about, of late and for long: two fading means of their labels, which drift is between."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.nets.config import LN_2
from model.nets.event import EventBatch

HALF_LIVES = (16.0, 128.0)
"""In events: of late, and for long."""
MOST = 64
"""Labels at most; a state has room for so many."""
DECAY = 1e-3
"""Of the weights that read labels from vectors, which are held to be of the size 1."""
STEPS = 100
ENOUGH = 20_000
"""Items that are learned from: more would take minutes, and say no more."""
NEVER = -1e4
"""Of a label that there is not: its share is exactly 0."""


class Leaning(nn.Module):
    """A user's state has both means, (2, MOST). No score depends on them, and training learns nothing about them.

    What an item is about is read from its vector by a softmax regression, which is fitted to the catalogue once the net is
    trained (`learn`): so one that is new, too, is about something. Until then all is about everything, and nothing drifts.

    An event without an item, or with one that is not known, takes its turn and adds nothing: both means shrink, and their
    directions stay.
    """

    rate: Tensor
    share: Tensor
    reading: Tensor
    prior: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        rate = -LN_2 / torch.tensor(HALF_LIVES)
        self.register_buffer("rate", rate, persistent=False)
        self.register_buffer("share", -torch.expm1(rate), persistent=False)  # of the newest event
        # Of a catalogue, and so of a bundle: a checkpoint has none.
        self.register_buffer("reading", torch.zeros(width, MOST), persistent=False)
        self.register_buffer("prior", torch.zeros(MOST), persistent=False)

    def learn(self, vectors: Tensor, labels: Tensor) -> None:
        """Read labels (N, C), rows that sum to 1 or are 0, from item vectors (N, D or more) as nearly as may be."""
        told = torch.nonzero(labels.sum(1) > 0)[:, 0]
        if len(told) > ENOUGH:  # of all parts of the catalogue, the same each time
            told = told[torch.linspace(0, len(told) - 1, ENOUGH).long()]
        rows, wanted = vectors[told, : self.width].double(), labels[told].double()
        size = torch.clamp(rows.square().mean().sqrt(), min=1e-30)
        rows = rows / size
        weight = torch.zeros(rows.shape[1], wanted.shape[1], dtype=torch.float64, requires_grad=True)
        prior = torch.zeros(wanted.shape[1], dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS([weight, prior], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            found = DECAY * weight.square().sum() - (wanted * torch.log_softmax(rows @ weight + prior, 1)).sum(1).mean()
            found.backward()  # type: ignore[no-untyped-call]
            return found

        with torch.enable_grad():
            search.step(loss)  # type: ignore[no-untyped-call]
        count = wanted.shape[1]
        self.reading.zero_()[:, :count] = (weight.detach() / size).to(self.reading)
        self.prior.fill_(NEVER)[:count] = prior.detach().to(self.prior)

    def step(self, leaning: Tensor, event: EventBatch) -> Tensor:
        """The means (B, 2, MOST) after one event per user."""
        return leaning * torch.exp(self.rate)[:, None] + self._about(event)[:, None] * self.share[:, None]

    def after(self, leaning: Tensor, events: EventBatch, count: Tensor) -> Tensor:
        """The means after the first `count` (B, 1) of T events, (B, 2, MOST) like those before."""
        behind = (count - 1 - torch.arange(events.item_known.shape[1], device=count.device))[:, None]  # (B, 1, T)
        left = torch.exp(torch.relu(behind.to(torch.float32)) * self.rate[:, None])  # (B, 2, T)
        weights = torch.where(behind >= 0, left * self.share[:, None], 0.0)
        faded = torch.exp(count.to(torch.float32) * self.rate)[..., None]  # (B, 2, 1)
        return leaning * faded + torch.matmul(weights, self._about(events))

    def _about(self, events: EventBatch) -> Tensor:
        """The labels of the items of events (...), without what they lead to -> (..., MOST)."""
        said = torch.softmax(torch.matmul(events.item_vector[..., : self.width], self.reading) + self.prior, -1)
        return torch.where(events.item_known[..., None], said, 0.0)
