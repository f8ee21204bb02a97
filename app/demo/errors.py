"""Why a demo ended before its end."""

from __future__ import annotations

from app.errors import LongwaveError


class DemoError(LongwaveError):
    """A step of the demo failed; the message says which, and what to do where that is known."""

    type = "demo"
    title = "Demo failed"
