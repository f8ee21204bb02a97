from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model.data.build import build_dataset
from model.data.clean import CleaningReport
from model.data.dataset import load_sequences, read_dataset, to_sequences, write_dataset
from model.data.errors import DataError
from model.data.fingerprint import fingerprint
from model.data.schema import EventType
from model.data.sequences import item_key
from model.data.synthetic import synthetic_world
from model.files import OutputError
from model.settings import DataSettings
from model.task import make_task

TYPES = [
    EventType(name="purchase"),
    EventType(name="view", polarity="neutral"),
    EventType(name="cancellation", polarity="negative"),
]


def dataset(events, **options):
    frame = pl.DataFrame(events, schema_overrides={"item_id": pl.String, "basket_id": pl.String}, infer_schema_length=None)
    if "type" not in frame.columns:
        frame = frame.with_columns(pl.lit("purchase").alias("type"))
    return build_dataset(
        frame,
        CleaningReport(frame.height, frame.height, []),
        name="made",
        source="test",
        licence="none",
        event_types=TYPES,
        **options,
    )


@pytest.fixture
def world():
    return synthetic_world("tiny").dataset


def test_what_is_written_is_read_back(world, tmp_path):
    write_dataset(world, tmp_path / "d")
    back = read_dataset(tmp_path / "d")
    assert back.events.equals(world.events)
    assert back.items.equals(world.items)
    assert back.users.equals(world.users)
    assert (back.manifest, back.cleaning) == (world.manifest, world.cleaning)


def test_the_fingerprint_does_not_depend_on_how_parquet_encodes(world, tmp_path):
    world.events.write_parquet(tmp_path / "e.parquet", compression="uncompressed", row_group_size=100)
    again = pl.concat([world.events[:99], pl.read_parquet(tmp_path / "e.parquet")[99:]], rechunk=False)
    assert fingerprint({"events": again}) == fingerprint({"events": world.events})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("user_id", "someone"),
        ("item_id", None),
        ("timestamp", 1),
        ("price", 0.5),
        ("price", None),
        ("text", ""),
        ("basket_id", "x"),
    ],
)
def test_one_changed_cell_changes_the_fingerprint(world, column, value):
    row = 7
    before = world.events.with_columns(pl.lit("text").alias("text"))
    changed = before.with_columns(pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(column).alias(column))
    assert fingerprint({"events": changed.cast(dict(before.schema))}) != fingerprint({"events": before})


def test_cells_cannot_flow_into_their_neighbours_in_the_fingerprint():
    pairs = [["ab", "c"], ["a", "bc"], ["abc", ""], ["abc", None]]
    assert len({fingerprint({"t": pl.DataFrame({"c": pair})}) for pair in pairs}) == 4
    lists = [[["a"], ["b"]], [["a", "b"], []], [["a", "b"], None]]
    assert len({fingerprint({"t": pl.DataFrame({"c": cells}, schema={"c": pl.List(pl.String)})}) for cells in lists}) == 3


def test_a_changed_file_is_refused_by_its_fingerprint(world, tmp_path):
    write_dataset(world, tmp_path / "d")
    world.events.with_columns(pl.col("price") + 1).write_parquet(tmp_path / "d" / "events.parquet")
    with pytest.raises(DataError, match="content does not match manifest"):
        read_dataset(tmp_path / "d")


@pytest.mark.parametrize("file", ["events.parquet", "items.parquet", "users.parquet", "manifest.json", "cleaning.json"])
def test_a_missing_or_damaged_file_is_named(world, tmp_path, file):
    write_dataset(world, tmp_path / "d")
    (tmp_path / "d" / file).write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=f"{file}: damaged"):
        read_dataset(tmp_path / "d")
    (tmp_path / "d" / file).unlink()
    with pytest.raises(DataError, match=f"{file}: not there"):
        read_dataset(tmp_path / "d")


