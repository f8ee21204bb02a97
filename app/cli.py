"""`longwave`: the service's commands. Each one only reads its options and calls what does the work."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.archive.commands import register, warn_of_retention
from app.archive.experiment.command import experiment
from app.errors import LongwaveError, StorageAddressError
from app.ours import ours
from app.settings import Settings, SettingsError, load_settings, variable
from app.telemetry import MULTIPROCESS_DIR, configure_logs

if TYPE_CHECKING:
    from app.runtime.bundle import Bundle as OpenedBundle

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Longwave, a recommender.")

register(cli)
cli.command()(experiment)

Bundle = Annotated[Path | None, typer.Option(help="Folder of the bundle.", show_default=False)]
StorageDir = Annotated[Path | None, typer.Option(help="Folder of the embedded Redis.", show_default=False)]

# After so long without a sign of life one of several workers is killed and another one started. uvicorn's own 5 s are less than a
# worker may take to import what it needs on a busy machine, and then none ever starts.
_WORKER_SILENT_S = 60


@cli.command()
def serve(
    bundle: Bundle = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default=False)] = None,
    workers: Annotated[int | None, typer.Option(help="Server processes.", show_default=False)] = None,
    storage_dir: StorageDir = None,
) -> None:
    """Serve a bundle over HTTP. Options win over the LONGWAVE_ environment variables."""
    import uvicorn

    from app.keeper import kept
    from app.runtime.bundle import read_bundle
    from app.state.embedded import EMBEDDED_URL
    from app.state.opening import embedded_redis

    settings = _settings(bundle_dir=bundle, host=host, port=port, workers=workers, storage_dir=storage_dir)
    configure_logs(settings.log_level, settings.log_format)
    with ExitStack() as stack:
        try:
            # What cannot work is better said once, here, than by each worker. The bundle is let go of: this process may be the
            # worker, which reads it for itself.
            graphs = _graphs(read_bundle(settings.bundle_dir))
            if settings.device == "cuda":
                _demand_cuda(graphs)
            url = settings.redis_url
            if url is not None:
                _check_address(url)
            else:
                url = stack.enter_context(embedded_redis(settings)).url
                os.environ[EMBEDDED_URL] = url
        except LongwaveError as error:
            _fail(error.detail)
        settings = settings.resolved()
        warn_of_retention(settings)
        _export(settings, url)
        if settings.archive == "inside":
            stack.enter_context(kept("archiver", ours("from app.cli import main; main()", "archive", "--follow")))
        if settings.workers > 1:
            os.environ[MULTIPROCESS_DIR] = stack.enter_context(tempfile.TemporaryDirectory(prefix="longwave-metrics-"))
        # uvicorn raises the signal that stopped it once more when it is done; as an exit, it lets the stack unwind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        serving: dict[str, Any] = {
            "app": "app.main:create_app",
            "factory": True,
            "host": settings.host,
            "port": settings.port,
            "workers": settings.workers,
            "loop": "uvloop",
            "http": "app.api.connection:BoundedProtocol",
            "ws": "none",  # where a library for them is installed, uvicorn would take these connections out of the bounds
            "log_level": settings.log_level,
            "access_log": False,
            "server_header": False,
            "proxy_headers": False,  # nothing here asks who the client is
            "timeout_graceful_shutdown": 10,
            "timeout_worker_healthcheck": _WORKER_SILENT_S,
        }
        if settings.workers > 1:
            from uvicorn.config import STARTUP_FAILURE

            from app.workers import Workers

            several = Workers(uvicorn.Config(**serving))
            several.run()
            if several.failed:
                sys.exit(STARTUP_FAILURE)
        else:
            uvicorn.run(**serving)


@cli.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop at the end; the last line is one JSON object.")] = False,
    data: Annotated[Path | None, typer.Option(help="Where Online Retail lies.", show_default=False)] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Folder for everything that the demo makes.")] = Path(".demo"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port to listen on; default: 8000, or a free one.", show_default=False)] = None,
    dataset: Annotated[
        Literal["auto", "online-retail", "synthetic-demo"],
        typer.Option(help="auto: Online Retail, or the synthetic world where it cannot be had."),
    ] = "auto",
    limit: Annotated[int, typer.Option(min=0, help="Replay only the first so many questions; 0 replays all.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Do not train again if the folder has a run on the same data.")] = False,
) -> None:
    """Train on real data, serve the model, replay real customers over HTTP and show what changed."""
    began_s = time.monotonic()
    try:
        from app.demo.demo import Options, run_demo
        from app.demo.signals import Interrupted
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "app":
            raise
        _fail(f"{error.name} is not installed: the demo needs the extras `cpu`, `train` and `demo`")
    try:
        run_demo(Options(once, folder, data, dataset, host, port, limit, keep), Console(), began_s)
    except Interrupted:
        Console(stderr=True).print("interrupted; everything that the demo started is stopped")
        raise
    except LongwaveError as error:
        _fail(error.detail)
    except SettingsError as error:
        _fail(str(error))


@cli.command()
def doctor(bundle: Bundle = None, storage_dir: StorageDir = None) -> None:
    """Check everything the service needs; exits with 1 if something is broken."""
    from app.doctor import examine

    findings = examine(_settings(bundle_dir=bundle, storage_dir=storage_dir))
    table = Table("", "", "", show_header=False)
    for finding in findings:
        table.add_row(finding.check, "[green]ok[/]" if finding.well else "[red]broken[/]", escape(finding.found))
    Console().print(table)
    raise typer.Exit(0 if all(finding.well for finding in findings) else 1)


def _settings(**options: Any) -> Settings:
    try:
        return load_settings(**{name: value for name, value in options.items() if value is not None})
    except SettingsError as error:
        _fail(str(error))


def _graphs(bundle: OpenedBundle) -> Mapping[str, Path]:
    """The files of a bundle's graphs, by name."""
    return {name: bundle.file(graph.file) for name, graph in bundle.manifest.graphs.items()}


def _demand_cuda(graphs: Mapping[str, Path]) -> None:
    """Raise DeviceError if CUDA does not start. It is tried in a process of its own, whose end frees the card's memory."""
    from app.runtime.device import choose_device

    graph = graphs.get("score")
    if graph is not None:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as trial:
            trial.submit(choose_device, "cuda", graph).result()


def _check_address(url: str) -> None:
    from app.state.redis import RedisStore

    try:
        RedisStore(url)  # connects to nothing yet
    except StorageAddressError as error:
        _fail(f"{variable('redis_url')}: {error.detail}")


def _export(settings: Settings, redis_url: str) -> None:
    """Put the settings as they were resolved into the environment: workers are new processes and read them there, and one Redis
    serves them all."""
    resolved = settings.model_copy(
        update={
            "bundle_dir": settings.bundle_dir.absolute(),
            "storage_dir": settings.storage_dir.absolute(),
            "archive_dir": settings.archive_folder.absolute(),
            "redis_url": redis_url,
        }
    )
    ours = {variable(name) for name in Settings.model_fields}
    for name in [name for name in os.environ if name.upper() in ours]:  # pydantic reads them in any case
        del os.environ[name]
    for name, value in resolved.model_dump(mode="json").items():
        if value is not None:
            os.environ[variable(name)] = value if isinstance(value, str) else json.dumps(value)


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print("error:", message, soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(2)


def main() -> None:
    cli()
