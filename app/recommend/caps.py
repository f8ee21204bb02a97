"""At most so many items of a group: who has room for what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.recommend.rules import Bool, Cap, Int64, Rows

_CHUNK = 1_024
_AT_ONCE = 128  # items with room that are taken one after the other before all others are asked about anew
_BLOCK = 32_768
_FEW, _PART = 8_192, 16  # so many items are looked at any time, or so many times what was looked at


class Tally:
    """How many items of each group a list has, under some caps."""

    def __init__(self, caps: Sequence[Cap]) -> None:
        self.caps = caps
        self._counts: list[dict[int, int]] = [{} for _ in caps]
        self._full: list[set[int]] = [set() for _ in caps]

    def add(self, row: int) -> bool:
        """Take an item in; whether a group is full now that was not."""
        (codes,) = self.codes(np.asarray([row]))
        return self._add(codes)

    def add_if_room(self, codes: Sequence[Sequence[int]]) -> bool:
        """Take an item in whose `codes` these are, if no cap is against it; whether it was taken in."""
        for cap, full, of_item in zip(self.caps, self._full, codes, strict=True):
            if any(code in full or (cap.most == 0 and code != -1) for code in of_item):
                return False
        self._add(codes)
        return True

    def codes(self, rows: Rows) -> list[tuple[list[int], ...]]:
        """The groups of each of some items under each cap."""
        return list(zip(*(cap.codes(rows).tolist() for cap in self.caps), strict=True)) if self.caps else [()] * len(rows)

    def _add(self, codes: Sequence[Sequence[int]]) -> bool:
        filled = False
        for cap, counts, full, of_item in zip(self.caps, self._counts, self._full, codes, strict=True):
            for code in {*of_item} - {-1}:
                counts[code] = counts.get(code, 0) + 1
                if counts[code] >= cap.most and code not in full:
                    full.add(code)
                    filled = True
        return filled

    def blocking(self, rows: Rows) -> Int64:
        """(m,) which cap, the first if several, has no room for each row; -1: there is room."""
        found = np.full(len(rows), -1, np.int64)
        for number in reversed(range(len(self.caps))):
            found[self._blocked(number, self.caps[number].codes(rows))] = number
        return found

    def names(self, rows: Rows) -> tuple[str, ...]:
        """The caps that have no room for one of these rows."""
        return tuple(cap.name for number, cap in enumerate(self.caps) if self._blocked(number, cap.codes(rows)).any())

    def is_closed(self, looked_at: int) -> bool:
        """Whether no item at all can be taken in any more, as far as the caps know all items.

        To look at all of them is worth it only where the search has looked at a good part already: False before that.
        """
        numbers = [number for number, cap in enumerate(self.caps) if cap.count is not None]
        if not numbers:
            return False
        count = max(self.caps[number].count or 0 for number in numbers)
        if count > max(_FEW, _PART * looked_at):
            return False
        for start in range(0, count, _BLOCK):  # the first one has an item with room, nearly always
            rows = np.arange(start, min(start + _BLOCK, count))
            for number in numbers:
                rows = rows[~self._blocked(number, self.caps[number].codes(rows))]
            if len(rows):
                return False
        return True

    def _blocked(self, number: int, codes: Rows) -> Bool:
        """(m, G) codes -> (m,) whether one of them has no room under a cap."""
        full = self._full[number]
        if self.caps[number].most == 0:
            inside = codes != -1
        elif full:
            inside = np.isin(codes, np.fromiter(full, np.int64, len(full)))
        else:
            return np.zeros(len(codes), np.bool_)
        blocked: Bool = inside.any(axis=1)
        return blocked


def walk(rows: Rows, tally: Tally, most: int) -> list[int]:
    """Places in `rows` of the first `most` that the caps have room for, one after the other; `tally` takes them in."""
    if not tally.caps:
        return list(range(min(most, len(rows))))
    free = np.flatnonzero(tally.blocking(rows) < 0)
    rows = rows[free]
    taken: list[int] = []
    at, size = 0, _CHUNK
    while at < len(rows) and len(taken) < most:
        # In long strides where nothing has room, and few one by one: groups fill up, and what is closed is not touched again.
        end, size = min(at + size, len(rows)), 2 * size
        some = at + np.flatnonzero(tally.blocking(rows[at:end]) < 0)
        if len(some) > _AT_ONCE:
            some = some[:_AT_ONCE]
            end, size = int(some[-1]) + 1, _CHUNK
        for place, codes in zip(some.tolist(), tally.codes(rows[some]), strict=True):
            if len(taken) == most:
                break
            if tally.add_if_room(codes):
                taken.append(place)
        at = end
    places: list[int] = free[taken].tolist()
    return places