def test_a_file_that_makes_polars_panic_is_one_that_is_damaged(world, tmp_path, monkeypatch):
    class Panic(pl.exceptions.PanicException):
        """As of a flipped bit in a page: no `Exception`, and of more lines than one."""

    def panic(*_):
        raise Panic("assertion failed: num_values <= values.len()\nnote: run with RUST_BACKTRACE=1")

    write_dataset(world, tmp_path / "d")
    monkeypatch.setattr(pl, "read_parquet", panic)
    with pytest.raises(
        DataError, match=r"events\.parquet: damaged, not Parquet: assertion failed: num_values <= values\.len\(\)$"
    ):
        read_dataset(tmp_path / "d")


def test_a_missing_column_or_another_type_is_named_with_its_file(world, tmp_path):
    write_dataset(world, tmp_path / "d")
    world.items.drop("title").write_parquet(tmp_path / "d" / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet has no column 'title'; it has item_id"):
        read_dataset(tmp_path / "d")
    world.items.with_columns(pl.lit(1).alias("title")).write_parquet(tmp_path / "d" / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet: column 'title' is Int32, expected String"):
        read_dataset(tmp_path / "d")


def test_an_unknown_field_of_the_manifest_is_named(world, tmp_path):
    write_dataset(world, tmp_path / "d")
    path = tmp_path / "d" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "red"}))
    with pytest.raises(DataError, match=r"manifest.json: colour"):
        read_dataset(tmp_path / "d")


def test_a_folder_of_other_things_is_not_overwritten_and_an_old_data_set_is(world, tmp_path):
    write_dataset(world, tmp_path / "d")
    write_dataset(synthetic_world("tiny", seed=1).dataset, tmp_path / "d")
    assert read_dataset(tmp_path / "d").manifest.source.endswith("seed 1")
    (tmp_path / "d" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"not a data set \(it has thesis.txt\)"):
        write_dataset(world, tmp_path / "d")
    assert (tmp_path / "d" / "thesis.txt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


def test_nothing_is_left_behind_when_writing_fails(world, tmp_path, monkeypatch):
    monkeypatch.setattr(CleaningReport, "to_json", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_dataset(world, tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


FULL = "parquet: File out of specification: underlying IO error: No space left on device (os error 28)"


@pytest.mark.parametrize("error", [pl.exceptions.ComputeError(FULL), OSError(28, "No space left on device")])
def test_a_data_set_for_which_the_disk_is_too_small_leaves_the_one_before(world, tmp_path, monkeypatch, error):
    write_dataset(world, tmp_path / "d")

    def fail(self, path, **options):
        raise error

    monkeypatch.setattr(pl.DataFrame, "write_parquet", fail)
    with pytest.raises(OutputError, match=rf"^{tmp_path}/d: cannot be written: .*No space left on device"):
        write_dataset(synthetic_world("tiny", seed=1).dataset, tmp_path / "d")
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]
    assert read_dataset(tmp_path / "d").manifest.fingerprint == world.manifest.fingerprint


def kill_between(monkeypatch, call, renames):
    """What a process leaves that is killed after so many renames of `call`: nothing is cleared away, no lock is held."""
    rename, done = Path.rename, []

    def until_killed(path, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", until_killed)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt) if renames < 2 else nullcontext():
            call()


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_the_next_call_clears_up_behind_one_that_was_killed_wherever_it_was(world, tmp_path, monkeypatch, renames):
    newer = synthetic_world("tiny", seed=1).dataset
    write_dataset(world, tmp_path / "d")
    kill_between(monkeypatch, lambda: write_dataset(newer, tmp_path / "d"), renames)
    assert len(list(tmp_path.iterdir())) > 1
    found = read_dataset(tmp_path / "d").manifest.fingerprint  # there is one at every moment
    assert found == (newer if renames == 2 else world).manifest.fingerprint
    write_dataset(newer, tmp_path / "d")
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]
    assert read_dataset(tmp_path / "d").manifest.fingerprint == newer.manifest.fingerprint


def test_what_another_process_is_writing_and_what_is_no_data_set_are_left_alone(world, tmp_path):
    for name in ("dead", "busy", "mine"):
        (tmp_path / f".d.writing-{name}").mkdir()
    (tmp_path / ".d.writing-mine" / "thesis.txt").write_text("years of work")
    busy = os.open(tmp_path / ".d.writing-busy", os.O_RDONLY)
    fcntl.flock(busy, fcntl.LOCK_EX)
    write_dataset(world, tmp_path / "d")
    os.close(busy)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".d.writing-busy", ".d.writing-mine", "d"]


def test_between_the_two_renames_of_a_living_process_nobody_puts_the_older_data_set_back(world, tmp_path):
    write_dataset(world, tmp_path / "d")
    staging = tmp_path / ".d.writing-busy"
    shutil.copytree(tmp_path / "d", staging)
    (tmp_path / "d").rename(tmp_path / ".d.writing-busy.old")
    busy = os.open(staging, os.O_RDONLY)
    fcntl.flock(busy, fcntl.LOCK_EX)
    with pytest.raises(DataError):
        read_dataset(tmp_path / "d")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".d.writing-busy", ".d.writing-busy.old"]
    os.close(busy)  # and where it has died it is put back
    assert read_dataset(tmp_path / "d").manifest == world.manifest
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


