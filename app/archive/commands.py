"""`longwave archive`, `longwave restore`, `longwave import`. pyarrow is imported when one of them runs, and not before."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from app.errors import LongwaveError, StorageAddressError, StorageError
from app.settings import Settings, SettingsError, load_settings, variable
from app.telemetry import configure_logs

BAD_INPUT = 2
LATE = 1
# A commit is due after one interval; another may have failed and be tried again, and writing and compacting take their time.
_LATE_INTERVALS = 3
_LATE_S = 60

log = structlog.get_logger()

ArchiveDir = Annotated[Path | None, typer.Option(help="Folder of the archive.", show_default=False)]
StorageDir = Annotated[Path | None, typer.Option(help="Folder of the embedded Redis.", show_default=False)]


def register(cli: typer.Typer) -> None:
    """Add the commands to `longwave`."""
    cli.command()(archive)
    cli.command()(restore)
    cli.command()(rebuild)
    cli.command("import")(import_)


def archive(
    follow: Annotated[bool, typer.Option("--follow", help="Go on until stopped.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Archive what is there, and end (the default).")] = False,
    erase_now: Annotated[bool, typer.Option("--erase-now", help="Carry out erasures in the files at once.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Archive nothing; exit with 1 if events wait for too long.")] = False,
    archive_dir: ArchiveDir = None,
    storage_dir: StorageDir = None,
) -> None:
    """Move the event log into Parquet files, and compact them."""
    if follow and (once or erase_now):
        raise typer.BadParameter("--follow goes with neither --once nor --erase-now")
    if check and (follow or once or erase_now):
        raise typer.BadParameter("--check goes with no other option")
    # Arrow's own allocators keep what is freed, this one gives it back. Read when pyarrow is imported; others may be set.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    with one_line_errors(), ExitStack() as stack:
        from app.archive.archive import Archive
        from app.archive.archiver import Archiver
        from app.archive.expiry import Expiry
        from app.archive.halfway import finisher
        from app.archive.identity import compare, refusal
        from app.archive.items import TENANT, ItemsFile
        from app.archive.log import RedisLog, oldest_ms
        from app.archive.persisted import rewrite_persisted
        from app.archive.rewriting import Rewriting
        from app.state.keys import PARTITIONS
        from app.state.opening import open_store

        settings = _settings(archive_dir=archive_dir, storage_dir=storage_dir)
        configure_logs(settings.log_level, settings.log_format)
        url = _url(settings, stack)
        client, into = _client(settings, url, stack), Archive(settings.archive_folder)
        events = RedisLog(client)
        if check:
            strange = refusal(into.folder, compare(into.latest(), events), range(PARTITIONS))
            if strange is not None:
                raise strange
            _check(oldest_ms(events), settings.archive_interval_s)
            return
        erase_within_s, lease_ms = settings.archive_erase_within_s, settings.archive_lease_ms
        # What goes on for months keeps nothing of what a compaction takes; what ends with it needs no other process.
        rewriter = Rewriting(into.folder, erase_within_s, lease_ms, settings.log_level, settings.log_format) if follow else None
        days = settings.user_retention_days if settings.archived else 0
        archiver = Archiver(
            into,
            events,
            batch_rows=settings.archive_batch_rows,
            interval_s=settings.archive_interval_s,
            lease_ms=lease_ms,
            erase_within_s=erase_within_s,
            # It looks at every user: what ends soon does so only where the settings ask for it.
            expiry=Expiry(client, into, days, finisher(lambda: open_store(settings, url))) if days or follow else None,
            items=ItemsFile(client, into.folder, TENANT),
            rewriter=rewriter,
            on_erased=lambda: rewrite_persisted(client),
        )
        warn_of_retention(settings)
        if not follow:
            rows = archiver.once(erase_now)
            Console().print(f"{rows:,} records -> {settings.archive_folder}", soft_wrap=True, highlight=False)
            return
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        archiver.follow(stop)


def warn_of_retention(settings: Settings) -> None:
    """Say that no user expires where the settings ask for it without an archive."""
    if settings.user_retention_days and not settings.archived:
        log.warning("no idle user leaves Redis: nothing is archived", days=settings.user_retention_days, archive=settings.archive)


def restore(
    archive_dir: ArchiveDir = None,
    storage_dir: StorageDir = None,
) -> None:
    """Rebuild an empty Redis from the archive."""
    with one_line_errors(), ExitStack() as stack:
        from app.archive.archive import Archive
        from app.archive.halfway import finisher
        from app.archive.restore import restore as run
        from app.state.opening import open_store

        settings = _settings(archive_dir=archive_dir, storage_dir=storage_dir)
        url = _url(settings, stack)
        with _bar() as bar:
            task = bar.add_task("restoring", total=None)
            done = run(
                Archive(settings.archive_folder),
                _client(settings, url, stack),
                max_sequence=settings.max_sequence,
                dedupe_window=settings.dedupe_window,
                tombstone_ttl_s=settings.tombstone_ttl_s,
                on_user=lambda: bar.advance(task),
            )
        finisher(lambda: open_store(settings, url))(done.halfway)
    Console().print(
        f"{done.users:,} users with {done.events:,} events, {done.aliases:,} aliases, {done.tombstones:,} tombstones, "
        f"{done.items:,} items of the catalogue",
        highlight=False,
    )


def rebuild(
    bundle: Annotated[Path | None, typer.Option(help="Bundle of the model.", show_default=False)] = None,
    archive_dir: ArchiveDir = None,
    storage_dir: StorageDir = None,
) -> None:
    """Fold every user's state from the archive's first event on, beyond what the stored sequences hold."""
    with one_line_errors(), ExitStack() as stack:
        from app.archive.archive import Archive
        from app.archive.histories import histories
        from app.archive.rebuild import rebuild as run
        from app.models.served import fold_of
        from app.models.shelf import load_model
        from app.state.opening import open_store

        settings = _settings(bundle_dir=bundle, archive_dir=archive_dir, storage_dir=storage_dir)
        runtime = load_model(settings.bundle_dir, settings.device, settings.intra_op_threads)
        url = _url(settings, stack)

        async def work() -> Any:
            store = open_store(settings, url, timeout_ms=60_000)
            try:
                with _bar() as bar:
                    task = bar.add_task("folding", total=None)
                    return await run(
                        histories(Archive(settings.archive_folder)),
                        store,
                        await fold_of(runtime, settings, store),
                        runtime.bundle.manifest.model_id,
                        lambda users: bar.advance(task, users),
                    )
            finally:
                await store.close()

        done = asyncio.run(work())
    Console().print(
        f"{done.stored:,} states stored, {done.current:,} were as good, {done.differs:,} users differ from the archive",
        highlight=False,
    )


def import_(
    files: Annotated[list[Path], typer.Argument(help="Parquet, .csv or .tsv files.", show_default=False)],
    column: Annotated[list[str] | None, typer.Option(help="key=column, for instance user=customer_id.")] = None,
    event_type: Annotated[str | None, typer.Option("--type", help="Type of all events, where no column says it.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle with the event types.", show_default=False)] = None,
    import_id: Annotated[str | None, typer.Option(help="Default: a hash of the files.", show_default=False)] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Pass over rows that cannot be stored.")] = False,
    storage_dir: StorageDir = None,
) -> None:
    """Load histories into users' sequences; what was killed is run again. Popularity is left alone."""
    with one_line_errors(), ExitStack() as stack:
        from app.archive.imports import import_files, import_id_of
        from app.archive.items import TENANT
        from app.archive.tables import read_mapping
        from app.runtime.bundle import read_bundle
        from app.state.opening import open_store

        settings = _settings(bundle_dir=bundle, storage_dir=storage_dir)
        mapping = read_mapping(column or [])
        types = [declared.name for declared in read_bundle(settings.bundle_dir).manifest.event_types]
        url = _url(settings, stack)
        same = import_id or import_id_of(files, mapping, event_type)

        async def run() -> Any:
            store = open_store(settings, url, timeout_ms=60_000)  # many users are written at a time
            try:
                with _bar() as bar:
                    tasks = {what: bar.add_task(what, total=1.0) for what in ("reading", "writing")}
                    return await import_files(
                        files,
                        store,
                        tenant=TENANT,
                        import_id=same,
                        known_types=types,
                        mapping=mapping,
                        event_type=event_type,
                        skip_bad=skip_bad,
                        max_future_s=settings.max_future_s,
                        on_progress=lambda what, done: bar.update(tasks[what], completed=done),
                    )
            finally:
                await store.close()

        done = asyncio.run(run())
    console = Console(stderr=True)
    for reason in [*done.reasons, *done.damages]:
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    passed = f", {done.refused:,} rows passed over" if done.refused else ""
    passed += f", {done.known:,} rows of before their users were erased, or whose event ids they had" if done.known else ""
    passed += f", {done.damaged:,} damaged users left out: erase them and run the same import again" if done.damaged else ""
    Console().print(
        f"import {same}: {done.rows:,} events of {done.users:,} users; {done.again:,} users had it already{passed}",
        highlight=False,
        soft_wrap=True,
    )
    if done.damaged:
        raise typer.Exit(1)


