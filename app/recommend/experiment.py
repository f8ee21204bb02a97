"""Experiments: which users get what, decided by a hash of their ids and nothing else. Nothing is stored of who is where, so every
worker says the same, before and after a restart, and so can whoever reads an archive."""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b
from itertools import accumulate
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from app.state.lists import MOST_ARM_BYTES
from app.state.text import encode_text

HOLDOUT: Final = "holdout"
"""The arm of those who get the popular items."""
MOST_ARMS: Final = 10

_NO_CONTROL: Final = r"^[^\x00-\x1f\x7f-\x9f]+$"


def _short(name: str) -> str:
    if len(name.encode("utf-8", "replace")) > MOST_ARM_BYTES:
        raise PydanticCustomError("arm", "must take at most {most} bytes as UTF-8", {"most": MOST_ARM_BYTES})
    if name == HOLDOUT:
        raise PydanticCustomError("arm", "must not be {name}, which is what those are called who are held out", {"name": HOLDOUT})
    return name


Name = Annotated[str, Field(min_length=1, max_length=256, pattern=_NO_CONTROL)]
ArmName = Annotated[
    str,
    AfterValidator(_short),
    Field(min_length=1, max_length=MOST_ARM_BYTES, pattern=_NO_CONTROL, description="At most 24 bytes; not `holdout`."),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Arm(_Strict):
    """What a part of the users gets."""

    name: ArmName
    share: Annotated[float, Field(gt=0, le=1e6, description="Of those who are not held out, relative to the other arms.")]
    scenario: Name | None = Field(None, description="Under whose rules their lists are; none if not given.")
    model_id: Name | None = Field(None, description="Of the model that makes their lists; the active one if not given.")


class ExperimentSettings(_Strict):
    """Arms, the first of which is the control, and how the users are divided among them."""

    description: Annotated[str, Field(max_length=1_000)] | None = None
    arms: Annotated[list[Arm], Field(min_length=1, max_length=MOST_ARMS)]
    holdout: Annotated[float, Field(ge=0, le=0.9)] = Field(0.0, description="The share of users who get the popular items.")
    salt: Name | None = Field(
        None,
        description="Users keep their places while this stays; the experiment's name if not given. Give another experiment "
        "the same to divide users alike.",
    )
    stopped: bool = Field(False, description="Everybody gets the first arm, and no list is the experiment's.")

    @field_validator("arms")
    @classmethod
    def _names_differ(cls, arms: list[Arm]) -> list[Arm]:
        names = [arm.name for arm in arms]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise PydanticCustomError(
                    "arms", "the name of arm {place}, {name}, is that of one before it", {"place": place, "name": repr(name)}
                )
        return arms


def models_named(settings: ExperimentSettings) -> list[str]:
    """The models that stand beside the active one for an experiment: those that its arms name, as long as it runs."""
    return [] if settings.stopped else [arm.model_id for arm in settings.arms if arm.model_id is not None]


class Experiment:
    """An experiment as of one of its versions.

    A user stands somewhere in [0, 1). Those below `holdout` are held out; what is left is divided by the shares, in the order of
    the arms. So an end that moves by so much moves so many users, to the arm on its other side, and nobody else.
    """

    def __init__(self, name: str, version: int, settings: ExperimentSettings) -> None:
        self.name = name
        self.version = version
        self.settings = settings
        self._key = blake2b(encode_text(settings.salt or name), digest_size=32).digest()
        sums = list(accumulate(arm.share for arm in settings.arms))
        # The last one ends at 1, whatever floats make of the shares.
        self._ends = [settings.holdout + (1 - settings.holdout) * (part / sums[-1]) for part in sums[:-1]]

    @property
    def parts(self) -> list[Arm | None]:
        """The arms that users are in; None for the holdout."""
        if self.settings.stopped:
            return [self.settings.arms[0]]
        return [None, *self.settings.arms] if self.settings.holdout else [*self.settings.arms]

    def place_of(self, user_id: str) -> float:
        """Where a user stands."""
        digest = blake2b(encode_text(user_id), key=self._key, digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / 2**53  # more than 53 bits would be rounded, up to 1 at the end

    def arm_of(self, user_id: str) -> Arm | None:
        """The arm that a user is in; None for who is held out. Of one that was stopped, the first for everybody."""
        if self.settings.stopped:
            return self.settings.arms[0]
        place = self.place_of(user_id)
        return None if place < self.settings.holdout else self.settings.arms[bisect_right(self._ends, place)]