def test_what_nobody_may_look_into_is_in_nobodys_way(world, tmp_path, monkeypatch):
    (tmp_path / ".d.writing-other").mkdir()

    def refused(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("model.data.dataset._strangers", refused)
    write_dataset(world, tmp_path / "d")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".d.writing-other", "d"]


def test_an_undeclared_event_type_is_refused():
    with pytest.raises(DataError, match="type 'theft'; declared are cancellation, purchase, view"):
        dataset([{"user_id": "u", "item_id": "i", "type": "theft", "timestamp": 1}])


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), 1e39])
@pytest.mark.parametrize("column", ["value", "quantity", "price"])
def test_an_event_with_a_number_that_is_infinite_as_float32_is_named(column, number):
    events = [{"user_id": f"u{n}", "item_id": f"i{n}", "timestamp": n, column: value} for n, value in enumerate([1.0, number])]
    with pytest.raises(DataError, match=rf"events\.parquet: column '{column}', user 'u1', item 'i1': -?inf is not finite"):
        dataset(events)


@pytest.mark.parametrize("number", [float("inf"), 1e39])
def test_an_item_with_a_number_that_is_infinite_as_float32_is_named(number):
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "feature_w": [float("nan"), number, None]})
    events = [{"user_id": "u", "item_id": "a", "timestamp": 1}]
    with pytest.raises(DataError, match=r"items\.parquet: column 'feature_w', item 'b': inf is not finite"):
        dataset(events, items=items)


def test_an_item_described_twice_is_refused():
    with pytest.raises(DataError, match="item_id 'i' stands twice"):
        dataset([{"user_id": "u", "item_id": "i", "timestamp": 1}], items=pl.DataFrame({"item_id": ["i", "i"]}))


def test_events_of_one_time_keep_the_order_of_the_source():
    rows = [
        {"user_id": "u", "item_id": item, "timestamp": time} for item, time in [("z", 5), ("b", 9), ("a", 5), ("m", 5), ("c", 1)]
    ]
    assert dataset(rows).events.get_column("item_id").to_list() == ["c", "z", "a", "m", "b"]


def slow_sequences(data, vocabulary):
    """One event at a time, as plainly as it can be said."""
    types = [t.name for t in data.manifest.event_types]
    platforms = sorted({p for p in data.events.get_column("platform") if p})
    by_user = {}
    for event in data.events.iter_rows(named=True):
        by_user.setdefault(event["user_id"], []).append(event)
    out = []
    for user in sorted(by_user):
        basket, last = -1, None
        for event in by_user[user]:
            if event["basket_id"] is None or event["basket_id"] != last:
                basket += 1
            last = event["basket_id"]
            out.append(
                {
                    "item": vocabulary.index(event["item_id"]) if event["item_id"] in vocabulary else -1,
                    "item_key": item_key(event["item_id"]) if event["item_id"] is not None else 0,
                    "type": types.index(event["type"]),
                    "time": event["timestamp"],
                    "platform": platforms.index(event["platform"]) + 1 if event["platform"] else 0,
                    "basket": basket,
                    "text": event["text"],
                    "numbers": [np.nan if event[n] is None else event[n] for n in ("value", "quantity", "price")],
                }
            )
    return sorted(by_user), [len(by_user[user]) for user in sorted(by_user)], out


