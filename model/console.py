"""What the commands of `longwave-train` say, and how they end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from model.errors import TrainerError
from model.files import NO_SPACE

if TYPE_CHECKING:
    from model.distributed import Group
    from model.loop import Progress

console = Console()
errors = Console(stderr=True)

BAD_INPUT = 2

_NO_MEMORY = ("can't allocate memory", "CUDA out of memory")  # torch has no error of its own on a CPU
_SMALLER = "less of it is needed with smaller model.width, train.lanes and train.chunk, or with train.negatives for many items"


def say(line: str) -> None:
    """A line as it is, whatever is in it."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in NO_SPACE


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input, and what the machine has too little memory or disk for, end in one line that says what was wrong, and exit
    code 2; anything else is a bug and keeps its traceback."""
    hook = threading.excepthook
    threading.excepthook = lambda failed: None if _full(failed.exc_value) else hook(failed)  # TensorBoard raises it here, too
    try:
        yield
    except TrainerError as error:
        said = str(error)
        cause: Exception = error
    except OSError as error:
        if not _full(error):
            raise
        said = f"{error.filename or 'a file'}: cannot be written: {error.strerror}"
        cause = error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        first = str(error).partition("\n")[0].rpartition(": ")[2]
        said = f"not enough memory{f' ({first})' if first else ''}: {_SMALLER}"
        cause = error
    else:
        return
    finally:
        threading.excepthook = hook
    errors.print(f"error: {said}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(BAD_INPUT) from cause


@contextmanager
def together() -> Iterator[Group]:
    """With the other processes, if torchrun started several; only the first one speaks."""
    from model.distributed import joined

    with joined() as group:
        console.quiet = not group.first
        yield group


@contextmanager
def training_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar that is there from the first report on: who refuses bad input draws none."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}  validation ndcg{task.fields[valid]}"),
    )
    bar = Bar(*columns, console=console)
    task = bar.add_task("", total=1.0, epoch="1", loss="-", valid=" -")

    def report(progress: Progress) -> None:
        bar.start()
        valid = f"@{progress.k} " + ("-" if progress.valid_ndcg is None else f"{progress.valid_ndcg:.4f}")
        epoch = f"{min(progress.epoch + 1, progress.epochs)}/{progress.epochs}"
        done = (progress.epoch + progress.done) / progress.epochs
        bar.update(task, completed=min(1.0, done), epoch=epoch, loss=f"{progress.loss:.3f}", valid=valid)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()
