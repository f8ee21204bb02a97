"""What teachers have said to every training question, as a student reads it: the first items of their mean softmax.

Source: distillation as in Hinton et al. 2015 (arXiv:1503.02531), with the temperature on the teachers' side alone and what is
below their first items left out: the student's loss stays one softmax.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.errors import TrainerError
from model.losses import Soft
from model.task import Task

FORMAT = 1
MANIFEST, ROWS, SHARES = "teacher.json", "rows.npy", "shares.npy"
BLOCK = 100_000


class TeacherError(TrainerError, ValueError):
    """What teachers have said is missing, damaged, or about other questions."""


@dataclass(frozen=True)
class Asked:
    """Which questions teachers were asked, and how: a student must be asked the same ones, of the same items."""

    queries: int
    items: int
    digest: str

    @classmethod
    def of(cls, task: Task) -> Asked:
        queries = task.train_queries
        digest = hashlib.sha256(task.data["fingerprint"].encode())
        for array in (queries.user, queries.position, queries.target_offsets, queries.target):
            digest.update(np.ascontiguousarray(array, np.int64).tobytes())
        digest.update("\n".join(task.seq.item_ids).encode())
        return cls(len(queries), task.seq.items, digest.hexdigest())


class Teacher:
    """A folder that `teach` wrote, read as it is needed."""

    def __init__(self, folder: Path, task: Task) -> None:
        """Raises TeacherError if there is none, or it was asked other questions than those of the task."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            found = Asked(manifest["queries"], manifest["items"], manifest["digest"])
            self.rows: npt.NDArray[np.integer] = np.load(folder / ROWS, mmap_mode="r", allow_pickle=False)
            self.shares: npt.NDArray[np.floating] = np.load(folder / SHARES, mmap_mode="r", allow_pickle=False)
            if manifest["format"] != FORMAT or len(self.rows) != found.queries or self.rows.shape != self.shares.shape:
                raise ValueError("its arrays do not fit its manifest")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise TeacherError(f"{folder}: not what `longwave-train teach` wrote: {error}") from None
        if found != Asked.of(task):
            raise TeacherError(
                f"{folder}: the teachers were asked other questions, or of other data: run `longwave-train teach` again"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Of all that it says: teachers that were asked anew say something else, under the same name."""
        digest = hashlib.sha256()
        for array in (self.rows, self.shares):
            for start in range(0, len(array), BLOCK):
                digest.update(np.ascontiguousarray(array[start : start + BLOCK]).tobytes())
        return digest.hexdigest()

    def at(self, queries: Tensor, weight: float) -> Soft:
        """The answers to some training questions (n), on their device."""
        chosen, device = queries.cpu().numpy(), queries.device
        shares = torch.as_tensor(self.shares[chosen].astype(np.float32), device=device)
        # They were rounded when they were written.
        return Soft(
            torch.as_tensor(self.rows[chosen].astype(np.int64), device=device), shares / shares.sum(1, keepdim=True), weight
        )
