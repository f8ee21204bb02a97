"""Where data comes from: a folder that is given or found, or the official address.

Only data sets with a public licence are fetched. Their checksums are pinned: a file of other content is refused.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx

from model.data.errors import DataError
from model.data.importers.registry import SOURCES

BLOCK = 1 << 20


@dataclass(frozen=True)
class Remote:
    """A zip archive with one data file in it. `sha256` is that of the archive."""

    url: str
    sha256: str
    member: str
    licence: str


REMOTES: dict[str, Remote] = {
    # Both years in one workbook.
    "online-retail": Remote(
        url="https://archive.ics.uci.edu/static/public/502/online+retail+ii.zip",
        sha256="572e36277c2390fbfde10664750731e0a86f55e33470d91919085f0408e67bfb",
        member="online_retail_II.xlsx",
        licence="CC BY 4.0",
    ),
    "online-retail-one-year": Remote(
        url="https://archive.ics.uci.edu/static/public/352/online+retail.zip",
        sha256="f5385cbb54bbebf7196389109c6b0621faab0c304e3702548165e71c84aede8b",
        member="Online Retail.xlsx",
        licence="CC BY 4.0",
    ),
}


def cache_folder() -> Path:
    """Where fetched data is kept: $XDG_CACHE_HOME/longwave/data, by default ~/.cache/longwave/data."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "longwave" / "data"


def find_data(name: str, explicit: Path | None = None) -> Path | None:
    """The folder of a data set known by name, or None.

    Looks at `explicit` (the data set's own folder or file, or the folder above it), and only there if given; else at
    LONGWAVE_DATA_DIR, then `../shared/data` beside the current folder and beside each folder above it, then the cache.

    Raises:
        DataError: `explicit` is not there.
    """
    folder = SOURCES[name].folder
    if explicit is not None:
        if not explicit.exists():
            raise DataError(f"{explicit}: not there (--data)")
        return explicit / folder if (explicit / folder).is_dir() else explicit
    return next((base / folder for base in _bases() if (base / folder).is_dir()), None)


def fetch(name: str, cache: Path | None = None, timeout_s: float = 30.0) -> Path:
    """Fetch a data set into the cache and return its folder; what is there already is not fetched again.

    Raises:
        DataError: the name has no public source, the network or the server fails, or the content is not what was pinned.
    """
    if name not in REMOTES:
        raise DataError(f"{name}: has no public licence, so it is not fetched; give its folder with --data or LONGWAVE_DATA_DIR")
    remote = REMOTES[name]
    folder = (cache or cache_folder()) / SOURCES[name].folder
    target = folder / remote.member
    if target.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch.", dir=folder) as staging:
        archive = Path(staging) / "archive.zip"
        found = _download(remote.url, archive, timeout_s)
        if found != remote.sha256:
            raise DataError(f"{remote.url}: sha256 is {found}, expected {remote.sha256}; nothing was kept")
        try:
            with zipfile.ZipFile(archive) as bundle:
                unpacked = Path(bundle.extract(remote.member, staging))
        except (KeyError, zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{remote.url}: no {remote.member} in the archive: {error}") from error
        unpacked.rename(target)
    return folder


def _bases() -> list[Path]:
    here = Path.cwd()
    given = os.environ.get("LONGWAVE_DATA_DIR")
    beside = [above.parent / "shared" / "data" for above in (here, *here.parents)]
    return ([Path(given)] if given else []) + list(dict.fromkeys(beside)) + [cache_folder()]


def _download(url: str, target: Path, timeout_s: float) -> str:
    """Stream to a file; the sha256 of what came."""
    digest = hashlib.sha256()
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=timeout_s) as response, target.open("wb") as out:
            response.raise_for_status()
            for block in response.iter_bytes(BLOCK):
                digest.update(block)
                out.write(block)
    except (httpx.HTTPError, OSError) as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{url}: cannot be fetched ({said}); offline, give a folder with --data or LONGWAVE_DATA_DIR") from error
    return digest.hexdigest()
