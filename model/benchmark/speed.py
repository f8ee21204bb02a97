"""How fast each net trains: single steps of all nets by turns, in one process, so that a slow minute slows all of them."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from model.assess import OURS
from model.baselines.nets.checkpoint import ARCHITECTURES
from model.baselines.nets.train import EncoderTrainer
from model.benchmark.names import as_asked, find
from model.benchmark.run import to_text
from model.files import check_folder, write_whole
from model.loop import Batch, Loop
from model.machine import describe_commit, describe_machine
from model.settings import Settings, load_settings
from model.task import Task, make_task, protocol_of
from model.train import Trainer

FORMAT = 1
SPEED = "speed"
"""The folder of these results, within that of all."""
WARM_UP = 3


@dataclass
class Pace:
    """One net in training: how many targets a step has, and the seconds that it takes."""

    model: str
    precision: str
    length: int
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
        quarters = statistics.quantiles(each, n=4)
        return {
            "model": self.model,
            "precision": self.precision,
            "length": self.length,
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

    Args:
        lengths: of the encoders, each beside ours. steps: of each net, after the warm-up.

    Raises:
        TrainerError: bad input, or a place that cannot be written.
    """
    settings = load_settings(preset)
    check_folder(out / SPEED)
    called, dataset, protocols = find(name, data, offline)
    asked = as_asked(settings, protocols[0] if protocols else protocol_of(settings.data, dataset.manifest), None)
    task = make_task(dataset, asked.data)
    measured = []
    for length in lengths:
        with tempfile.TemporaryDirectory() as folder:
            paces = [
                _pace(model, precision, task, asked, length, Path(folder) / model / precision)
                for precision in ("float32", "bfloat16")
                for model in (OURS, *ARCHITECTURES)
            ]
            for _ in range(WARM_UP + steps):
                for pace in paces:
                    pace.step()
        measured += [pace.describe() for pace in paces]
        for line in measured[-len(paces) :]:
            say(f"{line['model']}, {line['precision']}, length {line['length']}: {line['targets_per_second']:,} targets a second")
    result = {
        "format": FORMAT,
        "name": called,
        "preset": Path(preset).stem,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "steps": steps,
        "measured": measured,
    }
    path = out / SPEED / f"{called}-{Path(preset).stem}.json"
    write_whole(path, to_text(result))
    return path


def _pace(model: str, precision: str, task: Task, settings: Settings, length: int, folder: Path) -> Pace:
    train = dataclasses.replace(settings.train, precision=precision)
    run: Loop[Any, Any]
    if model == OURS:
        run = Trainer(task, dataclasses.replace(settings, train=train), folder)
    else:
        chosen = dataclasses.replace(getattr(settings, model), length=length)
        run = EncoderTrainer(model, task, dataclasses.replace(settings, train=train, **{model: chosen}), folder)
    parameters = sum(parameter.numel() for parameter in run.net.parameters())
    return Pace(model, precision, length, parameters, _steps(run))


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
