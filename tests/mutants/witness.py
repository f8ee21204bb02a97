"""Put as `sitecustomize.py` beside a copy of `app`: each Python process then writes down which `app` it has, and what it opens.

The file to write to is named by MUTANT_WITNESS, the file whose opening is of interest by MUTANT_FILE.
"""

import importlib.machinery
import os
import sys


class _Witness:
    """Finds nothing: writes down where the ordinary search finds `app`, and lets it go on."""

    def __init__(self, out, file):
        self._out, self._file = out, file

    def find_spec(self, name, path=None, target=None):
        if name == "app":
            found = importlib.machinery.PathFinder.find_spec(name, path)
            self._write("app", found.origin if found is not None else "elsewhere")

    def audit(self, event, arguments):
        if event == "open" and str(arguments[0]) == self._file:
            self._write("opened", self._file)

    def _write(self, what, where):
        os.write(self._out, f"{what} {where}\n".encode())


if "MUTANT_WITNESS" in os.environ:
    _witness = _Witness(os.open(os.environ["MUTANT_WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT), os.environ["MUTANT_FILE"])
    sys.meta_path.insert(0, _witness)
    sys.addaudithook(_witness.audit)
