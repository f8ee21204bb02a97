"""The own-repeat memory after a block of events, all at once: exactly what one event after another leaves in every slot.

The memory gives up what was had least recently, and that can be told without following it event by event
(Mattson et al. 1970, Evaluation techniques for storage hierarchies: stack distances):

- An item is still there when it is had again if fewer than R other items were had in between: a hit, else a miss.
- A use of an item (a slot at the start, or an event) ends there unless the item's next use is a hit. Misses give up the ended
  uses in order of time: the j-th miss takes the slot of the j-th use that ended.
- So every event has one use before it in its slot: the item's own of a hit, the one given up of a miss. Following these
  pointers, at doubled length each time, leads to the slot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.nets.slots import Moment, RepeatState

BLOCK = 128
"""Most events of one block: work and memory grow with its square. At most 2 ** 7, see below."""


def remember_block(state: RepeatState, key: Tensor, add: Tensor, moment: Moment, rates: Tensor) -> RepeatState:
    """The memory after t <= BLOCK events of each user.

    Args:
        state: (B, R, ...). key: (B, t) int64, 0 for no item. add: (B, t, C). moment: (B, t) each. rates: (C) per second.

    Uses are numbered 0..U - 1, U = R + t: the slots as they are, then the events.
    """
    slots = state.key.shape[1]
    events = key.shape[1]
    number = torch.arange(events, device=key.device)
    place = torch.arange(slots + events, device=key.device)
    own = torch.zeros_like(state.key) + place[:slots]
    real = key != 0
    use = torch.cat([own >= 0, real], 1)
    keys = torch.cat([state.key, key], 1)
    times = torch.cat([state.time, moment.now_s.to(torch.int32)], 1)
    seen = torch.cat([state.seen, moment.event.to(torch.int32)], 1)
    visits = torch.cat([state.visit, moment.visit.to(torch.int32)], 1)

    # Which earlier uses are of the same item, (B, t, U); the use before each event, from 1, and the event after each use.
    earlier = place < number[:, None] + slots
    same = ((key[:, :, None] == keys[:, None]) & (earlier & real[:, :, None])).to(add.dtype)
    before = torch.amax(same * (place + 1), 2).to(torch.int64)  # 0: none
    after = events - torch.amax(same * (events - number)[:, None], 1)  # t: none

    # Hit: fewer than R items were last had between the use before and the event.
    previous = torch.where(before > 0, before - 1, 0)
    later = seen[:, None] > torch.gather(seen, 1, previous)[:, :, None]
    not_yet = torch.where(use, after, -1.0).to(add.dtype)[:, None] >= number[:, None]
    hit = (before > 0) & ((later & not_yet & earlier).to(add.dtype).sum(2) < slots)
    miss = real & ~hit

    # The uses that end, in order of time; slots that were never used come first, in order of place.
    goes_on = torch.gather(torch.cat([hit, hit[:, :1] & ~hit[:, :1]], 1), 1, after.to(torch.int64))
    age = seen.to(torch.int64) * len(place) + place
    ended = torch.topk(torch.where(use & ~goes_on, age, 2**62), events, dim=1, largest=False).indices
    rank = torch.cumsum(miss.to(torch.int64), 1) - 1
    parent = torch.where(hit, previous, torch.gather(ended, 1, torch.where(rank < 0, 0, rank)))

    # Each event's slot; and each slot's last use, which is nobody's parent. Events without item go to a place beyond the last.
    # After seven doublings 2 ** 7 steps: no chain is longer than BLOCK. (A loop would be one in the graph, and slower.)
    pointer = _twice_as_far(_twice_as_far(_twice_as_far(_twice_as_far(torch.cat([own, parent], 1)))))
    slot = _twice_as_far(_twice_as_far(_twice_as_far(pointer)))[:, slots:]
    beyond = torch.zeros_like(own[:, :1])
    followed = torch.zeros_like(torch.cat([pointer, beyond], 1))
    followed = followed.scatter(1, torch.where(real, parent, len(place)), torch.ones_like(parent))[:, slots:-1]
    target = torch.where(real & (followed == 0), slot, slots)
    last = torch.cat([own, beyond], 1).scatter(1, target, torch.zeros_like(parent) + place[slots:])[:, :slots]
    last_key = torch.gather(keys, 1, last)
    last_time = torch.gather(times, 1, last)

    # A use counts if its item is still there and was never missed since; channel by channel, (B, C, U).
    holder = torch.cat([own, torch.where(real, slot, 0)], 1)
    missed = torch.matmul(miss.to(add.dtype)[:, None], same)[:, 0]
    counts = use & (missed == 0) & (torch.gather(last_key, 1, holder) == keys)
    passed = torch.gather(last_time, 1, holder).to(torch.int64) - times.to(torch.int64)
    left = torch.exp(torch.relu(passed.to(torch.float32))[:, None] * -rates[:, None])
    amount = torch.where(counts[:, None], torch.cat([state.count, add], 1).transpose(1, 2) * left, 0.0)
    index = holder[:, None, slots:] + torch.zeros_like(rates, dtype=torch.int64)[:, None]
    count = amount[:, :, :slots].scatter_add(2, index, amount[:, :, slots:]).transpose(1, 2)
    return RepeatState(last_key, count, last_time, torch.gather(seen, 1, last), torch.gather(visits, 1, last))


def _twice_as_far(pointer: Tensor) -> Tensor:
    return torch.gather(pointer, 1, pointer)
