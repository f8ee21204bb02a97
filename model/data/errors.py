"""What goes wrong with data: one exception, one clear sentence."""

from __future__ import annotations

from model.errors import TrainerError


class DataError(TrainerError, ValueError):
    """Input that cannot be used. The message names the file, column or field, and what was expected."""
