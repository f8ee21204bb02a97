"""Which device the model runs on, decided once at start and said aloud."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from app.errors import DeviceError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Device:
    """`name` is the device in use, `why` the reason in words, `providers` what sessions are opened with."""

    name: Literal["cpu", "cuda"]
    why: str
    providers: tuple[str, ...]


def choose_device(requested: Literal["auto", "cpu", "cuda"], probe: Path) -> Device:
    """Decide by what ONNX Runtime offers and what really starts.

    Args:
        requested: the setting.
        probe: an ONNX file to open on the device; a build that lists CUDA may still lack its libraries or a card.

    Raises:
        DeviceError: `cuda` was demanded and does not start.
    """
    if requested == "cpu":
        return Device("cpu", "the setting asks for it", (CPU,))
    problem = _cuda_problem(probe)
    if problem is None:
        return Device("cuda", "ONNX Runtime started it", (CUDA, CPU))
    if requested == "cuda":
        raise DeviceError(f"LONGWAVE_DEVICE=cuda, but {problem}")
    return Device("cpu", problem, (CPU,))


def _cuda_problem(probe: Path) -> str | None:
    if CUDA not in ort.get_available_providers():
        return f"this ONNX Runtime has no CUDA (it offers {', '.join(ort.get_available_providers())}; onnxruntime-gpu has it)"
    ort.preload_dlls()  # from the nvidia-* wheels, where the system has no CUDA of its own
    options = ort.SessionOptions()
    options.log_severity_level = 4  # a failed start is an answer here, not an error to print
    try:
        session = ort.InferenceSession(probe, options, providers=[CUDA, CPU])
    except Exception as error:  # ONNX Runtime raises many kinds, none of them public
        return f"CUDA does not start: {str(error).splitlines()[0]}"
    # Without a card or a library it falls back to the CPU silently.
    return None if session.get_providers()[0] == CUDA else "CUDA is built in but does not start (no card, driver or libraries)"
