"""What the trainer's commands show as one line: input that cannot be used, and work that was refused."""

from __future__ import annotations


class TrainerError(Exception):
    """Base of errors that are the input's fault, never the code's; the message names what was wrong and what was expected."""
