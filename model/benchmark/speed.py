"""How fast each net trains: single steps of all nets by turns, in one process, so that a slow minute slows all of them."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl

from model.assess import OURS
from model.baselines.nets.checkpoint import ARCHITECTURES
from model.baselines.nets.train import EncoderTrainer
from model.benchmark.heading import heading
from model.benchmark.names import as_asked, find
from model.benchmark.run import to_text
from model.data.build import Dataset, with_events
from model.data.errors import DataError
from model.files import check_folder, write_whole
from model.loop import Batch, Loop
from model.settings import Settings, load_settings
from model.task import Task, make_task, protocol_of
from model.train import Trainer

FORMAT = 1
SPEED = "speed"
"""The folder of these results, within that of all."""
WARM_UP = 3
AS_THEY_ARE, JOINED = "as they are", "joined"
"""The users' histories: of whatever length each has, or all events in a row, cut into histories that are all of one length."""


@dataclass
class Pace:
    """One net in training: how many targets a step has, and the seconds that it takes."""

    model: str
    precision: str
    length: int
    histories: str
    parameters: int
    steps: Iterator[Callable[[], int]]
    targets: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    def step(self) -> None:
        once = next(self.steps)
        began = time.perf_counter()
        self.targets.append(once())
        self.seconds.append(time.perf_counter() - began)

    def describe(self) -> dict[str, Any]:
        """Without the first steps, in which memory is found and code is chosen."""
        each = [second / target for second, target in zip(self.seconds[WARM_UP:], self.targets[WARM_UP:], strict=True)]
        quarters = statistics.quantiles(each, n=4, method="inclusive")
        return {
            "model": self.model,
            "precision": self.precision,
            "length": self.length,
            "histories": self.histories,
            "parameters": self.parameters,
            "targets_per_second": round(1 / statistics.median(each)),
            "between": [round(1 / quarters[2]), round(1 / quarters[0])],
        }


def measure_speed(
    name: str,
    preset: str,
    out: Path,
    data: Path | None = None,
    lengths: Sequence[int] = (200, 1000),
    steps: int = 30,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Time training steps of ours and of the neural baselines; writes `out/speed/NAME-PRESET.json`.

    The length is how far an encoder looks back. Ours folds whole histories, in chunks of the preset's length: the state goes on.
    What a length costs is seen on histories that have it, and so all are timed on such ones too.

    Args:
        lengths: of the encoders, each beside ours. steps: of each net, after the warm-up.

    Raises:
        TrainerError: bad input, or a place that cannot be written.
    """
    settings = load_settings(preset)
    called, dataset, protocols = find(name, data, offline)
    asked = as_asked(settings, protocols[0] if protocols else protocol_of(settings.data, dataset.manifest), None)
    joined = as_asked(settings, "loo", None)
    tasks = {(length, JOINED): make_task(joined_histories(dataset, length), joined.data) for length in lengths}
    as_they_are = make_task(dataset, asked.data)
    check_folder(out / SPEED)
    measured = []
    for length, histories in product(lengths, (AS_THEY_ARE, JOINED)):
        task, chosen = tasks.get((length, histories), as_they_are), joined if histories == JOINED else asked
        with tempfile.TemporaryDirectory() as folder:
            paces = [
                _pace(model, precision, task, chosen, length, histories, Path(folder) / model / precision)
                for precision in ("float32", "bfloat16")
                for model in (OURS, *ARCHITECTURES)
            ]
            for _ in range(WARM_UP + steps):
                for pace in paces:
                    pace.step()
        measured += [pace.describe() for pace in paces]
        for line in measured[-len(paces) :]:
            where = f"{line['model']}, {line['precision']}, length {line['length']}, histories {line['histories']}"
            say(f"{where}: {line['targets_per_second']:,} targets a second")
    result = {
        **heading(FORMAT, called, preset=Path(preset).stem),
        "steps": steps,
        "measured": measured,
    }
    path = out / SPEED / f"{called}-{Path(preset).stem}.json"
    write_whole(path, to_text(result))
    return path


def joined_histories(dataset: Dataset, length: int) -> Dataset:
    """What all users bought (or watched, ...) in a row, cut into users who each have `length` such events to learn from.

    Leave-one-out holds out two more of each.

    Raises:
        DataError: there are not enough of them for one such user.
    """
    each = length + 2
    positive = [known.name for known in dataset.manifest.event_types if known.polarity == "positive"]
    events = dataset.events.filter(pl.col("type").is_in(positive) & pl.col("item_id").is_not_null())
    users = events.height // each
    if not users:
        raise DataError(f"{dataset.manifest.name}: has {events.height:,} positive events, not one history of {each:,}")
    number = pl.int_range(users * each)
    events = events.sort("user_id", maintain_order=True).head(users * each)
    events = events.with_columns(
        (number // each).cast(pl.String).alias("user_id"), (number % each * 1000 + dataset.manifest.first_ms).alias("timestamp")
    )
    return with_events(dataset, events.drop("basket_id"), users=dataset.users.clear())


def _pace(model: str, precision: str, task: Task, settings: Settings, length: int, histories: str, folder: Path) -> Pace:
    train = dataclasses.replace(settings.train, precision=precision, least_steps=0)  # batches as large as the settings say
    run: Loop[Any, Any]
    if model == OURS:
        run = Trainer(task, dataclasses.replace(settings, train=train), folder)
    else:
        chosen = dataclasses.replace(getattr(settings, model), length=length)
        run = EncoderTrainer(model, task, dataclasses.replace(settings, train=train, **{model: chosen}), folder)
    parameters = sum(parameter.numel() for parameter in run.net.parameters())
    return Pace(model, precision, length, histories, parameters, _steps(run))


def _steps(run: Loop[Any, Any]) -> Iterator[Callable[[], int]]:
    """Training steps for ever, each to be called once; it returns the number of queries it learned from."""
    while True:
        run.net.train()
        run.begin_epoch()
        for batch in run.batches(run.rng):
            if batch.asked:
                yield partial(_step, run, batch)


def _step(run: Loop[Any, Any], batch: Batch) -> int:
    run.step(batch)
    return batch.asked
