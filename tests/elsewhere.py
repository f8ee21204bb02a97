"""A pretended CUDA device: tensors that say they are there, computed on the CPU, which refuse to meet tensors of the CPU.

What a training leaves on the CPU by mistake is found by this without a GPU: torch would refuse the same. Autocast takes the
tensors for CUDA's. What is not found: whether CUDA's kernels have what is asked of them, and what they are worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

PLACE = torch.device("cuda", 0)
CPU = torch.device("cpu")


class Elsewhere(Tensor):
    """A tensor of the CPU, `held`, that passes for one of `PLACE`."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=PLACE,
        )
        made.held = real
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held!r})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def item(self) -> Any:
        return self.held.item()

    def __int__(self) -> int:
        return int(self.held)

    def __float__(self) -> float:
        return float(self.held)

    def __bool__(self) -> bool:
        return bool(self.held)

    # These ask torch's build for the device.

    def contiguous(self, *args: Any, **kwargs: Any) -> Any:
        return Elsewhere(self.held.contiguous(*args, **kwargs))

    def __getitem__(self, index: Any) -> Any:
        return Elsewhere(self.held[_held(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.held[_held(index)] = _held(value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(func, args, kwargs or {})


def _held(index: Any) -> Any:
    """What the real tensor is indexed with, or gets; a tensor of the CPU is refused, though CUDA would take it as an index."""

    def real(each: Any) -> Any:
        if isinstance(each, Tensor) and not isinstance(each, Elsewhere) and each.dim():
            raise RuntimeError(f"an index {tuple(each.shape)} was left on the CPU")
        return each.held if isinstance(each, Elsewhere) else each

    return tuple(real(each) for each in index) if isinstance(index, tuple) else real(index)


def carried_out(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation on the real tensors, its results where its arguments are."""
    if func is torch.ops.aten._thnn_fused_lstm_cell.default:  # CUDA's own; the sums of an LSTM's step and what follows
        return _lstm_cell(*args)
    flat, spec = tree_flatten((args, kwargs))
    there = [each for each in flat if isinstance(each, Elsewhere)]
    target = kwargs.get("device")
    moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    for each in flat:
        plain = isinstance(each, Tensor) and not isinstance(each, Elsewhere)
        # CUDA takes numbers of the CPU (no dimension) along, and indices where tensors are looked up in.
        if there and plain and each.dim() and not moves:
            raise RuntimeError(f"{func}: a tensor {tuple(each.shape)} was left on the CPU")
    real = [each.held if isinstance(each, Elsewhere) else CPU if isinstance(each, torch.device) else each for each in flat]
    args, kwargs = tree_unflatten(real, spec)
    out = func(*args, **kwargs)
    if func._schema.is_mutable and there and isinstance(out, Tensor):
        for each in there:
            if each.held is out:
                return each
    here = torch.device(target).type == "cpu" if target is not None else not there
    if func is torch.ops.aten.copy_.default:
        return flat[0]
    return out if here else tree_map(lambda each: Elsewhere(each) if isinstance(each, Tensor) else each, out)


def _lstm_cell(of_input: Tensor, of_hidden: Tensor, cell: Tensor, *biases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sums = of_input + of_hidden + sum(biases)
    enters, stays, new, leaves = torch.chunk(sums, 4, 1)
    cell = torch.sigmoid(stays) * cell + torch.sigmoid(enters) * torch.tanh(new)
    return torch.sigmoid(leaves) * torch.tanh(cell), cell, sums


class _Made(TorchDispatchMode):
    """Tensors made on the device are made, and those moved there are wrapped."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(func, args, kwargs or {})


def _on_the_held(function: Any) -> Any:
    def done(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(tensor, Elsewhere):
            return function(tensor, *args, **kwargs)
        return tree_map(Elsewhere, function(tensor.held, *args, **kwargs))

    return done


@contextmanager
def elsewhere(monkeypatch: Any) -> Iterator[None]:
    """With a CUDA device, as far as this process can tell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda _: False)
    for name in ("nonzero", "split"):  # these, too, ask torch's build for the device
        monkeypatch.setattr(torch, name, _on_the_held(getattr(torch, name)))
    as_tensor = torch.as_tensor

    def as_tensor_there(data: Any, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        return as_tensor(data, dtype=dtype).to(device)  # in one step torch asks its own build for the device

    monkeypatch.setattr(torch, "as_tensor", as_tensor_there)
    torch._C._ensureCUDADeviceGuardSet()  # one that does nothing, as for torch's own fake tensors
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Made():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
