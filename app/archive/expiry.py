"""Users of whom nothing was heard for long leave Redis, once the archive has all of their events; and merges that were cut off
are finished.

Both are looked for beside the archiving, slowly: when an event arrives, only the day is noted. Whether a user may go is decided
by the script that lets them go, so an event that arrives at the same moment keeps its user. See docs/adr/0011-retention.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from threading import Event
from typing import Any, Final

import structlog
from redis.exceptions import ResponseError

from app.archive.archive import Archive
from app.archive.halfway import Finish
from app.archive.log import evaluate, storage_errors
from app.archive.manifest import Manifest
from app.state import keys
from app.state.identities import PENDING
from app.state.text import encode_text

_METAS: Final = "lw:{*:meta:*"
_SCAN: Final = 1_000  # keys looked at in one go
_TOGETHER: Final = 500  # metas read in one go
_PAUSE_S: Final = 0.02  # after each: requests come first
_MOST_WAITING: Final = 1_000  # entries of the log that one script looks through: a millisecond or two
_PASS_EVERY_S: Final = 3_600.0
_DAY_S: Final = 86_400

USERS_A_STEP: Final = 10_000

log = structlog.get_logger()


class Expiry:
    """Lets idle users of one Redis go, and finishes merges that were cut off.

    Args:
        client: of redis-py, plain or of a Cluster, that does not decode responses.
        archive: what must have everything of a user before.
        days: whole days without any record of a user; 0: they stay.
        finish: finishes merges.
    """

    def __init__(self, client: Any, archive: Archive, days: int, finish: Finish = lambda users: 0) -> None:
        self._client = client
        self._archive = archive
        self._days = days
        self._finish = finish
        self._names: Iterator[bytes] | None = None
        self._begun_s = float("-inf")
        self._looked = self._gone = self._kept = 0

    def step(self, stop: Event) -> int:
        """Look at some more users, from the first one again not before an hour has passed; returns how many have gone, by
        expiry or by a merge that was finished.

        Raises:
            StorageError: Redis is away; the next step begins again with the first user.
            ArchiveError: the archive cannot be read.
        """
        if self._names is None:
            if time.monotonic() - self._begun_s < _PASS_EVERY_S:
                return 0
            self._begun_s = time.monotonic()
            self._looked = self._gone = self._kept = 0
            self._names = self._client.scan_iter(match=_METAS, count=_SCAN)
        return self._some(self._names, USERS_A_STEP, stop)

    def all(self, stop: Event) -> int:
        """Look at every user once; returns how many have gone. Raises like `step`."""
        self._begun_s = float("-inf")
        gone = self.step(stop)
        while self._names is not None and not stop.is_set():
            gone += self.step(stop)
        return gone

    def _some(self, names: Iterator[bytes], most: int, stop: Event) -> int:
        gone = looked = 0
        manifest = self._archive.latest()
        try:
            with storage_errors():
                models = [name.decode() for name in self._client.hkeys(keys.MODELS_KEY)]
                while looked < most and not stop.is_set():
                    some = tuple(islice(names, _TOGETHER))
                    looked += len(some)
                    idle, halfway = self._look(some)
                    gone += self._finish(halfway)
                    for tenant, user_id in idle:
                        result = self._expire(tenant, user_id, manifest, models)
                        gone += result == 1
                        self._kept += result < 0
                    if len(some) < _TOGETHER:
                        self._names = None
                        break
                    stop.wait(_PAUSE_S)
        except BaseException:
            self._names = None
            raise
        self._looked += looked
        self._gone += gone
        if self._names is None and (self._gone or self._kept):
            log.info("idle users have left Redis", looked=self._looked, gone=self._gone, not_archived=self._kept)
        return gone

    def _look(self, names: tuple[bytes, ...]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Those that the script should look at: it knows the hour of Redis, and decides. And those who are on their way to
        another."""
        found = [(name, user) for name in names if (user := keys.user_of_meta(name.decode())) is not None]
        pipeline = self._client.pipeline(transaction=False)
        for name, _ in found:
            pipeline.hmget(name, "e", "to", "d", "ms")
        today = time.time() // _DAY_S
        said = pipeline.execute(raise_on_error=False) if found else []
        metas = [(user, _sound(meta)) for (_, user), meta in zip(found, said, strict=True)]
        idle = [
            user
            for user, (epoch, to, day, _) in metas
            if self._days and epoch is not None and to is None and not (day and day.isdigit() and today - int(day) <= self._days)
        ]
        return idle, [user for user, (_, _, _, state) in metas if state == PENDING]

    def _expire(self, tenant: str, user_id: str, manifest: Manifest, models: list[str]) -> int:
        user, pp = keys.user_keys(tenant, user_id), keys.partition(tenant, user_id)
        states = (keys.state_key(tenant, model, user_id) for model in models)
        names = (user.meta, user.seq, user.ids, user.log, keys.log_identity_key(pp), user.shown, *states)
        who = (encode_text(text) for text in (tenant, user_id))
        # Where the archive may lack what another folder has, or had, the script gets no identity, and lets nobody go.
        known = (manifest.cursor(int(pp, 16)), manifest.identity(int(pp, 16)) if pp in manifest.whole else "")
        return int(evaluate(self._client, "expire", names, *who, *known, self._days, _MOST_WAITING))


def _sound(meta: Any) -> Any:
    """What was found of a meta; nothing where it is of another type, such as after a hand that slipped: one user's trouble."""
    if isinstance(meta, ResponseError) and "WRONGTYPE" in str(meta):
        return (None, None, None, None)
    if isinstance(meta, Exception):
        raise meta
    return meta
