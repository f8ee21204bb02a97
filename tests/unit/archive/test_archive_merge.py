"""Files merged and rewritten in bounded memory, in the order of the log."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from app.archive import files, merge
from app.archive.archive import Archive
from app.archive.columns import ORDER, SCHEMA, canonical, to_table
from app.archive.compaction import Compaction
from app.archive.files import write_file
from app.archive.manifest import File, Removal
from app.archive.merge import MOST_FILES, merged
from app.archive.record import EVENT, Record
from app.errors import ArchiveError
from app.state.events import StoredEvent

DAY = "1970-01-01"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROW_GROUP", 500)
    monkeypatch.setattr(merge, "WINDOW_ROWS", 500)
    monkeypatch.setattr(merge, "_FEWEST_ROWS", 16)


def records(count: int, first: int, partitions: int = 7) -> list[Record]:
    """As a commit has them: in order of partition, time and place within the millisecond."""
    chance = Random(first)
    found = [
        Record(
            EVENT,
            "default",
            f"user {n % 50}",
            chance.randrange(partitions),
            n // 3,
            n,
            b"epoch",
            n,
            StoredEvent("view", n, f"i{n}"),
        )
        for n in range(first, first + count)
    ]
    return sorted(found, key=lambda record: (record.partition, record.ms, record.seq))


def commit(archive: Archive, *sizes: int) -> list[File]:
    """A closed day of files with so many rows each."""
    written = [
        write_file(archive, "default", DAY, [to_table(records(size, sum(sizes[:place])))]) for place, size in enumerate(sizes)
    ]
    archive.publish(written, lambda manifest: msgspec.structs.replace(manifest, files=(*manifest.files, *written)))
    return written


def content(archive: Archive, some: Iterator[File] | tuple[File, ...] | list[File]) -> pa.Table:
    return pa.concat_tables([pq.read_table(archive.folder / file.path, partitioning=None) for file in some])


@pytest.mark.parametrize("sizes", [(3_000, 40, 40, 1, 700), (10, 10), (1,), (), (0, 5), (2_000,)])
@pytest.mark.usefixtures("small_portions")
def test_files_are_merged_to_the_rows_of_all_in_their_order(archive: Archive, sizes: tuple[int, ...]):
    some = commit(archive, *sizes)
    tables = list(merged(archive, some))
    expected = canonical([content(archive, some)] if some else []).sort_by(ORDER)
    assert canonical(tables).equals(expected)
    assert max([table.num_rows for table in tables], default=0) <= 500 + 16 * len(some)


@pytest.mark.usefixtures("small_portions")
def test_what_an_older_version_has_no_column_for_is_empty(archive: Archive):
    (file,) = commit(archive, 1_200)
    path = archive.folder / file.path
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["list_arm"]), path)
    table = canonical(merged(archive, [file]))
    assert (table.schema, table.num_rows, table.column("list_arm").null_count) == (SCHEMA, 1_200, 1_200)


@pytest.mark.parametrize("swapped", [(3, 4), (15, 16)])  # in what is read together, and over its end
@pytest.mark.usefixtures("small_portions")
def test_a_file_out_of_order_is_named(archive: Archive, swapped: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(merge, "WINDOW_ROWS", 16)
    order = [*range(40)]
    order[swapped[0]], order[swapped[1]] = swapped[1], swapped[0]
    file = write_file(archive, "default", DAY, [to_table(records(40, 0)).take(order)])
    with pytest.raises(ArchiveError, match=f"{file.path}: its rows are not in the order of the log"):
        list(merged(archive, [file]))


@pytest.mark.usefixtures("small_portions")
def test_row_groups_are_full_however_the_rows_come(archive: Archive):
    table = to_table(records(1_700, 0))
    pieces = [table.slice(start, end - start) for start, end in pairwise([0, 3, 3, 900, 1_000, 1_001, 1_700])]
    file = write_file(archive, "default", DAY, pieces)
    with pq.ParquetFile(archive.folder / file.path) as parquet:
        groups = [parquet.metadata.row_group(at).num_rows for at in range(parquet.num_row_groups)]
    assert (groups, file.rows) == ([500, 500, 500, 200], 1_700)
    assert content(archive, [file]).equals(table)


def test_more_files_than_are_open_at_a_time_become_one_in_two_steps(archive: Archive):
    commit(archive, *[2] * (MOST_FILES + 5))
    Compaction(archive).rewrite()
    assert [file.rows for file in archive.latest().files] == [2 * MOST_FILES, 2 * 5]
    Compaction(archive).rewrite()
    assert [file.rows for file in archive.latest().files] == [2 * MOST_FILES + 10]


def merge_all(archive: Archive) -> None:
    Compaction(archive).rewrite()


def erase_one(archive: Archive) -> None:
    gone = Removal("default", "user 7", 3, 10**9, 0)
    archive.publish([], lambda manifest: msgspec.structs.replace(manifest, removals=(gone,)))
    Compaction(archive, target_rows=2).rewrite(erase_now=True)  # all files are large: none is merged


@pytest.mark.parametrize(("rewrite", "after"), [(merge_all, 1), (erase_one, 4)])
@pytest.mark.usefixtures("small_portions")
def test_a_day_four_times_as_large_takes_no_more_memory(tmp_path: Path, rewrite: Callable[[Archive], None], after: int):
    taken = []
    for times in (1, 4):
        archive = Archive(tmp_path / str(times))
        before = set(commit(archive, *[1_500 * times] * 4))
        usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(pool)
        try:
            rewrite(archive)
        finally:
            pa.set_memory_pool(usual)
        taken.append(pool.max_memory())
        assert len(archive.latest().files) == after
        assert not before & {*archive.latest().files}
    assert 0 < taken[1] < 1.3 * taken[0], taken


@pytest.mark.usefixtures("small_portions")
def test_of_an_erased_user_no_row_is_left_and_of_others_all_are(archive: Archive):
    commit(archive, 1_500, 20)
    rows = content(archive, archive.latest().files)
    theirs = pc.and_(pc.equal(rows["user_id"], "user 7"), pc.equal(rows["partition"], 3))
    assert pc.sum(theirs).as_py() > 1
    erase_one(archive)
    assert content(archive, archive.latest().files).equals(rows.filter(pc.invert(theirs)))
