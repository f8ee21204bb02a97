"""What products are computed in while training: bfloat16 factors with float32 sums, where the hardware has them.

Weights, sums, norms, softmax and the optimizer stay float32; validation, export and the service are float32 throughout.
"""

from __future__ import annotations

import torch

from model.device import CPU

PRECISIONS = ("auto", "float32", "bfloat16")


def multiplies_bfloat16() -> bool:
    """Whether this processor has products of bfloat16 in hardware; where it has not they are slower than float32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def factors(precision: str, device: torch.device = CPU) -> torch.dtype:
    """The type of the factors that one of `PRECISIONS` stands for on a device of this machine."""
    if precision == "auto":
        fast = multiplies_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = precision == "bfloat16"
    return torch.bfloat16 if fast else torch.float32


def mixed(factor: torch.dtype, device: torch.device = CPU) -> torch.autocast:
    """A context in which products on a device have such factors."""
    return torch.autocast(device.type, torch.bfloat16, enabled=factor == torch.bfloat16)
