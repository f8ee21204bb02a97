"""Our own code in another process: the same modules as here, whatever the current folder has that is called `app`."""

from __future__ import annotations

import sys


def ours(code: str, *arguments: str) -> list[str]:
    """The command that runs Python code, with `arguments` in its sys.argv[1:].

    With `-m` or `-c` alone Python looks for modules in the current folder first; the service may be run from another's project.
    """
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}", *arguments]
