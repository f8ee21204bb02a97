"""Several processes that train one net: each takes some users of every batch, and all take the same step.

`torchrun --nproc-per-node 2 -m model.cli train ...` starts them; without it a process is alone, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

LONGEST_WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Group:
    """The processes that train together, and which of them this is; the first one writes and speaks."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def average(self, parameters: Iterable[nn.Parameter], loss: float, weight: int) -> tuple[float, int]:
        """Make each gradient, and the loss, what it is over the queries of all; `weight` is how many of them are this process's.

        Returns:
            the loss and the number of all queries.
        """
        if self.size == 1:
            return loss, weight
        learned = list(parameters)
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
        flat = torch.cat([*(grad.flatten() for grad in own), own[0].new_tensor([loss, 1.0])]) * weight
        dist.all_reduce(flat)
        count = round(float(flat[-1]))
        flat /= max(1, count)
        start = 0
        for parameter, grad in zip(learned, own, strict=True):
            parameter.grad = flat[start : start + grad.numel()].view_as(grad).clone()
            start += grad.numel()
        return float(flat[-2]), count


def group() -> Group:
    """The group that this process has joined."""
    return Group(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else Group()


@contextmanager
def joined() -> Iterator[Group]:
    """With the other processes, if torchrun started this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    # The first one may measure for hours while the others wait for the next training. (Of one that dies torchrun ends the rest.)
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"  # each for the tensors of its device
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    try:
        yield group()
    finally:
        dist.destroy_process_group()
