"""NumPy files are read by one thread at a time: what parses their headers is not safe with several."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from app.arrays import mapped, unpacked


def test_headers_are_parsed_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    np.save(tmp_path / "one.npy", np.arange(6).reshape(2, 3))
    archive = io.BytesIO()
    np.savez(archive, a=np.arange(3), b=np.ones(2))
    parse, parsing, most = np.lib._format_impl._read_array_header, [], [0]

    def slowly(*args: object, **options: object) -> object:
        parsing.append(threading.get_ident())
        most[0] = max(most[0], len(set(parsing)))
        time.sleep(0.005)
        try:
            return parse(*args, **options)
        finally:
            parsing.remove(threading.get_ident())

    monkeypatch.setattr(np.lib._format_impl, "_read_array_header", slowly)
    with ThreadPoolExecutor(4) as pool:
        files = [pool.submit(mapped, tmp_path / "one.npy") for _ in range(5)]
        archives = [pool.submit(unpacked, archive.getvalue()) for _ in range(5)]
    assert most == [1]
    assert all((file.result() == np.arange(6).reshape(2, 3)).all() for file in files)
    assert all(list(found.result()) == ["a", "b"] and found.result()["b"].tolist() == [1, 1] for found in archives)
