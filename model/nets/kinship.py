"""What goes with the last few items, whoever has them: their own vectors, summed with fast decays, as a part of the interest.

score(y) gets sum_s decay^(t - s) gain v(item_s) . v(y). Whatever was learned of an item as an answer says at once what it leads
to, and the reverse: where an item has ten events in all, a net that must first learn to pass vectors on learns by heart before
it does.
Source: factored item similarity (Kabbur et al. 2013, FISM), with tied vectors and decays in place of a mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.nets.event import EventBatch
from model.nets.transition import FadingSums

SHARE = 0.4
"""What the last item counts to begin with, all decays together: as much as in a plain sum that fades by a fifth an event."""


class Kinship(FadingSums):
    """The sums of the items' own vectors, D channels for each decay, and how much each counts at a moment."""

    def __init__(self, width: int, decays: Sequence[float]) -> None:
        super().__init__(width * len(decays), decays)
        self.width, self.groups = width, len(decays)
        self.gain = nn.Linear(width, self.groups)
        nn.init.zeros_(self.gain.weight)
        nn.init.constant_(self.gain.bias, SHARE / self.groups)

    def leads(self, events: EventBatch) -> Tensor:
        """The vectors of the items of events (...), once for each decay -> (..., W)."""
        vector = torch.where(events.item_known[..., None], events.item_vector[..., : self.width], 0.0)
        return torch.cat([vector] * self.groups, -1)

    def interest(self, kin: Tensor, z: Tensor) -> Tensor:
        """What the sums add to the interest: kin (n, W), z (n, D) -> (n, D)."""
        added: Tensor = (kin.view(-1, self.groups, self.width) * self.gain(z)[..., None]).sum(1)
        return added