def _check(oldest: int | None, interval_s: float) -> None:
    """Say how long the oldest record has waited, and exit with 1 if that is longer than a healthy archiver takes."""
    waited_s = 0.0 if oldest is None else max(0.0, time.time() - oldest / 1000)
    limit_s = _LATE_INTERVALS * interval_s + _LATE_S
    late = waited_s > limit_s
    words = f"events wait for {waited_s:.0f} s, which is {'more' if late else 'no more'} than {limit_s:.0f} s"
    Console().print("nothing waits" if oldest is None else words, highlight=False)
    if late:
        raise typer.Exit(LATE)


def _url(settings: Settings, stack: ExitStack) -> str:
    """The Redis of the settings; without one, the embedded server of the running service, or else one of our own."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from app.state.opening import embedded_redis

    if settings.redis_url is not None:
        return settings.redis_url
    socket = settings.storage_dir.absolute() / "redis.sock"
    try:
        with redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)) as client:
            client.ping()
        return f"unix://{socket}"
    except redis.RedisError:
        return stack.enter_context(embedded_redis(settings)).url


def _client(settings: Settings, url: str, stack: ExitStack) -> Any:
    import redis

    timeout_s = max(settings.redis_timeout_ms / 1000, 10)  # reads thousands of records a call
    kind = redis.RedisCluster if settings.redis_cluster else redis.Redis
    try:
        client = stack.enter_context(kind.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s))
        client.ping()
    except ValueError as error:
        raise StorageAddressError(f"{variable('redis_url')}: not an address of a Redis: {error}") from error
    except redis.RedisError as error:
        raise StorageError(f"Redis does not answer: {error}") from error
    return client


def _settings(**options: Any) -> Settings:
    return load_settings(**{name: value for name, value in options.items() if value is not None}).resolved()


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.completed:,.0f}"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What people can mend is said without a traceback, and exit code 2."""
    errors = Console(stderr=True)
    try:
        yield
        return
    except LongwaveError as error:
        said = error.detail
    except SettingsError as error:
        said = str(error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pyarrow":
            raise
        said = "pyarrow is not installed: this command needs the extra `archive`"
    except BaseExceptionGroup as group:  # of the tasks that write an import
        found = group.subgroup(LongwaveError)
        if found is None:
            raise
        first: BaseException = found
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        said = str(first)
    errors.print("error:", said, soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(BAD_INPUT)
