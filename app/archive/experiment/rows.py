"""The rows of one experiment in an archive, as arrays: its events at once, its impressions portion by portion.

Of the files only those row groups and columns are read that can have something of it. Users who were erased are left out, also
where their rows are still in the files, and merged ones are who they were merged into.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.archive.archive import Archive
from app.archive.columns import from_text, to_text
from app.archive.experiment.keys import Keys, Met, column_keys, pair_keys, places_in
from app.archive.files import day_of, read_file
from app.archive.items import TENANT
from app.archive.record import EVENT, HISTORY, IMPRESSION, MOVED

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_DAY_MS: Final = 86_400_000
_LEAST_CHANCE: Final = 1e-9  # of what was drawn; one list with less would outweigh all others, or be beyond any number
_PLACE: Final = ("kind", "ms", "seq", "user_id")
_ORIGIN: Final = ("list_experiment", "list_experiment_version", "list_arm")
_EVENT: Final = (*_PLACE, *_ORIGIN, "event_id", "recommendation_id", "type", "item_id", "time_ms", "list_ms")
_SHOWN: Final = (*_PLACE, *_ORIGIN, "recommendation_id", "time_ms", "list_items", "list_propensities")


@dataclass(slots=True)
class Events:
    """(E,) events that name a list of the experiment, each once.

    Attributes:
        list_key, pair_key: of the list, and of the list with the event's item.
        type, arm, version: places in `types` and in the reader's `arms`; the version's number.
        time_ms: when it happened. made_ms: when its list was made.
        repeated: rows that said again what another one says: repeats with the same id or time, copies that merges made.
    """

    list_key: Keys
    pair_key: Keys
    type: Ints
    arm: Ints
    version: Ints
    time_ms: Ints
    made_ms: Ints
    types: list[str]
    repeated: int

    def of(self, chosen: Bools | Ints) -> Events:
        """Those chosen by a mask or by their places, in that order."""
        return Events(
            self.list_key[chosen],
            self.pair_key[chosen],
            self.type[chosen],
            self.arm[chosen],
            self.version[chosen],
            self.time_ms[chosen],
            self.made_ms[chosen],
            self.types,
            self.repeated,
        )


@dataclass(slots=True)
class Shown:
    """(R,) impressions, and their items one after the other, (I,).

    Attributes:
        user_key: 0 for an impression that names no user.
        counts: (R,) how many items each has.
        weighable: (R,) whether it came with propensities. propensity: (I,), NaN for what was not drawn by chance.
    """

    list_key: Keys
    user_key: Keys
    arm: Ints
    time_ms: Ints
    counts: Ints
    weighable: Bools
    pair_key: Keys
    propensity: NDArray[np.float64]


class ExperimentRows:
    """Reads what an archive has of one experiment. `arms` and `versions` are those that were met so far.

    Args:
        name: as list ids say it.
        since_ms: rows that arrived more than a day earlier need not be read.
    """

    def __init__(self, archive: Archive, name: str, since_ms: int | None = None) -> None:
        self._archive = archive
        self._manifest = archive.existing()
        self._name = name
        self.arms: list[str] = []
        self.versions: set[int] = set()
        self._elsewhere: list[tuple[Keys, Ints]] = []
        self._met_elsewhere = Met()
        tenant = to_text(TENANT)
        # An event may lie ahead of the clock by an hour or so, and nothing arrives long before it happens.
        first_day = "" if since_ms is None else day_of(max(0, since_ms - _DAY_MS))
        files = [file for file in self._manifest.files if file.tenant == tenant]
        self._all_files = sorted(files, key=lambda file: (file.day, file.path))
        self._files = [file for file in self._all_files if file.day >= first_day]
        self._erased: dict[int, tuple[int, int]] = {}
        for removal in self._manifest.removals:
            key = hash(removal.user_id)
            self._erased[key] = max(self._erased.get(key, (0, 0)), (removal.ms, removal.seq))
        self._erased_keys = np.sort(np.fromiter(self._erased, np.int64, len(self._erased)).view(np.uint64))
        self._moves: dict[int, list[tuple[int, int, int]]] = {}
        self._moved_keys: Keys = np.empty(0, np.uint64)

    def events(self) -> Events:
        """The events of all versions. Raises ArchiveError."""
        lists, pairs, same = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        numbers = [np.empty((5, 0), np.int64)]
        types: dict[str, int] = {}
        for table in self._tables(_EVENT):
            self._note_versions(table)
            rows = table.filter(pc.is_in(table.column("kind"), value_set=pa.array([EVENT, HISTORY], pa.large_string())))
            lists.append(column_keys(_column(rows, "recommendation_id")))
            pairs.append(pair_keys(lists[-1], column_keys(_column(rows, "item_id"))))
            kinds, arms = _codes(_column(rows, "type"), types), self._arms_of(rows)
            versions, times, made = (_whole(rows, name) for name in ("list_experiment_version", "time_ms", "list_ms"))
            numbers.append(np.stack([kinds, arms, versions, times, made]))
            named = column_keys(_column(rows, "event_id"))
            unnamed = pair_keys(times.view(np.uint64), kinds.view(np.uint64))
            same.append(pair_keys(pairs[-1], np.where(named != 0, named, unnamed)))
        which = np.concatenate(same)
        once = np.sort(np.unique(which, return_index=True)[1])
        kinds, arms, versions, times, made = np.concatenate(numbers, axis=1)[:, once]
        repeated = len(which) - len(once)
        return Events(
            np.concatenate(lists)[once], np.concatenate(pairs)[once], kinds, arms, versions, times, made, list(types), repeated
        )

    def shown(self, versions: Collection[int]) -> Iterator[Shown]:
        """The impressions of these versions, in the order of their arrival as far as the files tell it. Raises ArchiveError."""
        self._read_moves()
        wanted = pa.array(sorted(versions), pa.int64())
        for table in self._tables(_SHOWN):
            versions_of = pc.fill_null(_column(table, "list_experiment_version"), 0)
            impression, asked = pc.equal(table.column("kind"), IMPRESSION), pc.is_in(versions_of, value_set=wanted)
            self._note_elsewhere(table.filter(pc.and_not(impression, asked)))
            rows = table.filter(pc.and_(impression, asked))
            if rows.num_rows:
                yield self._shown(rows)

    def elsewhere(self) -> tuple[Keys, Ints]:
        """Who saw lists of which arm under versions that were not asked for: users and arms, as far as `shown` has come."""
        users, arms = zip((np.empty(0, np.uint64), np.empty(0, np.int64)), *self._elsewhere, strict=True)
        return np.concatenate(users), np.concatenate(arms)

    def names(self) -> list[str]:
        """The experiments that the archive has something of, at any time. Raises ArchiveError."""
        found: set[str] = set()
        for file in self._all_files:
            for table in read_file(self._archive, file, ["list_experiment"], holding=("list_experiment", None)):
                found.update(name for name in pc.unique(table.column("list_experiment")).to_pylist() if name is not None)
        return sorted(found)

    def _shown(self, rows: pa.Table) -> Shown:
        items = _column(rows, "list_items").combine_chunks()
        counts = pc.fill_null(pc.list_value_length(items), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        lists = column_keys(_column(rows, "recommendation_id"))
        weighable, propensity = _propensities(rows, counts)
        return Shown(
            list_key=lists,
            user_key=self._who(rows),
            arm=self._arms_of(rows),
            time_ms=_whole(rows, "time_ms"),
            counts=counts,
            weighable=weighable,
            pair_key=pair_keys(np.repeat(lists, counts), column_keys(items.flatten(), from_text)),
            propensity=propensity,
        )

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The experiment's rows, a row group at a time, without those of erased users."""
        for file in self._files:
            for group in read_file(self._archive, file, columns, holding=("list_experiment", self._name)):
                table = group.filter(pc.equal(group.column("list_experiment"), self._name))
                if table.num_rows:
                    yield self._living(table)

    def _living(self, table: pa.Table) -> pa.Table:
        """The rows that erasures leave, also those that compaction has not carried out yet."""
        if not self._erased:
            return table
        users = column_keys(_column(table, "user_id"))
        keep = np.ones(len(users), bool)
        ms, seq = _whole(table, "ms"), _whole(table, "seq")
        for row in np.flatnonzero(places_in(self._erased_keys, users) >= 0).tolist():
            keep[row] = (int(ms[row]), int(seq[row])) > self._erased[int(users.view(np.int64)[row])]
        return table.filter(pa.array(keep))

    def _note_versions(self, table: pa.Table) -> None:
        self.versions.update(pc.unique(pc.fill_null(_column(table, "list_experiment_version"), 0)).to_pylist())

    def _arms_of(self, rows: pa.Table) -> Ints:
        known = {name: place for place, name in enumerate(self.arms)}
        codes = _codes(_column(rows, "list_arm"), known)
        self.arms = list(known)
        return codes

    def _note_elsewhere(self, rows: pa.Table) -> None:
        if rows.num_rows:
            users, arms = self._who(rows), self._arms_of(rows)
            new = self._met_elsewhere.new(pair_keys(users, arms.view(np.uint64)))
            self._elsewhere.append((users[new], arms[new]))

    def _read_moves(self) -> None:
        """Who was merged into whom, and when. Aliases of the erased are gone, as everything of theirs."""
        moves: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for file in self._files:
            for group in read_file(self._archive, file, (*_PLACE, "other"), holding=("other", None)):
                moved = pc.and_(pc.equal(group.column("kind"), MOVED), pc.is_valid(group.column("other")))  # else to the erased
                table = self._living(group.filter(moved))
                who, into = (column_keys(_column(table, name)).view(np.int64).tolist() for name in ("user_id", "other"))
                at = zip(_whole(table, "ms").tolist(), _whole(table, "seq").tolist(), strict=True)
                for user, other, (ms, seq) in zip(who, into, at, strict=True):
                    if ms > self._erased.get(other, (-1, 0))[0]:
                        moves[user].append((ms, seq, other))
        self._moves = {user: sorted(found) for user, found in moves.items()}
        self._moved_keys = np.sort(np.fromiter(self._moves, np.int64, len(self._moves)).view(np.uint64))

    def _who(self, rows: pa.Table) -> Keys:
        """Whom rows belong to that arrived under their users' names then; 0 for nobody."""
        users, ms, seq = column_keys(_column(rows, "user_id")), _whole(rows, "ms"), _whole(rows, "seq")
        users[pc.equal(rows.column("user_id"), "").to_numpy()] = 0
        signed = users.view(np.int64)
        for row in np.flatnonzero(places_in(self._moved_keys, users) >= 0).tolist():
            user, at = int(signed[row]), (int(ms[row]), int(seq[row]))
            for _ in range(len(self._moves)):  # no merge leads to itself; what is damaged may
                later = next((move for move in self._moves.get(user, ()) if move[:2] > at), None)
                if later is None:
                    break
                user, at = later[2], later[:2]
            signed[row] = user
        return users


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column, empty where the file is of before there was one."""
    if name in table.schema.names:
        return table.column(name)
    if name == "list_propensities":
        return pa.chunked_array([pa.nulls(table.num_rows, pa.large_list(pa.float64()))])
    whole = name in ("list_experiment_version", "list_ms")
    return pa.chunked_array([pa.nulls(table.num_rows, pa.int64() if whole else pa.large_string())])


def _whole(table: pa.Table, name: str) -> Ints:
    """A column of whole numbers, 0 for null."""
    return np.array(pc.fill_null(_column(table, name), 0).to_numpy(), np.int64)


def _codes(column: pa.ChunkedArray, known: dict[str, int]) -> Ints:
    """Each text's place in `known`, which gets those that are new; "" for null."""
    encoded = pc.dictionary_encode(pc.fill_null(column, "").combine_chunks())
    places = np.array([known.setdefault(text, len(known)) for text in encoded.dictionary.to_pylist()], np.int64)
    codes: Ints = places[encoded.indices.to_numpy(zero_copy_only=False)]
    return codes


def _propensities(rows: pa.Table, counts: Ints) -> tuple[Bools, NDArray[np.float64]]:
    """Which lists say of each of their items how likely it was, and that, NaN where nothing was left to chance."""
    told = _column(rows, "list_propensities").combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(told), -1).to_numpy(zero_copy_only=False)
    weighable = lengths == counts
    values = told.filter(pa.array(weighable)).flatten()
    chances = pc.fill_null(values, 1.0).to_numpy(zero_copy_only=False)
    propensity, wrong = np.full(int(counts.sum()), np.nan), np.zeros(int(counts.sum()), bool)
    said = np.repeat(weighable, counts)
    propensity[said] = np.where(values.is_null().to_numpy(zero_copy_only=False), np.nan, chances)
    # No chance is next to nothing, above 1 or no number: who says so says nothing that a list could be weighed by.
    wrong[said] = ~((chances >= _LEAST_CHANCE) & (chances <= 1))
    weighable[np.repeat(np.arange(len(counts)), counts)[wrong]] = False
    return weighable, propensity
