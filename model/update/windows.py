"""What an update learns from: a stretch of each user who did something new, and of others, so that they are not forgotten.

A stretch is learned from with the user's state before it, which is folded without gradients: the cost is that of the stretches,
plus a fold of at most `history` events a user, however long the users have been there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from model.data.sequences import Int64, Queries, Sequences
from model.data.splits import select
from model.inputs import Inputs
from model.lanes import LaneBatch, lane_batches
from model.nets import Longwave, State
from model.predict import Carried

WARM_LANES = 256


@dataclass(frozen=True)
class Windows:
    """W stretches, one a user.

    Attributes:
        user: (W,) rows of the users, ascending. begin: (W,) first event of each stretch. fold: (W,) where folding its state
            starts: a whole number of chunks before.
        queries: what is learned, in any order. replayed: how many of them are old.
    """

    user: Int64
    begin: Int64
    fold: Int64
    queries: Queries
    replayed: int


def draw_windows(
    seq: Sequences,
    queries: Queries,
    new: npt.NDArray[np.bool_],
    replay: float,
    chunk: int,
    history: int,
    rng: np.random.Generator,
) -> Windows:
    """The stretches of all new questions, and of so many times as many old ones, of users drawn by how many they have.

    Args:
        queries: all that may be learned from, by whoever. new: (Q,) which of them are new.
        chunk: a stretch begins a whole number of chunks after its user's first event, or after where folding starts.
        history: most events that are folded before a stretch.
    """
    depth = queries.position - seq.offsets[queries.user]
    start = seq.offsets[queries.user] + depth // chunk * chunk  # a stretch that begins there has the query in its first chunk
    begin = np.full(seq.users, np.iinfo(np.int64).max)
    np.minimum.at(begin, queries.user[new], start[new])
    has_new = np.zeros(seq.users, bool)
    has_new[queries.user[new]] = True
    # Behind its beginning a stretch has all questions of its user, old ones too.
    chosen = has_new[queries.user] & (queries.position >= begin[queries.user])
    wanted = round(replay * int(new.sum()))
    taken = 0
    by_user = np.lexsort((queries.position, queries.user))
    place = queries.user[by_user].astype(np.int64) * (len(seq.item) + 1) + queries.position[by_user]
    for query in rng.permutation(np.flatnonzero(~has_new[queries.user])).tolist():
        if taken >= wanted:
            break
        user = int(queries.user[query])
        if begin[user] < np.iinfo(np.int64).max:
            continue
        begin[user] = start[query]
        # Only the chunk that it stands in: a stretch up to the user's last question could be the whole user.
        chunk_ends = user * (len(seq.item) + 1) + start[query] + np.array([0, chunk])
        first, last = np.searchsorted(place, chunk_ends)
        chosen[by_user[first:last]] = True
        taken += int(last - first)
    users = np.flatnonzero(begin < np.iinfo(np.int64).max).astype(np.int64)
    fold = np.maximum(seq.offsets[users], begin[users] - max(1, history // chunk) * chunk)
    return Windows(users, begin[users], fold, select(queries, chosen), int((chosen & ~new).sum()))


@torch.no_grad()
def fold_to(net: Longwave, inputs: Inputs, seq: Sequences, windows: Windows, chunk: int) -> dict[int, State]:
    """The state of each user before their stretch, own repeats aside; whose stretch begins where folding starts has none."""
    net.eval()
    inputs, on = inputs.on(net.device), partial(torch.as_tensor, device=net.device)
    item_matrix, _ = net.item(inputs.item_text, inputs.item_features)
    before = windows.begin > windows.fold
    user = windows.user[before]
    start = seq.offsets[:-1].copy()
    start[user] = windows.fold[before]
    # A question at the beginning of a stretch, only to say where folding ends.
    ends = Queries(
        user.astype(np.int32), windows.begin[before], np.zeros(len(user), np.int64), np.zeros(len(user) + 1, np.int64), _NONE
    )
    states: dict[int, State] = {}
    carried = Carried()
    nothing = torch.zeros(0, dtype=torch.int64, device=net.device)
    # Whole chunks: no row is padded, and a state after padding would be of no use.
    for batch in lane_batches(start, seq.offsets[1:], ends, WARM_LANES, chunk, None):
        state = carried.enter(net, inputs, batch)
        events = inputs.events(on(batch.rows), item_matrix)
        unasked = torch.full((len(batch.user), 1), -1, device=net.device)
        _, state = net(events, on(batch.valid), state, unasked, nothing, nothing)
        carried.leave(batch, state)
        for lane in np.flatnonzero((batch.query >= 0).any(1)):
            states[int(batch.user[lane])] = carried.state[int(batch.user[lane])]
    return states


class Begun(Carried):
    """Users begin with the state before their stretch instead of the initial one."""

    def __init__(self, states: dict[int, State]) -> None:
        super().__init__()
        self.states = states

    def enter(self, net: Longwave, inputs: Inputs, batch: LaneBatch) -> State:
        state = super().enter(net, inputs, batch)
        begun = [index for index, user in enumerate(batch.user) if batch.fresh[index] and int(user) in self.states]
        if not begun:
            return state
        left = [self.states[int(batch.user[index])] for index in begun]
        chosen = torch.as_tensor(begun, device=inputs.attributes.device)
        return state | {name: state[name].index_copy(0, chosen, torch.stack([user[name] for user in left])) for name in left[0]}


_NONE = np.zeros(0, np.int32)
