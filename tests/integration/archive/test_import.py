from __future__ import annotations

import datetime
import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from history_writer import run_import, run_import_in

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.histories import histories
from app.archive.imports import import_files, import_id_of
from app.archive.tables import read_mapping
from app.errors import ImportFileError
from app.state.contexts import Contexts
from app.state.events import StoredEvent, decode_event
from app.state.keys import user_keys
from app.state.redis import RedisStore
from app.state.trends import RINGS, Trends

MakeArchiver = Callable[..., Archiver]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["app.archive.imports", "redis"])
DAY_MS = 86_400_000


def stored(raw: redis.Redis, user: str = "a") -> list[StoredEvent]:
    return [decode_event(packed) for packed in raw.lrange(user_keys("default", user).seq, 0, -1)]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_with_columns_of_its_own_becomes_sequences_in_order_of_time(tmp_path: Path, redis_url: str, raw: redis.Redis):
    file = write(
        tmp_path / "orders.csv",
        '"customer",sku,when,qty,order no\n17,"A ""1""",2020-01-02,2,x\n17,"ü, 3",2020-01-01 00:00:01.5,,\n'
        "9,B,2020-01-02T01:00:00+01:00,0.5,y\n",
    )
    mapping = read_mapping(["user=customer", "item=sku", "time=when", "quantity=qty", "basket_id=order no"])
    done = run_import([file], redis_url, mapping=mapping, event_type="purchase")
    assert (done.rows, done.users, done.again) == (3, 2, 0)
    day = 1_577_836_800_000  # 2020-01-01
    assert stored(raw, "17") == [
        StoredEvent("purchase", day + 1_500, "ü, 3"),
        StoredEvent("purchase", day + DAY_MS, 'A "1"', quantity=2.0, basket_id="x"),
    ]
    assert stored(raw, "9") == [StoredEvent("purchase", day + DAY_MS, "B", quantity=0.5, basket_id="y")]


def test_times_as_texts_are_read_to_the_millisecond(tmp_path: Path, redis_url: str, raw: redis.Redis):
    times = [1_074_829_487_820, 1_078_625_331_860, 1_092_748_005_452]  # by way of seconds each would be a millisecond less
    since = datetime.datetime.fromtimestamp(0, datetime.UTC)
    rows = "".join(f"a,i,view,{(since + datetime.timedelta(milliseconds=ms)).isoformat()}\n" for ms in times)
    run_import([write(tmp_path / "a.csv", "user_id,item_id,type,timestamp\n" + rows)], redis_url)
    assert [one.time_ms for one in stored(raw)] == times


@pytest.mark.parametrize("unit", [0.001, 1, 1_000, 1_000_000])
def test_times_as_numbers_are_read_in_the_unit_of_their_size(tmp_path: Path, redis_url: str, raw: redis.Redis, unit: float):
    times = [int(ms * unit) for ms in (1_577_836_801_000, 1_577_836_800_000, 1_000)]  # one very early: the file has one unit
    file = write(tmp_path / "t.csv", "user_id,item_id,type,timestamp\n" + "".join(f"a,i,view,{t}\n" for t in times))
    run_import([file], redis_url)
    assert [e.time_ms for e in stored(raw)] == [1_000, 1_577_836_800_000, 1_577_836_801_000]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([datetime.datetime(2020, 1, 1)], pa.timestamp("us")),
        pa.array([datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)], pa.timestamp("ns", "Europe/Berlin")),
        pa.array([datetime.date(2020, 1, 1)]),
        pa.array(["2020-01-01T00:00:00Z"]),
        pa.array(["2020-01-01"]).dictionary_encode(),
        pa.array([1_577_836_800.0]),
        pa.array([Decimal(1_577_836_800)]),
        pa.array([b"2020-01-01"]),
    ],
)
def test_parquet_columns_of_any_type_are_taken_for_what_they_mean(
    tmp_path: Path, redis_url: str, raw: redis.Redis, times: pa.Array
):
    table = pa.table(
        {"user_id": pa.array([17850.0]), "item_id": pa.array([22]), "type": ["view"], "timestamp": times, "value": pa.array([3])}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    run_import([tmp_path / "t.parquet"], redis_url)
    assert stored(raw, "17850") == [StoredEvent("view", 1_577_836_800_000, "22", value=3.0)]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("user_id", pa.array([b"\xff"])),
        ("user_id", pa.array([["a"]])),
        ("timestamp", pa.array([math.inf])),
        ("timestamp", pa.array([datetime.time(1)])),
        ("timestamp", pa.array([[1]])),
        ("timestamp", pa.array([True])),
        ("value", pa.array([[1]])),
        ("value", pa.array([datetime.date(2020, 1, 1)])),
    ],
)
def test_what_a_column_cannot_mean_is_refused_by_its_field(tmp_path: Path, redis_url: str, name: str, values: pa.Array):
    columns = {"user_id": ["a"], "item_id": ["i"], "type": ["view"], "timestamp": [1_577_836_800_000]}
    pq.write_table(pa.table(columns | {name: values}), tmp_path / "t.parquet")
    with pytest.raises(ImportFileError, match=f"row 1: {name}"):
        run_import([tmp_path / "t.parquet"], redis_url)


