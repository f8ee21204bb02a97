"""Which importers there are, and which one a path is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.data.build import Dataset
from model.data.errors import DataError
from model.data.importers import amazon, archive, eshop, movielens, online_retail, recbole


@dataclass(frozen=True)
class Source:
    """A data set known by name: the folder it is looked for in, and what reads it."""

    folder: str
    read: Callable[[Path], Dataset]


# Names that `prepare` knows. Formats without a name of their own (RecBole, tables) are given by path.
SOURCES: dict[str, Source] = {
    "online-retail": Source("online-retail", online_retail.read),
    "online-retail-one-year": Source("online-retail-one-year", online_retail.read),
    "ml-100k": Source("ml-100k", movielens.read),
    "ml-1m": Source("ml-1m", movielens.read),
    "ml-1m-timed": Source("ml-1m", partial(movielens.read, timed_users_only=True)),
    "amazon-beauty": Source("amazon-s3rec", amazon.read),
    "eshop-clickstream": Source("uci-eshop-clickstream", eshop.read),
}

# In this order: a folder with MovieLens' own files and RecBole's copy of them is read from the originals.
_BY_CONTENT: list[tuple[Callable[[Path], bool], Callable[[Path], Dataset]]] = [
    (archive.recognise, archive.read),
    (movielens.recognise, movielens.read),
    (amazon.recognise, amazon.read),
    (recbole.recognise, recbole.read),
    (online_retail.recognise, online_retail.read),
]


def importer_for(path: Path) -> Callable[[Path], Dataset]:
    """The importer whose files lie at `path`.

    Raises:
        DataError: nothing that is known lies there.
    """
    for recognise, read in _BY_CONTENT:
        if recognise(path):
            return read
    raise DataError(
        f"{path}: not recognised as an archive of the service, Online Retail, MovieLens, RecBole or Amazon Beauty; "
        "for any other CSV or Parquet file say which column is what (--column user=... --column item=... --column time=...)"
    )
