"""What the own-repeat memory holds, and when something happens to it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RepeatState(NamedTuple):
    """R slots per user.

    Attributes:
        key: (B, R) int64, 0 is empty.
        count: (B, R, C) float32 decayed weights at `time`.
        time: (B, R) int32 seconds since 2000 of the last event of the item, by the user's clock.
        seen: (B, R) int32 number of that event; the slot with the lowest is given up first.
        visit: (B, R) int32 number of the visit (events of one moment) that it was part of.
    """

    key: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody counts with
    time: Tensor
    seen: Tensor
    visit: Tensor


class Moment(NamedTuple):
    """When something happens, (B, 1) or (B, T) int64: the clock in seconds since 2000, the number of the event and the visit."""

    now_s: Tensor
    event: Tensor
    visit: Tensor