def test_ids_that_are_not_said_to_be_texts_are_texts(tmp_path: Path, redis_url: str, raw: redis.Redis):
    columns = {"user_id": ["a"], "item_id": ["i"], "type": ["view"], "timestamp": [1_577_836_800_000]}
    pq.write_table(pa.table(columns | {"user_id": pa.array([b"b"])}), tmp_path / "t.parquet")
    run_import([tmp_path / "t.parquet"], redis_url)
    assert len(stored(raw, "b")) == 1


def test_bad_rows_are_named_and_nothing_is_written(tmp_path: Path, redis_url: str, raw: redis.Redis):
    head = "user_id,item_id,type,timestamp,value\n"
    good = write(tmp_path / "good.csv", head + "a,i,view,1577836800000,\n")
    rows = ["a,i,view,1577836800000,", ",i,view,1577836800000,", "a,i,buy,1577836800000,", "a,i,view,,", "a,i,view,noon,"]
    rows += ["a,,view,1577836800000,", "a,i,view,9577836800000,", "a,i,view,1577836800000,many", "a,i,view,-5,"]
    bad = write(tmp_path / "bad.csv", head + "\n".join(rows))
    with pytest.raises(ImportFileError) as caught:
        run_import([good, bad], redis_url)
    lines = caught.value.detail.splitlines()
    said = [
        "row 2: user_id is required",
        "row 3: type unknown event type 'buy'; the model knows purchase, view",
        "row 4: timestamp is required: a history has no time of arrival",
        "row 5: timestamp must be an RFC 3339 time",
        "row 6: item_id is required where there is no text",
        "row 7: timestamp is more than 0 s in the future",
        "row 8: value input should be a valid number",
        "row 9: timestamp is before 1970",
    ]
    assert [line.startswith(f"{bad}: {words}") for line, words in zip(lines, said, strict=False)] == [True] * 8, lines
    assert lines[8:] == ["nothing was imported"]
    assert raw.dbsize() == 0
    done = run_import([good, bad], redis_url, skip_bad=True)
    assert (done.rows, done.refused, len(done.reasons)) == (2, 8, 8)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "user_id,timestamp\na,1\nb\n", "damaged, not csv"),
        ("a.csv", "user,time\n", "which column is the user_id"),
        ("a.csv", "", "which column is the user_id"),
        ("a.parquet", "PAR1", "damaged, not parquet"),
        ("a.xlsx", "", "expected a .parquet, .csv or .tsv file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, redis_url: str, name: str, content: str, said: str):
    file = write(tmp_path / name, content)
    with pytest.raises(ImportFileError, match=f"{name}: .*{said}"):
        run_import([file], redis_url)


@pytest.mark.parametrize(
    ("options", "said"),
    [(["user"], "expected key=column"), (["colour=c"], "'colour' is unknown"), (["user=a", "user_id=b"], "twice")],
)
def test_a_wrong_column_option_is_refused(options: list[str], said: str):
    with pytest.raises(ImportFileError, match=said):
        read_mapping(options)


def test_an_import_is_known_by_what_is_in_its_files(tmp_path: Path):
    one, same, other = (write(tmp_path / name, text) for name, text in (("a.csv", "1"), ("b.csv", "1"), ("c.csv", "2")))
    ids = [import_id_of([file], {}) for file in (one, same, other)] + [import_id_of([one], {"user_id": "u"})]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    # What was bought is in the same file as what was looked at: the second --type is no second try.
    ids += [import_id_of([one], {}, "view"), import_id_of([one], {}, "purchase")]
    assert len(set(ids)) == 5


def big_file(tmp_path: Path, rows: int = 3_000, users: int = 300) -> tuple[Path, dict[str, list[StoredEvent]]]:
    pick = random.Random(1)
    expected: dict[str, list[StoredEvent]] = {}
    columns: dict[str, list[object]] = {name: [] for name in ("user_id", "item_id", "type", "timestamp", "event_id")}
    for row in range(rows):
        user, time_ms = f"user {pick.randrange(users)}", 1_577_836_800_000 + pick.randrange(1_000)
        expected.setdefault(user, []).append(StoredEvent("view", time_ms, f"item {row}"))
        for name, value in zip(columns, (user, f"item {row}", "view", time_ms, f"id {row}"), strict=True):
            columns[name].append(value)
    pq.write_table(pa.table(columns), tmp_path / "big.parquet")
    return tmp_path / "big.parquet", {user: sorted(events, key=lambda e: e.time_ms) for user, events in expected.items()}


def test_a_killed_import_leaves_nothing_on_the_disk(tmp_path: Path, redis_url: str, raw: redis.Redis):
    file, _ = big_file(tmp_path, rows=30_000, users=3_000)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = FORKS.Process(target=run_import_in, args=(scratch, [file], redis_url))
    process.start()
    while process.is_alive() and raw.dbsize() == 0:  # until it writes what it has spilled
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    held = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(scratch.iterdir()) == []
    assert any(name.startswith(str(scratch)) for name in held)  # there was something to leave


@pytest.mark.parametrize("rows", [10, 10_000])
def test_a_full_disk_is_told_of_and_nothing_is_imported(
    tmp_path: Path, redis_url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, rows: int
):
    file, _ = big_file(tmp_path, rows=rows)
    monkeypatch.setattr("tempfile.TemporaryFile", partial(open, "/dev/full", "r+b"))
    with pytest.raises(ImportFileError, match=r"\(TMPDIR\): cannot hold the events while they are sorted: No space left"):
        run_import([file], redis_url)
    assert raw.dbsize() == 0


def test_a_killed_import_is_finished_by_running_it_again(
    tmp_path: Path, redis_url: str, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver
):
    file, expected = big_file(tmp_path)
    kills = 0
    for delay in range(12):
        process = FORKS.Process(target=run_import, args=([file], redis_url))
        process.start()
        while process.is_alive() and raw.dbsize() <= kills * 20:
            time.sleep(0.001)
        time.sleep(0.002 * delay)
        assert process.pid is not None
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 5
    last = run_import([file], redis_url)
    assert last.users + last.again == len(expected)
    assert last.again > 0
    assert {user: stored(raw, user) for user in expected} == expected
    make_archiver().once()
    assert {history.user_id: history.events for history in histories(archive)} == expected


def test_an_import_joins_what_a_user_has_and_a_second_one_adds_to_it(tmp_path: Path, redis_url: str, raw: redis.Redis):
    head = "user_id,item_id,type,timestamp\n"
    first = write(tmp_path / "1.csv", head + "a,one,view,1577836800001\na,three,view,1577836800003\n")
    second = write(tmp_path / "2.csv", head + "a,two,view,1577836800002\na,zero,view,1577836800000\n")
    run_import([first], redis_url, import_id="1")
    run_import([second], redis_url, import_id="2")
    assert run_import([first], redis_url, import_id="1").again == 1
    assert [e.item_id for e in stored(raw)] == ["zero", "one", "two", "three"]


def test_of_several_files_rows_of_one_time_keep_their_order(tmp_path: Path, redis_url: str, raw: redis.Redis):
    files = [
        write(
            tmp_path / f"{n}.csv", "user_id,item_id,type,timestamp\n" + f"a,{n}a,view,1577836800001\na,{n}b,view,1577836800001\n"
        )
        for n in (2, 1)
    ]
    said: list[tuple[str, float]] = []
    run_import(files, redis_url, on_progress=lambda what, done: said.append((what, done)))
    assert [e.item_id for e in stored(raw)] == ["2a", "2b", "1a", "1b"]
    assert [max(pair for pair in said if pair[0] == what) for what in ("reading", "writing")] == [
        ("reading", 1.0),
        ("writing", 1.0),
    ]


async def test_an_import_touches_neither_popularity_nor_trends(tmp_path: Path, redis_url: str, raw: redis.Redis):
    # What counts is what happens now; the popularity of the past comes with the model.
    store = RedisStore(redis_url)
    now_ms = int(time.time() * 1000)
    await store.count_popularity("default", [86_400.0], [("i", 1.0, now_ms)])
    await Trends(store).count("default", {(RINGS[0], RINGS[0].bucket(now_ms)): {"i": 1.0}})
    await Contexts(store, 86_400.0).count("default", {("country", "FR"): [("i", 1.0, now_ms)]})
    before = {name: raw.dump(name) for name in raw.scan_iter()}
    assert len(before) >= 4
    file = write(tmp_path / "a.csv", "user_id,item_id,type,timestamp\n" + f"a,i,purchase,{now_ms}\nb,new,purchase,{now_ms}\n")
    done = await import_files([file], store, tenant="default", import_id="1", known_types={"purchase"}, mapping={})
    await store.close()
    assert (done.rows, done.users) == (2, 2)
    assert {name: raw.dump(name) for name in before} == before
    of_users = {name for user in "ab" for name in raw.scan_iter(f"*:{user}")}
    logs = set(raw.scan_iter("lw:{??}:log"))
    assert set(raw.scan_iter()) == before.keys() | of_users | logs


async def test_a_damaged_user_is_named_and_the_others_have_theirs(tmp_path: Path, redis_url: str, raw: redis.Redis):
    raw.set(user_keys("default", "b").seq, "no list")
    rows = "".join(f"{user},one,view,1577836800001\n" for user in "abc")
    file = write(tmp_path / "1.csv", "user_id,item_id,type,timestamp\n" + rows)
    store = RedisStore(redis_url)
    run = partial(import_files, [file], store, tenant="default", import_id="1", known_types={"view"}, mapping={})
    done = await run()
    assert (done.users, done.damaged) == (2, 1)
    assert "of user 'b' is damaged" in done.damages[0]
    assert [len(stored(raw, user)) for user in "ac"] == [1, 1]
    raw.delete(user_keys("default", "b").seq)
    again = await run()
    await store.close()
    assert (again.users, again.again, again.damaged) == (1, 2, 0)
    assert len(stored(raw, "b")) == 1
