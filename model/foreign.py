"""Late in training some users begin with what another has left: a state that has gone on for long is then nothing new to the net.

For ablation (`train.foreign`, 0 by default): training sees few states as old as those of a live service.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from model.inputs import Inputs
from model.lanes import LaneBatch
from model.nets import Longwave, State
from model.predict import Carried

KEPT = 64
"""States of users who have ended that are kept to begin with, the latest ones."""


class Foreign(Carried):
    """A share of the fresh users begin with the detached state of a user who has ended instead of the initial one.

    The state is moved in time, as if its user had ended at the fresh one's first event: else that user's events would be late
    until they passed the other's clock. Own repeats stay each user's own.
    """

    def __init__(self, share: float, rng: np.random.Generator) -> None:
        super().__init__()
        self.share, self.rng = share, rng
        self.left: deque[State] = deque(maxlen=KEPT)

    def enter(self, net: Longwave, inputs: Inputs, batch: LaneBatch) -> State:
        state = super().enter(net, inputs, batch)
        able = np.flatnonzero(batch.fresh & batch.valid[:, 0])
        lanes = able[self.rng.random(len(able)) < self.share]
        if not len(lanes) or not self.left:
            return state
        chosen = torch.as_tensor(lanes, device=inputs.time.device)
        taken = [self.left[index] for index in self.rng.integers(len(self.left), size=len(lanes))]
        other = {name: torch.stack([each[name] for each in taken]) for name in taken[0]}
        begins = inputs.time[torch.as_tensor(batch.rows[lanes, 0], device=chosen.device)][:, None]
        passed_s = torch.div(begins - other["clock"], 1000, rounding_mode="floor").to(torch.int32)
        other |= {"clock": begins, "ring_time": other["ring_time"] + passed_s}
        return state | {name: state[name].index_copy(0, chosen, tensor) for name, tensor in other.items()}

    def leave(self, batch: LaneBatch, state: State) -> None:
        super().leave(batch, state)
        # The state behind padding is of no use.
        whole = batch.last & batch.valid.all(1)
        self.left.extend(self.state[user] for user in batch.user[whole].tolist())
