"""NumPy files, read by one thread at a time.

NumPy parses their headers as Python literals. Two threads of CPython that parse at once can end in "SystemError: AST constructor
recursion depth mismatch" (seen in 3.11.7; https://github.com/python/cpython/issues/106905), and a sound bundle would be refused.
"""

from __future__ import annotations

import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_parsing = threading.Lock()


def mapped(file: Path) -> npt.NDArray[Any]:
    """The array of a .npy file, mapped. Raises OSError, ValueError, EOFError."""
    with _parsing:
        array: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        return array


def unpacked(archive: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz archive by name. Raises OSError, ValueError, EOFError, BadZipFile."""
    with _parsing, np.load(BytesIO(archive), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
