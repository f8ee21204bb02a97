"""Which share of the users each arm should have: of an option, or of the experiment as `GET /v1/experiments/NAME` gives it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from app.errors import ReportError
from app.recommend.experiment import HOLDOUT

_LEAST: Final = 1e-9
_EXAMPLE: Final = "expected for instance control=0.5,b=0.5"


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares by arm, which add up to 1, the control first and the holdout last.

    Attributes:
        origin: where they come from, in words.
        version: of the experiment that they are of; None if that is not said.
    """

    shares: dict[str, float]
    origin: str
    version: int | None = None

    @property
    def control(self) -> str:
        return next(iter(self.shares))


class _Arm(msgspec.Struct):
    name: str
    share: float


class _Resource(msgspec.Struct):
    name: str
    version: int
    arms: list[_Arm]
    holdout: float = 0.0


def parse_expected(text: str) -> Shares:
    """Shares of a text like `control=0.5,b=0.5`; they count in proportion, so 1,1 is the same. Raises ReportError."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        arm, sign, number = (piece.strip() for piece in part.rpartition("="))
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not arm or not sign or not 0 < share < math.inf:
            raise ReportError(f"--expected: {part!r} is no arm with a share above 0; {_EXAMPLE}")
        if arm in shares:
            raise ReportError(f"--expected: the arm {arm!r} is there twice")
        shares[arm] = share
    return Shares(_in_proportion(shares), "--expected")


def read_experiment_file(path: Path, experiment: str) -> Shares:
    """Shares of the resource in a JSON file.

    Raises:
        ReportError: it cannot be read, is no experiment, or another one.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Resource)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: is not what GET /v1/experiments/{experiment} gives: {error}") from error
    if found.name != experiment:
        raise ReportError(f"{path}: is the experiment {found.name!r}, not {experiment!r}")
    if not found.arms or not all(0 < arm.share < math.inf for arm in found.arms) or not 0 <= found.holdout < 1:
        raise ReportError(f"{path}: needs arms with shares above 0, and a holdout from 0 to less than 1")
    shares = _in_proportion({arm.name: arm.share for arm in found.arms})
    shares = {arm: share * (1 - found.holdout) for arm, share in shares.items()}
    return Shares(shares | ({HOLDOUT: found.holdout} if found.holdout else {}), str(path), found.version)


def _in_proportion(shares: dict[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    for arm, share in shares.items():
        if share / total < _LEAST:
            raise ReportError(f"the share of the arm {arm!r} is next to nothing: below {_LEAST:g} of all")
    return {arm: share / total for arm, share in sorted(shares.items(), key=lambda pair: pair[0] == HOLDOUT)}
