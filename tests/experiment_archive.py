"""Archives of experiments, made without a service: rows as the archiver writes them, and a manifest that names their files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.archive.archive import Archive
from app.archive.columns import SCHEMA
from app.archive.manifest import File, Manifest, Removal

DAY = "2026-11-02"
START_MS = 1_793_577_600_000  # its midnight
HOUR_MS = 3_600_000

_ADDED = {
    "list_experiment": pa.large_string(),
    "list_experiment_version": pa.int64(),
    "list_arm": pa.large_string(),
    "list_propensities": pa.large_list(pa.float64()),
}
WITH_EXPERIMENTS = pa.schema([*SCHEMA, *(pa.field(name, kind) for name, kind in _ADDED.items() if name not in SCHEMA.names)])


@dataclass
class ExperimentWorld:
    """Rows to be archived. The log's clock ticks with every row, the events' own clock is `START_MS` and what is given."""

    name: str | None = "home"
    rows: list[dict[str, Any]] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)

    def shown(
        self,
        user: str,
        arm: str,
        list_id: str,
        items: Sequence[str],
        after_h: float = 0.0,
        version: int = 1,
        propensities: Sequence[float | None] | None = None,
        **also: Any,
    ) -> None:
        self._add(
            kind="v",
            user_id=user,
            recommendation_id=list_id,
            time_ms=START_MS + round(after_h * HOUR_MS),
            list_items=list(items),
            list_positions=list(range(1, len(items) + 1)),
            list_experiment=self.name,
            list_experiment_version=version,
            list_arm=arm,
            list_ms=START_MS + round(after_h * HOUR_MS),
            list_propensities=None if propensities is None else list(propensities),
            **also,
        )

    def event(
        self,
        user: str,
        arm: str,
        list_id: str,
        item: str | None,
        type_: str = "view",
        after_h: float = 1.0,
        version: int = 1,
        **also: Any,
    ) -> None:
        self._add(
            **{
                "kind": "e",
                "user_id": user,
                "recommendation_id": list_id,
                "type": type_,
                "item_id": item,
                "time_ms": START_MS + round(after_h * HOUR_MS),
                "list_experiment": self.name,
                "list_experiment_version": version,
                "list_arm": arm,
                "list_ms": START_MS,
                **also,
            }
        )

    def moved(self, user: str, into: str) -> None:
        self._add(kind="m", user_id=user, other=into, count=0)

    def erased(self, user: str) -> None:
        """As before compaction: a removal waits, and the rows are there."""
        self._add(kind="x", user_id=user, gone_ms=START_MS)
        last = self.rows[-1]
        self.removals.append(Removal("default", user, 0, last["ms"], last["seq"]))

    def write(self, folder: Path, files: int = 1, row_group: int = 65_536, schema: pa.Schema = WITH_EXPERIMENTS) -> Archive:
        """Commit the rows, in `files` files of their order."""
        archive = Archive(folder)
        size = max(1, -(-len(self.rows) // files))
        written = []
        for number, first in enumerate(range(0, len(self.rows), size)):
            path = f"tenant=default/day={DAY}/{number:013d}-0.parquet"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            some = self.rows[first : first + size]
            pq.write_table(pa.Table.from_pylist(some, schema), folder / path, row_group_size=row_group, compression="zstd")
            raw = (folder / path).read_bytes()
            written.append(File(path, "default", DAY, len(some), len(raw), hashlib.sha256(raw).hexdigest()))
        manifest = Manifest(files=tuple(written), removals=tuple(self.removals))
        assert archive.publish(written, lambda _: manifest) is not None
        return archive

    def _add(self, **row: Any) -> None:
        self.rows.append({"partition": 0, "ms": START_MS + len(self.rows), "seq": 0, "tenant": "default"} | row)
