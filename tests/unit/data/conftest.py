from __future__ import annotations

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def shared_data():
    """A function from the name of a folder of real data to its path; skips the test where that data is not at hand."""
    given = os.environ.get("LONGWAVE_DATA_DIR")
    bases = [Path(given)] if given else [CHECKOUT.parent / "shared" / "data"]

    def folder(name: str) -> Path:
        for base in bases:
            if (base / name).is_dir():
                return base / name
        pytest.skip(f"no real data: {name} is neither in LONGWAVE_DATA_DIR nor in ../shared/data")

    return folder
