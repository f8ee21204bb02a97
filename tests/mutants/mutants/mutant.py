"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One way to break an invariant.

    Attributes:
        name: unique, a few words.
        invariant: of docs/design.md.
        broken: what is wrong, as a sentence.
        file: from the root of the checkout.
        original: what must be in the file exactly once.
        killed_by: node id of the test that fails.
    """

    name: str
    invariant: str
    broken: str
    file: str
    original: str
    replacement: str
    killed_by: str
