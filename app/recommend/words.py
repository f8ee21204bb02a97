"""An explanation in words that a shop can print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

VERBS: Final = {
    "purchase": "bought",
    "buy": "bought",
    "order": "bought",
    "transaction": "bought",
    "view": "looked at",
    "click": "looked at",
    "page_view": "looked at",
    "cart": "put in your basket",
    "add_to_cart": "put in your basket",
    "addtocart": "put in your basket",
    "wishlist": "saved",
    "bookmark": "saved",
    "save": "saved",
    "like": "liked",
    "favorite": "liked",
    "rating": "rated",
    "rate": "rated",
    "review": "reviewed",
    "play": "played",
    "watch": "watched",
    "listen": "listened to",
    "read": "read",
    "share": "shared",
    "search": "searched for",
}
"""What "you" did in an event of a type; types are the data's, and these are the usual ones."""

POPULAR: Final = "Popular now"
PINNED: Final = "Pinned"
EARLIER: Final = "Because of what you did before"
TOGETHER: Final = "Because of what you did lately"

_AGAIN: Final = "it"
_HAD: Final = "had"


class Reason(NamedTuple):
    """An event to be named: its type (None if nobody knows), and what it was about; `again` if that is the very item."""

    type: str | None
    about: str
    again: bool = False


def sentence(reasons: Sequence[Reason]) -> str:
    """ "Because you bought X and looked at Y". Where a type has no verb, what was done is left open: "Because of X and Y"."""
    verbs = [_HAD if reason.type is None else VERBS.get(reason.type) for reason in reasons]
    if None in verbs:
        return "Because of " + " and ".join("this" if reason.again else reason.about for reason in reasons)
    parts: list[str] = []
    for place, (verb, reason) in enumerate(zip(verbs, reasons, strict=True)):
        about = f"{_AGAIN} before" if reason.again else reason.about
        parts.append(about if place and verb == verbs[place - 1] and not reasons[place - 1].again else _done(verb or "", about))
    return "Because you " + " and ".join(parts)


def _done(verb: str, about: str) -> str:
    first, _, rest = verb.partition(" ")
    return f"{first} {about} {rest}" if first == "put" else f"{verb} {about}"
