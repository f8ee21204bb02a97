"""`longwave-train prepare`: from a name or a path to a canonical folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from model.data import planted, turning
from model.data.dataset import Dataset, check_replaceable, write_dataset
from model.data.errors import DataError
from model.data.fetch import REMOTES, fetch, find_data
from model.data.importers import archive, table
from model.data.importers.items import read_items, with_items
from model.data.importers.registry import SOURCES, importer_for
from model.data.synthetic import SIZES, synthetic_world


def _world(size: str, seed: int) -> Dataset:
    return synthetic_world(size, seed).dataset


SYNTHETIC: dict[str, Callable[[int], Dataset]] = {f"synthetic-{size}": partial(_world, size) for size in SIZES}
SYNTHETIC[planted.NAME] = planted.planted_world
SYNTHETIC[turning.NAME] = lambda seed: turning.turning_world(seed).dataset


def prepare(
    what: str,
    out: Path,
    data: Path | None = None,
    columns: list[str] | None = None,
    mapping: Path | None = None,
    seed: int = 0,
    offline: bool = False,
    items: Path | None = None,
) -> Dataset:
    """Import, clean and write one data set.

    Args:
        what: a name (`SOURCES`, `SYNTHETIC`) or the path of a file or folder.
        out: the folder to write; an older data set there is replaced.
        data: where to look for a data set given by name.
        columns, mapping: which column is what, for a table that is none of the known formats (see `importers.table`).
        seed: of a synthetic world.
        offline: never fetch.
        items: a table of items, which counts before what the source says of them (see `importers.items`).

    Raises:
        DataError: bad input; nothing is written.
    """
    check_replaceable(out)  # before the minutes of work, not after
    given = None if items is None else read_items(items)
    dataset = import_dataset(what, data, columns, mapping, seed, offline)
    if given is not None:
        dataset = with_items(dataset, given)
    write_dataset(dataset, out)
    return dataset


def import_dataset(
    what: str,
    data: Path | None = None,
    columns: list[str] | None = None,
    mapping: Path | None = None,
    seed: int = 0,
    offline: bool = False,
) -> Dataset:
    """What `prepare` writes, in memory; arguments and errors as there."""
    columns = columns or []
    if columns or mapping is not None:
        if what in SOURCES or what in SYNTHETIC:
            raise DataError(f"{what}: has known columns; --column and --mapping are for the path of a table")
        if archive.recognise(Path(what)) and not columns:
            return archive.read(Path(what), table.read_meaning(mapping))
        return table.read(Path(what), table.read_mapping(mapping, columns))
    if what in SYNTHETIC:
        return SYNTHETIC[what](seed)
    if what in SOURCES:
        return SOURCES[what].read(_locate(what, data, offline))
    path = Path(what)
    if not path.exists():
        raise DataError(f"{what}: neither a path nor a known data set; known are {', '.join([*SOURCES, *SYNTHETIC])}")
    return importer_for(path)(path)


def _locate(name: str, data: Path | None, offline: bool) -> Path:
    found = find_data(name, data)
    if found is not None:
        return found
    if offline or name not in REMOTES:
        raise DataError(
            f"{name}: no folder {SOURCES[name].folder!r} in LONGWAVE_DATA_DIR, ../shared/data or the cache; give one with --data"
        )
    return fetch(name)
