"""What is read of an archive's file: the row groups that may hold what is asked for, and no others."""

import pytest

from app.archive import files
from app.archive.archive import Archive
from app.archive.columns import to_table
from app.archive.files import read_file, write_file
from app.archive.record import EVENT, Record
from app.state.events import StoredEvent


@pytest.mark.parametrize(
    ("partitions", "arrived_ms", "groups"),
    [
        (None, None, 8),
        (range(2, 3), None, 2),
        (None, range(1_000, 1_010), 4),  # one half of each partition
        (range(2, 3), range(1_000, 1_010), 1),
        (range(2, 3), range(1_019, 1_021), 1),
        (range(2, 3), range(1_009, 1_011), 2),  # the end of one, the beginning of the next
        (range(2, 3), range(1_020, 2_000), 0),
        (range(4, 9), None, 0),
    ],
)
def test_row_groups_of_other_partitions_and_times_are_not_read(tmp_path, monkeypatch, partitions, arrived_ms, groups):
    monkeypatch.setattr(files, "ROW_GROUP", 10)
    archive = Archive(tmp_path)
    records = [
        Record(EVENT, "default", f"u{partition}", partition, 1_000 + n, 0, b"epoch", n, StoredEvent("view", n, f"i{n}"))
        for partition in range(4)
        for n in range(20)
    ]
    file = write_file(archive, "default", "1970-01-01", [to_table(records)])
    found = list(read_file(archive, file, partitions=partitions, arrived_ms=arrived_ms))
    assert len(found) == groups
    rows = {(row["partition"], row["ms"]) for group in found for row in group.to_pylist()}
    asked = {
        (r.partition, r.ms) for r in records if r.partition in (partitions or range(4)) and r.ms in (arrived_ms or range(9_999))
    }
    assert asked <= rows


@pytest.mark.parametrize(
    ("holding", "groups"),
    [(("platform", None), 3), (("platform", "b"), 1), (("platform", "aa"), 0), (("platform", "z"), 0), (("not there", None), 0)],
)
def test_row_groups_without_a_text_that_is_asked_for_are_not_read(tmp_path, monkeypatch, holding, groups):
    monkeypatch.setattr(files, "ROW_GROUP", 10)
    archive = Archive(tmp_path)
    platforms = [*[None] * 10, *["a"] * 10, *[None, "a"] * 5, *["b"] * 9, None, *[None] * 10]
    records = [
        Record(EVENT, "default", "u", 1, 1_000 + n, 0, b"epoch", n, StoredEvent("view", n, "i", platform=platform))
        for n, platform in enumerate(platforms)
    ]
    file = write_file(archive, "default", "1970-01-01", [to_table(records)])
    found = list(read_file(archive, file, ["platform"], holding=holding))
    assert len(found) == groups
    assert all(holding[1] is None or holding[1] in group.column("platform").to_pylist() for group in found)
