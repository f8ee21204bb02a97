"""The trainer reads no file of an archive but the one that was committed."""

import hashlib
import json

import polars as pl
import pytest

from model.data.errors import DataError
from model.data.importers.archive import read

START_MS = 1_600_000_000_000


@pytest.fixture
def archive(tmp_path):
    """200 views, 10 of each of 20 users, in one file that is not compressed: so a changed byte in the middle is another event."""
    rows = pl.DataFrame(
        {
            "kind": "e",
            "tenant": "default",
            "partition": n % 20,
            "ms": START_MS + n,
            "seq": 0,
            "user_id": f"u{n % 20}",
            "type": "view",
            "item_id": f"item {n:03d}",
            "time_ms": START_MS + n,
        }
        for n in range(200)
    )
    rows.write_parquet(tmp_path / "a.parquet", compression="uncompressed")
    content = (tmp_path / "a.parquet").read_bytes()
    file = {"path": "a.parquet", "rows": 200, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "_manifests").mkdir()
    (tmp_path / "_manifests" / f"{1:020d}.json").write_text(json.dumps({"format": 1, "files": [file]}))
    return tmp_path


def test_a_file_in_which_bits_have_changed_is_named_though_it_can_be_read(archive):
    file = archive / "a.parquet"
    assert "item 100" in read(archive).items["item_id"]
    file.write_bytes(file.read_bytes().replace(b"item 100", b"item 1o0"))
    assert pl.read_parquet(file).height == 200
    with pytest.raises(DataError, match=rf"{file}: damaged: is not the file that was committed"):
        read(archive)


def test_a_file_of_another_length_is_named(archive):
    file = archive / "a.parquet"
    pl.read_parquet(file).write_parquet(file, compression="zstd")
    with pytest.raises(DataError, match=rf"{file}: damaged: is not the file that was committed \(\d+ bytes, \d+ expected\)"):
        read(archive)


def test_a_manifest_without_checksums_is_damaged_as_it_is_for_the_service(archive):
    (manifest,) = (archive / "_manifests").iterdir()
    said = json.loads(manifest.read_text())
    del said["files"][0]["sha256"]
    manifest.write_text(json.dumps(said))
    with pytest.raises(DataError, match=rf"{manifest.name}: damaged, .*'sha256'"):
        read(archive)