def test_sequences_equal_a_slow_reference_event_by_event(world):
    vocabulary = sorted(set(world.items.get_column("item_id")))[::2]
    fast = to_sequences(world, vocabulary)
    users, lengths, slow = slow_sequences(world, vocabulary)
    assert fast.user_ids == users
    assert np.diff(fast.offsets).tolist() == lengths
    for name in ("item", "item_key", "type", "time", "platform", "basket"):
        assert getattr(fast, name).tolist() == [event[name] for event in slow], name
    np.testing.assert_array_equal(fast.numbers, np.array([event["numbers"] for event in slow], dtype=np.float32))
    assert fast.text == {row: event["text"] for row, event in enumerate(slow) if event["text"] is not None}
    assert (fast.item < 0).any()
    assert len(fast.text) > 0


def test_user_attributes_are_numbered_from_one_and_missing_is_zero(world):
    sequences = to_sequences(world)
    known = {row["user_id"]: row for row in world.users.iter_rows(named=True)}
    for user, row in zip(sequences.user_ids, sequences.attributes.tolist(), strict=True):
        said = [
            sequences.attribute_values[a][code - 1] if code else None for a, code in enumerate(row)
        ]  # fmt: skip
        assert said == [known[user][name] for name in sequences.attribute_names]
    assert (sequences.attributes == 0).any()


def test_a_basket_id_that_comes_back_after_others_is_a_new_basket():
    baskets = ["a", "a", None, None, "a", "b", "b"]
    rows = [{"user_id": "u", "item_id": "i", "timestamp": t, "basket_id": b} for t, b in enumerate(baskets)]
    assert to_sequences(dataset(rows)).basket.tolist() == [0, 0, 1, 2, 3, 4, 4]


def test_two_users_with_one_basket_id_have_a_basket_each():
    rows = [{"user_id": u, "item_id": "i", "timestamp": t, "basket_id": "b"} for t, u in enumerate("vuvu")]
    assert to_sequences(dataset(rows)).basket.tolist() == [0, 0, 0, 0]


def test_the_vocabulary_has_items_with_enough_positive_events_before_the_cut():
    rows = [
        {"user_id": "u", "item_id": item, "type": kind, "timestamp": time}
        for item, kind, time in [
            ("viewed", "view", 1),
            ("returned", "cancellation", 1),
            ("z", "purchase", 1),
            ("a", "purchase", 2),
            ("a", "purchase", 3),
            ("late", "purchase", 5),
        ]
    ]
    data = dataset(rows)
    assert to_sequences(data).item_ids == ["a", "late", "z"]
    assert to_sequences(data, vocabulary_until_ms=5).item_ids == ["a", "z"]  # an event at the cut is after it
    assert to_sequences(data, min_item_events=2).item_ids == ["a"]
    assert to_sequences(data, ["z", "a"]).item.tolist() == [-1, -1, 0, 1, 1, -1]
    with pytest.raises(DataError, match="none of 4 positive events lies before the validation part"):
        to_sequences(data, vocabulary_until_ms=1)
    with pytest.raises(DataError, match=r"no item has 9 positive events to train on; lower data\.min_item_events"):
        to_sequences(data, min_item_events=9)
    with pytest.raises(DataError, match="has no positive event with an item"):
        to_sequences(dataset(rows[:2]))


@pytest.mark.parametrize("rows", [1, 20])
def test_of_events_of_one_moment_it_is_said_that_none_lies_before_the_cut(rows):
    data = dataset([{"user_id": f"u{n % 4}", "item_id": f"i{n % 5}", "timestamp": 1} for n in range(rows)])
    with pytest.raises(DataError, match=rf"none of {rows} positive events lies before .* or too many of one moment"):
        make_task(data, DataSettings())


def test_loading_a_folder_gives_the_sequences_of_its_data_set(world, tmp_path):
    write_dataset(world, tmp_path / "d")
    loaded, direct = load_sequences(tmp_path / "d"), to_sequences(world)
    assert loaded.item_ids == direct.item_ids
    np.testing.assert_array_equal(loaded.item, direct.item)
