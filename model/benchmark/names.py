"""Which benchmarks there are: what data, asked how."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from model.data.build import Dataset
from model.data.dataset import read_dataset
from model.data.errors import DataError
from model.data.prepare import import_dataset
from model.settings import Settings
from model.text import MINILM


@dataclass(frozen=True)
class Benchmark:
    """`source` is a name that `prepare` knows; each protocol is trained for and asked by itself.

    `cold`: a tenth of the items is held out of training, and what is asked for are these.
    """

    source: str
    protocols: tuple[str, ...]
    cold: bool = False


BENCHMARKS: dict[str, Benchmark] = {
    "ml-1m": Benchmark("ml-1m", ("loo",)),
    "ml-1m-timed": Benchmark("ml-1m-timed", ("time",)),
    "ml-100k": Benchmark("ml-100k", ("loo", "time")),
    "beauty": Benchmark("amazon-beauty", ("loo",)),
    "online-retail": Benchmark("online-retail", ("basket",)),
    "online-retail-cold": Benchmark("online-retail", ("basket",), cold=True),
    "eshop-clickstream": Benchmark("eshop-clickstream", ("time",)),
    "planted": Benchmark("planted", ("loo",)),
    "turning": Benchmark("turning", ("time",)),
    "synthetic-demo": Benchmark("synthetic-demo", ("basket",)),
    "synthetic": Benchmark("synthetic-small", ("basket",)),
    "synthetic-cold": Benchmark("synthetic-small", ("basket",), cold=True),
}


def find(name: str, data: Path | None, offline: bool = False) -> tuple[str, Dataset, tuple[str, ...]]:
    """The data of a benchmark by name, or of a prepared folder by path: (what results are called, data set, protocols).

    A prepared folder has no protocols of its own: the preset says how it is asked.

    Raises:
        DataError: the name is not known and nothing prepared lies there, or the data cannot be read.
    """
    if name in BENCHMARKS:
        chosen = BENCHMARKS[name]
        return name, import_dataset(chosen.source, data, offline=offline), chosen.protocols
    folder = Path(name)
    if not (folder / "manifest.json").is_file():
        raise DataError(f"{name}: neither a benchmark ({', '.join(BENCHMARKS)}) nor a folder that `prepare` wrote")
    return folder.resolve().name, read_dataset(folder), ()


def as_asked(settings: Settings, protocol: str, seed: int | None, cold: bool = False) -> Settings:
    """A preset's settings for one protocol of a benchmark; where cold items are asked for, with texts, MiniLM's if none are set.

    Leave-one-out is there for comparison with the literature, whose models read items alone. And it never sees the time of
    asking: on tied data that is the time of the answer.
    """
    train = settings.train if seed is None else dataclasses.replace(settings.train, seed=seed)
    data, model = dataclasses.replace(settings.data, protocol=protocol), settings.model
    if protocol == "loo":
        data = dataclasses.replace(data, items_only=True, text_encoder="")
        model = model | {"query_time": False}
    elif cold and not data.text_encoder:
        data = dataclasses.replace(data, text_encoder=MINILM, items_only=False)
    return dataclasses.replace(settings, data=data, train=train, model=model)
