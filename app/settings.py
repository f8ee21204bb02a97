"""Every setting of the service: an environment variable `LONGWAVE_<NAME>` each, units in the names.

`python -m app.settings` writes docs/settings.md from this class; a test fails when that page is stale.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "LONGWAVE_"
TEN_YEARS_S = 315_360_000


class SettingsError(ValueError):
    """A setting has an impossible value; the message is one line per setting and names the variable."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    bundle_dir: Path = Field(Path("bundles/current"), description="Folder of the model bundle to serve.")
    storage_dir: Path = Field(
        Path(".longwave"),
        description="Folder where the embedded Redis keeps its append-only file. Unused when `redis_url` is set.",
    )
    redis_url: str | None = Field(
        None,
        description="Redis or Valkey (>= 6.2) to keep users in: `redis://`, `rediss://` or `unix://`. "
        "Unset: a private embedded server on a Unix socket, with persistence in `storage_dir`.",
    )
    redis_timeout_ms: int = Field(
        1000, ge=1, le=60_000, description="How long one call to Redis may take, connecting included, before it counts as away."
    )
    redis_cluster: bool = Field(False, description="`redis_url` is a node of a Redis Cluster; the others are found through it.")
    redis_wait_replicas: int = Field(
        0,
        ge=0,
        le=16,
        description="Acknowledge an event only when so many replicas have it (WAIT). At 0 a failover may lose some.",
    )
    redis_wait_fsync: bool = Field(
        False,
        description="Acknowledge an event only when it is on the master's disk (WAITAOF; Redis >= 7.2 with `appendonly yes`).",
    )
    redis_wait_ms: int = Field(
        500, ge=1, le=60_000, description="How long to wait for replicas and disk; then the event is not acknowledged (503)."
    )
    bundles_dir: Path | None = Field(
        None,
        description="Folder that new bundles are put into, each in a folder of its own, to be activated while the service runs. "
        "Unset: the folder of `bundle_dir`, if that is a link such as `bundles/current`.",
    )
    auto_activate: bool = Field(
        False,
        description="Activate by itself a bundle that comes into `bundles_dir` while the service runs, if it was made later than "
        "the active one and was neither active nor refused before. The same for all workers.",
    )
    model_poll_ms: int = Field(250, ge=10, le=1_000, description="How often a worker looks which model is active.")
    activation_timeout_s: int = Field(
        3_600, ge=1, le=TEN_YEARS_S, description="How long an activation may take, backfill included, before it is given up."
    )
    backfill_days: int = Field(
        30, ge=0, le=36_500, description="Users with events in so many days are folded with a new model before it serves."
    )
    backfill_events_per_s: int = Field(
        5_000, ge=1, le=10_000_000, description="At most so many events a second are folded by a backfill."
    )
    models_beside: int = Field(
        4,
        ge=0,
        le=256,
        description="Most models that stand beside the active one since arms of running experiments name them; each takes memory "
        "of its own. An experiment that wants more is refused (409). Where there are more already, they have theirs in the "
        "order of their names, and the active model answers for the arms that are left.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where the model runs. `auto` takes CUDA if ONNX Runtime offers it and it starts, else the CPU, and says "
        "which; `cuda` refuses to start without it.",
    )
    intra_op_threads: int = Field(
        1, ge=1, le=256, description="Threads of one ONNX Runtime call on the CPU. Small models are fastest with 1 per worker."
    )
    retrieval: Literal["auto", "exact", "index"] = Field(
        "auto",
        description="How the best items are found. `exact` scores all of them; `index` scores those that an index finds, "
        "which is made in the background. `auto` takes the index on a CPU from 100,000 items on, if faiss is installed.",
    )
    segment_rows: int = Field(
        1_048_576,
        ge=1_024,
        le=16_777_216,
        description="Items of one segment, where the items lie on a CUDA device. More need more of its memory while lists are "
        "made: some 16 bytes for each item of a segment and user of a batch (up to 32).",
    )
    max_sequence: int = Field(
        20_000, ge=1, le=1_000_000, description="Events kept per user in Redis; older ones live on in the state alone."
    )
    log_max_length: int = Field(
        100_000, ge=1, le=100_000_000, description="About how many events each of the 256 partitions of the event log keeps."
    )
    dedupe_window: int = Field(
        1_000,
        ge=0,
        le=100_000,
        description="How many of a user's latest event ids are remembered to recognise a retry; "
        "at least `max_batch_events`, or 0: none.",
    )
    state_ttl_s: int = Field(
        30 * 86_400,
        ge=60,
        le=TEN_YEARS_S,
        description="How long a stored state outlives its last use. It is a cache; the states of replaced models go this way.",
    )
    tombstone_ttl_s: int = Field(
        90 * 86_400,
        ge=60,
        le=400 * 86_400,  # as long as the archive remembers who was erased
        description="How long events that happened before their user was erased are refused: no late retry brings them back.",
    )
    state_cache_mb: int = Field(
        256, ge=0, le=65_536, description="Memory of each worker for the states of the users it served last; about 60 users a MB."
    )
    commit_events: int = Field(
        32,
        ge=1,
        le=10_000,
        description="A state goes to Redis when it is so many events ahead of what is there, or half of `max_sequence`; "
        "others fold what is missing.",
    )
    commit_delay_ms: int = Field(20, ge=0, le=60_000, description="How long states are gathered before a commit.")
    archive: Literal["auto", "inside", "elsewhere", "off"] = Field(
        "auto",
        description="Who moves the event log into the archive. `inside`: a process that this service starts; `elsewhere`: "
        "somebody runs `longwave archive --follow`; `off`: nobody, and the log is cut at `log_max_length`. `auto` is `inside` "
        "with the embedded Redis where the extra `archive` is installed, else `off`.",
    )
    archive_dir: Path | None = Field(None, description="Folder of the event log's archive. Unset: `archive` in `storage_dir`.")
    archive_interval_s: float = Field(
        60.0, ge=0.1, le=86_400, description="Longest that events wait in the log before they are archived."
    )
    archive_batch_rows: int = Field(
        100_000,
        ge=1,
        le=10_000_000,
        description="About how many events one commit of the archive takes; it does not wait when full.",
    )
    archive_lease_ms: int = Field(
        60_000, ge=100, le=3_600_000, description="How long a partition stays an archiver's own without a sign of life from it."
    )
    archive_erase_within_s: int = Field(
        86_400,
        ge=60,
        le=TEN_YEARS_S,
        validate_default=True,
        description="How soon after its arrival an erasure is carried out in the archive's files, too; at least twice "
        "`archive_interval_s`.",
    )
    user_retention_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Users of whom nothing came for so many days leave Redis once the archive has all of their events; who comes "
        "back begins anew. 0: never. Nobody leaves where nothing is archived.",
    )
    max_batch_events: int = Field(1_000, ge=1, le=100_000, validate_default=True, description="Most events in one request.")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="Largest request body, checked while it is read.")
    max_bodies_bytes: int = Field(
        128 * 1024 * 1024,
        ge=1024,
        description="Bodies longer than 64 KB that a worker reads at one time may have so many bytes; further ones get 503.",
    )
    max_connections: int = Field(
        900,
        ge=1,
        le=1_000_000,
        description="Open connections of a worker; further ones get 503. Usually a process may open 1,024 files (`ulimit -n`).",
    )
    request_timeout_s: float = Field(
        30.0,
        ge=0.1,
        le=86_400,
        description="How long a request may take to come in; then its connection is closed. By then 4 MB come at 1.1 Mbit/s.",
    )
    max_future_s: int = Field(
        3_600,
        ge=0,
        le=TEN_YEARS_S,
        description="How far ahead of the server's clock an event's time may lie; later ones are refused.",
    )
    popularity_refresh_ms: int = Field(
        5_000, ge=10, description="How often a worker reads the popularity counts that other workers changed."
    )
    context_fallback: bool = Field(
        True,
        description="Count what is used by platform and country, and give users without events what is popular where they are. "
        "Off: popularity is the same for everyone.",
    )
    catalogue_poll_ms: int = Field(
        100, ge=10, le=60_000, description="How often a worker looks for items that were changed, by whichever worker."
    )
    background_fold: bool = Field(
        True,
        description="Fold new events into states in the background. Off: reads fold them; answers are the same, but slower.",
    )
    fold_delay_ms: int = Field(
        2, ge=0, le=60_000, description="How long events are gathered before they are folded in the background."
    )
    fold_batch_users: int = Field(128, ge=1, le=4_096, description="Most users folded in one call of the model.")
    fold_batch_events: int = Field(512, ge=1, le=65_536, description="Most events folded in one call of the model.")
    max_unfolded_events: int = Field(
        20_000,
        ge=1,
        le=10_000_000,
        description="Events of a worker that may wait for the background fold; beyond it writes wait.",
    )
    write_wait_ms: int = Field(
        5_000,
        ge=0,
        le=600_000,
        description="How long a write waits while the fold is too far behind, and how long for those before it to be stored (no "
        "less than one call to Redis may take); then it gets 503.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on. There are no API keys yet: keep it on loopback.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=256, description="Server processes.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line that is written.")
    log_format: Literal["console", "json"] = Field("console", description="`json` writes one object a line.")

    @field_validator("max_batch_events")
    @classmethod
    def _within_the_window(cls, events: int, others: ValidationInfo) -> int:
        """A request of one user's events that is sent again must find all of their ids."""
        window = others.data.get("dedupe_window", 0)  # not there: impossible by itself
        if 0 < window < events:
            raise ValueError(
                f"more than {variable('dedupe_window')} ({window}): a request that is sent again would be stored again"
            )
        return events

    @field_validator("archive_erase_within_s")
    @classmethod
    def _after_two_intervals(cls, within_s: int, others: ValidationInfo) -> int:
        """An erasure is due at half of its time, and looked for once an interval."""
        interval_s = others.data.get("archive_interval_s", 0)  # not there: impossible by itself
        if within_s < 2 * interval_s:
            raise ValueError(f"less than twice {variable('archive_interval_s')} ({interval_s:g}): erasures would be late")
        return within_s

    @property
    def archive_folder(self) -> Path:
        """Where the archive is."""
        return self.archive_dir if self.archive_dir is not None else self.storage_dir / "archive"

    def resolved(self) -> Settings:
        """The same with `auto` decided, as long as it is known whether the Redis is the embedded one."""
        if self.archive != "auto":
            return self
        inside = self.redis_url is None and importlib.util.find_spec("pyarrow") is not None
        return self.model_copy(update={"archive": "inside" if inside else "off"})

    @property
    def log_bound(self) -> int:
        """`log_max_length`, or 0 where an archiver trims the log: what it has not taken must stay."""
        return 0 if self.archived else self.log_max_length

    @property
    def archived(self) -> bool:
        """Whether somebody moves the event log into the archive, as far as the settings say; of settings with `auto` decided."""
        return self.archive in ("inside", "elsewhere")


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment; `overrides` (by field name) win.

    Raises:
        SettingsError: a value is impossible, or an override is no setting.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [f"{variable(str(e['loc'][0]))}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
        raise SettingsError("; ".join(lines)) from None


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def reference() -> str:
    """docs/settings.md: every setting with its variable, default and meaning."""
    rows = ["# Settings", "", "Environment variables of `longwave serve`. Generated by `python -m app.settings`.", ""]
    rows += ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{variable(name)}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    target = Path(__file__).parents[1] / "docs" / "settings.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(reference(), encoding="utf-8")
