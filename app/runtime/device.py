"""Which device the model runs on, decided once at start and said aloud."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final, Literal, TypeAlias

import onnxruntime as ort
import structlog

from app.errors import DeviceError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

Provider: TypeAlias = str | tuple[str, dict[str, str]]

# TF32, which is on unless it is refused, keeps ten bits of a factor: scores would be off by more than neighbours in a list are
# apart. What is put on the device are few large pieces, so an arena that doubles would take up to twice as much.
_ON_CUDA: Final[Provider] = (CUDA, {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"})

log = structlog.get_logger()


@dataclass(frozen=True)
class Device:
    """`name` is the device in use, `why` the reason in words, `providers` what sessions are opened with, `memory` where its
    tensors lie."""

    name: Literal["cpu", "cuda"]
    why: str
    providers: tuple[Provider, ...]
    memory: Literal["cpu", "cuda"] = "cpu"


class Placement:
    """Where a runtime's graphs run: on the device that was chosen until something fails there, then on the CPU, for good.

    Attributes:
        device: the one in use. failures: how many times it was changed: 0 or 1.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.failures = 0
        self._lock = Lock()

    def fail(self, doing: str, error: Exception) -> None:
        """The device failed while `doing` something that the CPU could do. Said once."""
        with self._lock:
            if self.device.name == "cpu":
                return
            reason = f"{self.device.name} failed ({doing}: {(str(error).splitlines() or [repr(error)])[0]})"
            self.device = Device("cpu", reason, (CPU,))
            self.failures += 1
        log.error("the device failed, the CPU goes on", doing=doing, reason=str(error))


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
        return Device("cuda", "ONNX Runtime started it", (_ON_CUDA, CPU), memory="cuda")
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
        session = ort.InferenceSession(probe, options, providers=[_ON_CUDA, CPU])
    except Exception as error:  # ONNX Runtime raises many kinds, none of them public
        return f"CUDA does not start: {str(error).splitlines()[0]}"
    # Without a card or a library it falls back to the CPU silently.
    return None if session.get_providers()[0] == CUDA else "CUDA is built in but does not start (no card, driver or libraries)"
