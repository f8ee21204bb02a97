"""What goes wrong with data: one exception, one clear sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from model.errors import TrainerError

if TYPE_CHECKING:
    from model.data.clean import CleaningReport

UNREADABLE = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""What polars raises of a file that is not there or damaged; a panic of its readers is no `Exception`."""


class DataError(TrainerError, ValueError):
    """Input that cannot be used. The message names the file, column or field, and what was expected."""


class NoEventsError(DataError):
    """Nothing is left after cleaning; `cleaning` says why."""

    def __init__(self, message: str, cleaning: CleaningReport) -> None:
        super().__init__(message)
        self.cleaning = cleaning


def first_line(error: BaseException) -> str:
    """What went wrong, without the advice on its own options that polars adds below."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
