"""What tests of every kind share."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

# A service under test must not pick up the developer's settings.
for name in [name for name in os.environ if name.startswith("LONGWAVE_")]:
    del os.environ[name]


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified bundle of a small untrained net. Do not write into it; copy it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of the exporter that we use on purpose
        from tiny_bundle import write_tiny_bundle  # imports torch, which most tests do without

        return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
