"""What products are computed in while training: bfloat16 factors with float32 sums, where the processor has them in hardware.

Weights, sums, norms, softmax and the optimizer stay float32; validation, export and the service are float32 throughout.
"""

from __future__ import annotations

import torch

PRECISIONS = ("auto", "float32", "bfloat16")


def multiplies_bfloat16() -> bool:
    """Whether this processor has products of bfloat16 in hardware; where it has not they are slower than float32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def factors(precision: str) -> torch.dtype:
    """The type of the factors that one of `PRECISIONS` stands for on this machine."""
    fast = precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16())
    return torch.bfloat16 if fast else torch.float32


def mixed(factor: torch.dtype) -> torch.autocast:
    """A context in which products have such factors."""
    return torch.autocast("cpu", torch.bfloat16, enabled=factor == torch.bfloat16)
