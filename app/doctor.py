"""`longwave doctor`: everything the service needs, tried out and said in a table."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import onnxruntime as ort

from app.errors import LongwaveError
from app.runtime.bundle import read_bundle
from app.runtime.device import choose_device
from app.runtime.golden import replay_golden
from app.runtime.session import open_runtime
from app.settings import Settings
from app.state.embedded import find_redis_server
from app.state.opening import open_store

_LEAST_FREE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Finding:
    """One line of the table: what was looked at, whether it is well, and what was found."""

    check: str
    well: bool
    found: str


def examine(settings: Settings) -> list[Finding]:
    """Try everything; what is broken is a finding, never an exception."""
    checks: dict[str, Callable[[Settings], str]] = {
        "python": _python,
        "onnxruntime": _onnxruntime,
        "bundle": _bundle,
        "device": _device,
        "redis": _redis,
        "disk": _disk,
    }
    findings = []
    for name, check in checks.items():
        try:
            findings.append(Finding(name, True, check(settings)))
        except LongwaveError as error:
            findings.append(Finding(name, False, error.detail))
        except OSError as error:
            findings.append(Finding(name, False, str(error)))
    return findings


class _BrokenError(LongwaveError):
    pass


def _python(settings: Settings) -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _onnxruntime(settings: Settings) -> str:
    return f"{ort.__version__}, offers {', '.join(ort.get_available_providers())}"


def _bundle(settings: Settings) -> str:
    began = perf_counter()
    bundle = read_bundle(settings.bundle_dir)
    runtime = open_runtime(bundle, settings.device, settings.intra_op_threads)
    compared = replay_golden(runtime)
    manifest = bundle.manifest
    return (
        f"{manifest.model_id} from {manifest.data_name}: {manifest.items.count} items, {len(manifest.files)} files verified, "
        f"{compared} golden outputs replayed in {perf_counter() - began:.1f} s"
    )


def _device(settings: Settings) -> str:
    bundle = read_bundle(settings.bundle_dir)
    device = choose_device(settings.device, bundle.file(bundle.manifest.graphs["score"].file))
    return f"{device.name}: {device.why}"


def _redis(settings: Settings) -> str:
    if settings.redis_url is None:
        return f"embedded, {find_redis_server()}, data in {settings.storage_dir}"

    async def ask(url: str) -> tuple[float, str | None, bool]:
        store, began = open_store(settings, url), perf_counter()
        try:
            await store.ping()
            return perf_counter() - began, await store.evicts(), await store.appends()
        finally:
            await store.close()

    took_s, policy, appends = asyncio.run(ask(settings.redis_url))
    if policy is not None:
        raise _BrokenError(f"gives up events and erasures when it is full (maxmemory-policy {policy}): set it to noeviction")
    answers = f"answers in {took_s * 1e3:.1f} ms, connecting included"
    # Not broken: a hosted one may rely on replicas instead.
    return answers if appends else f"{answers}; keeps no append-only file: killed, it loses what came since its last snapshot"


def _disk(settings: Settings) -> str:
    folder: Path = settings.storage_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free for {settings.storage_dir}"
    if settings.redis_url is None and not os.access(folder, os.W_OK):
        raise _BrokenError(f"{folder} is not writable")
    if free < _LEAST_FREE_BYTES:
        raise _BrokenError(f"{found}; at least {_LEAST_FREE_BYTES // 2**20} MiB are needed")
    return found
