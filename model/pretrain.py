"""Pretraining without answers, for ablation (`train.pretrain` passes): two views of what a user did must find each other.

A view is a stretch of a window of the user's training events, of which some items are hidden; dropout does the rest. What is
compared is the interest vector after it, against those of all other users of the batch. Neither view knows the user's attributes,
and each is asked at a moment of its own: both would give the user away.

Source: CL4SRec (Xie et al. 2020, arXiv:2010.14395: crop and mask; its third view, reordering, would spoil the gaps), with the
loss of SimCLR (Chen et al. 2020, arXiv:2002.05709); without views of data, by dropout alone, it is DuoRec (Qiu et al. 2022,
arXiv:2110.05730).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.data.sequences import Int64
from model.inputs import Inputs
from model.nets import Longwave

LEAST = 20
"""Training events of a user who takes part."""
WINDOW = 200
CROP = 0.6
"""Of a window, what a view has."""
HIDDEN = 0.3
"""Share of a view's items that are hidden."""
USERS = 128
TEMPERATURE = 0.1
WEEK_MS = 7 * 86_400_000


def info_nce(one: Tensor, other: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Of two views (B, D) each: the mean cross-entropy of finding a view's other one among all 2 B - 1 others, by cosine."""
    both = nn.functional.normalize(torch.cat([one, other]), dim=1)
    users = len(one)
    alike = torch.mm(both, both.t()) / temperature
    alike = alike.masked_fill(torch.eye(2 * users, dtype=torch.bool, device=both.device), -torch.inf)
    return nn.functional.cross_entropy(alike, torch.arange(2 * users, device=both.device).roll(users))


def windows(begin: Int64, end: Int64, rng: np.random.Generator, users: int = USERS) -> Iterator[Int64]:
    """One pass: (b, 2) first and last row + 1 of a window of each user with enough events in `begin[u]:end[u]`, by length."""
    able = np.flatnonzero(end - begin >= LEAST)
    length = np.minimum(end[able] - begin[able], WINDOW)
    first = begin[able] + rng.integers(0, end[able] - begin[able] - length + 1)
    order = np.argsort(length + rng.uniform(0, LEAST, len(able)), kind="stable")
    batches = [order[at : at + users] for at in range(0, len(order), users)]
    for number in rng.permutation(len(batches)):
        chosen = batches[number]
        if len(chosen) > 1:
            yield np.stack([first[chosen], first[chosen] + length[chosen]], 1)


def view(window: Int64, rng: np.random.Generator) -> tuple[Int64, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """A stretch of each window (b, 2): event rows (b, T), which of them are valid, and whose items are hidden."""
    whole = window[:, 1] - window[:, 0]
    length = np.maximum(1, np.round(CROP * whole).astype(np.int64))
    first = window[:, 0] + rng.integers(0, whole - length + 1)
    valid = np.arange(length.max()) < length[:, None]
    rows = np.where(valid, first[:, None] + np.arange(length.max()), window[:, :1])
    return rows, valid, valid & (rng.random(rows.shape) < HIDDEN)


def interest_of_view(net: Longwave, inputs: Inputs, matrix: Tensor, window: Int64, rng: np.random.Generator) -> Tensor:
    """(b, D): the first interest vector of users without attributes after a view, asked within a week of its last event."""
    rows, valid, hidden = (torch.as_tensor(part, device=net.device) for part in view(window, rng))
    events = inputs.events(rows, matrix)
    shown = ~hidden
    events = events._replace(item_vector=events.item_vector * shown[..., None], item_known=events.item_known & shown)
    length = valid.sum(1, keepdim=True)
    as_of = events.time.gather(1, length - 1)[:, 0] + torch.as_tensor(rng.integers(0, WEEK_MS, len(rows)), device=net.device)
    state = net.initial_state(inputs.attributes.new_zeros(len(rows), inputs.attributes.shape[1]))
    readout, _ = net(events, valid, state, length, as_of, torch.zeros_like(as_of))
    interest: Tensor = readout.interests[:, 0, : net.config.width].float()
    return interest
