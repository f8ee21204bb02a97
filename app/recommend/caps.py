"""At most so many items of a group: who has room for what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.recommend.rules import Bool, Cap, Int64, Rows, columns

_CHUNK = 1_024


class Tally:
    """How many items of each group a list has, under some caps."""

    def __init__(self, caps: Sequence[Cap]) -> None:
        self.caps = caps
        self._counts: list[dict[int, int]] = [{} for _ in caps]
        self._full: list[set[int]] = [set() for _ in caps]

    def add(self, row: int) -> bool:
        """Take an item in; whether a group is full now that was not."""
        filled = False
        for cap, counts, full in zip(self.caps, self._counts, self._full, strict=True):
            for code in {int(code) for code in cap.codes(np.asarray([row]))[0]} - {-1}:
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

    def is_closed(self) -> bool:
        """Whether no item at all can be taken in any more, as far as the caps know all items."""
        closed: Bool | None = None
        for number, cap in enumerate(self.caps):
            if not callable(cap.groups):
                blocked = self._blocked(number, columns(cap.groups))
                closed = blocked if closed is None else np.logical_or(closed, blocked)
        return closed is not None and bool(closed.all())

    def _blocked(self, number: int, codes: Rows) -> Bool:
        """(m, G) codes -> (m,) whether one of them has no room under a cap."""
        full = self._full[number]
        if self.caps[number].most == 0:
            inside = codes >= 0
        elif full:
            inside = np.isin(codes, np.fromiter(full, np.int64, len(full)))
        else:
            return np.zeros(len(codes), np.bool_)
        blocked: Bool = inside.any(axis=1)  # type: ignore[assignment]
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
        # Looked at again whenever a group has filled up, and in long strides: what is closed is not touched one by one.
        end, size = min(at + size, len(rows)), 2 * size
        for place in (at + np.flatnonzero(tally.blocking(rows[at:end]) < 0)).tolist():
            taken.append(place)
            filled = tally.add(int(rows[place]))
            if filled or len(taken) == most:
                end, size = place + 1, _CHUNK
                break
        at = end
    places: list[int] = free[taken].tolist()
    return places
