"""An update on the smallest world: it learns what is new, keeps what is old, and refuses what is worse or does not fit."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from changed_world import EDITION, change
from tiny_run import TinyRun
from typer.testing import CliRunner

from model.benchmark.renewal import before
from model.checkpoint import load_checkpoint, save_checkpoint
from model.cli import app
from model.data.build import with_events
from model.data.dataset import read_dataset, write_dataset
from model.data.splits import every_question, select, split_at
from model.inputs import Inputs
from model.live import live_lists
from model.loop import CHECKPOINT
from model.metrics import ndcg
from model.publish import publish
from model.settings import UpdateSettings
from model.update.gate import WorseError, check
from model.update.learn import HEADS, ITEMS, train_settings
from model.update.newer import NothingNewError, features_of, known_by_old, newer, read_events
from model.update.origin import _arrays, _computes, read_origin
from model.update.run import judged, refresh, update
from model.update.windows import draw_windows, fold_to

QUICK = UpdateSettings(learning_rate=3e-3, direct_learning_rate=3e-3)


@pytest.fixture(scope="module")
def origin(trained_bundle):
    return read_origin(trained_bundle)


@pytest.fixture(scope="module")
def events(tmp_path_factory, tiny_run: TinyRun, origin):
    """The changed world as a prepared folder. Do not write into it."""
    folder = tmp_path_factory.mktemp("changed") / "data"
    write_dataset(change(tiny_run.data, origin.checkpoint.known_until_ms), folder)
    return folder


@pytest.fixture(scope="module")
def refreshed(origin, events):
    return refresh(origin, events, QUICK)


@pytest.fixture
def bundles(trained_bundle, tmp_path):
    """A folder of bundles of its own, with the trained one."""
    shutil.copytree(trained_bundle.parent, tmp_path / "bundles", symlinks=True)
    return tmp_path / "bundles"


def content(folder: Path):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return files, os.readlink(folder / "current")


def call(bundle, data, *options):
    return CliRunner().invoke(app, ["update", "--from", str(bundle), "--events", str(data), *options])


def test_an_update_on_newer_events_is_better_on_the_newest(refreshed):
    judgement = judged(refreshed)
    assert judgement.queries >= 20
    assert judgement.after > 1.1 * judgement.before
    assert judgement.difference.low > 0
    check(judgement, 0.0)


def test_what_is_learned_from_and_what_judges_are_apart(refreshed):
    newer = refreshed.newer
    learned = refreshed.task.train_queries
    assert learned.as_of.max() < newer.split.cut_ms <= newer.split.test.as_of.min()
    assert (learned.as_of >= newer.since_ms).sum() == len(newer.split.valid) == refreshed.learned.learned
    assert refreshed.learned.replayed > 0
    assert refreshed.checkpoint.known_until_ms == newer.split.cut_ms


def test_old_rows_keep_their_place_and_new_items_come_behind(refreshed, origin):
    ids, old = refreshed.checkpoint.item_ids, origin.checkpoint.item_ids
    assert ids[: len(old)] == old
    assert ids[len(old) :] == sorted(ids[len(old) :])
    assert len(ids) - len(old) >= 10
    assert all(item.startswith(EDITION) for item in ids[len(old) :])
    # An item that is first sold in the newest events, which judge, must not be known from them.
    newer = refreshed.newer
    bought = newer.seq.item[newer.seq.positive & (newer.seq.time < newer.split.cut_ms)]
    assert set(range(len(ids))) - set(range(len(old))) <= set(bought.tolist())


def test_new_items_are_recommended(refreshed, origin):
    queries, split = refreshed.newer.split.test, refreshed.newer.split
    lists = live_lists(refreshed.checkpoint, refreshed.newer.seq, refreshed.task.inputs, queries, 20, split.train_end)
    fresh = lists >= len(origin.checkpoint.item_ids)
    assert fresh.any(1).mean() > 0.5


def test_who_did_nothing_new_is_not_forgotten(refreshed, origin):
    """The validation questions of the run, before anything new happened."""
    seq = refreshed.newer.seq
    since, until = origin.checkpoint.known_until_ms - 10 * 86_400_000, origin.checkpoint.known_until_ms
    split = split_at(seq, "basket", every_question(seq, "basket"), since, since, filter_seen=False)
    queries = select(split.test, split.test.as_of < until)
    assert len(queries) > 50
    after = live_lists(refreshed.checkpoint, seq, refreshed.task.inputs, queries, 20, split.train_end)
    old = known_by_old(refreshed.newer)
    inputs = Inputs.of(old, refreshed.task.item_text[: len(old.item_ids)])
    inputs = dataclasses.replace(inputs, text=refreshed.task.inputs.text, text_row=refreshed.task.inputs.text_row)
    earlier = live_lists(origin.checkpoint, old, inputs, queries, 20, split.train_end)
    assert ndcg(after, queries, 20).mean() > 0.95 * ndcg(earlier, queries, 20).mean()


@pytest.mark.parametrize("what", ["items", "heads", "items+heads", "all"])
def test_what_is_not_refreshed_is_the_same_to_the_bit(origin, events, what):
    checkpoint = refresh(origin, events, dataclasses.replace(QUICK, refresh=what, passes=1)).checkpoint
    old, rows = origin.checkpoint.net.state_dict(), len(origin.checkpoint.item_ids)
    changed, fresh = set(), set()
    for name, now in checkpoint.net.state_dict().items():
        kept = now[:rows] if name in ITEMS else now
        if not torch.equal(kept, old[name]):
            changed.add(name)
        if name in ITEMS and (now[rows:] != now[rows : rows + 1]).any():
            fresh.add(name)
    heads = {name for name in old if name.startswith(HEADS)}
    allowed = {"items": set(ITEMS), "heads": heads, "items+heads": heads | set(ITEMS), "all": set(old)}[what]
    assert changed <= allowed
    for part in (set(ITEMS), heads, set(old) - heads - set(ITEMS)):
        assert bool(part & changed) == bool(part & allowed)
    assert fresh == set(ITEMS)  # rows of new items learn in any case


def test_without_learning_a_new_item_with_a_text_is_what_the_service_makes_of_an_unseen_one(origin, events):
    still = dataclasses.replace(QUICK, learning_rate=1e-30, direct_learning_rate=1e-30)
    found = refresh(origin, events, still)
    net, rows = found.checkpoint.net, len(origin.checkpoint.item_ids)
    with torch.no_grad():
        vectors, bias = net.item(found.task.inputs.item_text, None)
        unseen, unseen_bias = origin.checkpoint.net.item.unseen(found.task.inputs.item_text[rows:], None)
    torch.testing.assert_close(vectors[rows:], unseen, atol=1e-6, rtol=0)
    torch.testing.assert_close(bias[rows:], unseen_bias, atol=1e-6, rtol=0)


def test_a_stretch_begins_with_the_state_of_all_that_was_before(origin, refreshed):
    seq, queries, net = refreshed.newer.seq, refreshed.newer.learnable, refreshed.checkpoint.net
    new = queries.as_of >= refreshed.newer.since_ms
    windows = draw_windows(seq, queries, new, 1.0, 8, 10**6, np.random.default_rng(0))
    assert set(queries.user[new].tolist()) <= set(windows.user.tolist())
    asked = {(int(u), int(p)) for u, p in zip(windows.queries.user, windows.queries.position, strict=True)}
    assert {(int(u), int(p)) for u, p in zip(queries.user[new], queries.position[new], strict=True)} <= asked
    assert int(new.sum()) <= windows.replayed + int(new.sum()) == len(asked)
    states = fold_to(net, refreshed.task.inputs, seq, windows, 8)
    with torch.no_grad():
        matrix, _ = net.item(refreshed.task.inputs.item_text, None)
        for index in range(0, len(windows.user), 7):
            user, first, begin = int(windows.user[index]), int(seq.offsets[windows.user[index]]), int(windows.begin[index])
            if begin == first:
                assert user not in states
                continue
            rows = torch.arange(first, begin)[None]
            whole = net.encode(
                refreshed.task.inputs.events(rows, matrix),
                torch.ones_like(rows, dtype=torch.bool),
                net.initial_state(refreshed.task.inputs.attributes[[user]]),
            )
            for name, values in states[user].items():
                if not name.startswith(("repeat", "visit")):
                    torch.testing.assert_close(values, whole[name][0], atol=1e-4, rtol=1e-4)


def test_folding_before_a_stretch_is_bounded(refreshed):
    seq, queries = refreshed.newer.seq, refreshed.newer.learnable
    new = queries.as_of >= refreshed.newer.since_ms
    windows = draw_windows(seq, queries, new, 0.0, 8, 16, np.random.default_rng(0))
    before_stretch = windows.begin - windows.fold
    assert before_stretch.max() == 16
    assert (before_stretch % 8 == 0).all()
    assert set(windows.user.tolist()) == set(queries.user[new].tolist())


def test_a_worse_model_is_refused_and_current_stays(bundles, tiny_run: TinyRun, tmp_path):
    (tmp_path / "absurd.toml").write_text(
        '[update]\nrefresh = "all"\nlearning_rate = 3.0\ndirect_learning_rate = 3.0\nwarmup_steps = 0\n'
    )
    was = content(bundles)
    result = call(bundles / "current", tiny_run.data, "--config", str(tmp_path / "absurd.toml"))
    assert result.exit_code == 2
    assert "refused, nothing was published: ndcg@20" in result.stderr or "the loss became" in result.stderr
    assert content(bundles) == was


def test_the_gate_lets_a_lower_figure_pass_only_within_its_margin(refreshed):
    judgement = dataclasses.replace(judged(refreshed), before=0.2, after=0.199)
    with pytest.raises(WorseError, match=r"0\.1990 after, 0\.2000 before"):
        check(judgement, 0.0)
    check(judgement, 0.01)
    with pytest.raises(WorseError):
        check(dataclasses.replace(judgement, after=float("nan")), 0.01)


def test_who_stops_it_before_it_is_done_finds_everything_as_it_was(bundles, events):
    was = content(bundles)

    def stop(line):
        if line.startswith("ndcg"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(bundles / "current", events, None, QUICK, say=stop)
    assert content(bundles) == was


def without_anything_new(tiny_run, since):
    return before(read_dataset(tiny_run.data), since)


def of_another_shop(tiny_run, since):
    dataset = read_dataset(tiny_run.data)
    other = ("other-" + pl.col("item_id")).alias("item_id")
    return with_events(dataset, dataset.events.with_columns(other), dataset.items.with_columns(other))


def without_anything_old(tiny_run, since):
    dataset = read_dataset(tiny_run.data)
    events = dataset.events.filter(pl.col("timestamp") >= since)
    return with_events(dataset, events, dataset.items)


def hardly_new(tiny_run, since):
    dataset = read_dataset(tiny_run.data)
    times = dataset.events.filter(pl.col("timestamp") >= since).get_column("timestamp").to_list()
    return before(dataset, times[20])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (without_anything_new, "no new events: the newest purchase is of 2024-"),
        (of_another_shop, "of another data set: 0% of what was bought before"),
        (without_anything_old, "has nothing from before"),
        (hardly_new, "too little is new since"),
    ],
)
def test_events_that_do_not_fit_are_refused_in_one_line(bundles, tiny_run: TinyRun, origin, tmp_path, make, says):
    write_dataset(make(tiny_run, origin.checkpoint.known_until_ms), tmp_path / "data")
    was = content(bundles)
    result = call(bundles / "current", tmp_path / "data")
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert content(bundles) == was


def test_a_bundle_without_or_with_another_runs_checkpoint_is_refused(bundles, tiny_run: TinyRun, events, tmp_path):
    (checkpoint,) = bundles.glob("*.pt")
    other = load_checkpoint(tiny_run.run / CHECKPOINT)
    with torch.no_grad():
        other.net.readout.interest.weight.mul_(1.1)
    save_checkpoint(other, tmp_path / "other" / CHECKPOINT)
    result = call(bundles / "current", events, "--run", str(tmp_path / "other"))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "a bundle of another run" in result.stderr
    checkpoint.unlink()
    result = call(bundles / "current", events)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "name its run with --run" in result.stderr
    assert read_origin(bundles / "current", tiny_run.run).model_id == (bundles / "current").resolve().name


def test_a_bundle_of_rounded_weights_and_its_run_belong_together(tiny_run: TinyRun, tmp_path):
    exported = publish(tiny_run.run, tiny_run.data, tmp_path, item_vectors="int8", weights="int8")
    by_run, beside = read_origin(exported.folder, tiny_run.run), read_origin(exported.folder)
    # The gate must ask what is served, and not what that was rounded from.
    for name, weights in beside.checkpoint.net.state_dict().items():
        assert torch.equal(by_run.checkpoint.net.state_dict()[name], weights), name


def test_a_bundle_of_before_whose_drift_was_of_vectors_belongs_to_its_run_as_well(bundles):
    """No score sees `leaning`, whose shape has changed; what scores see is still compared."""
    net = read_origin(bundles / "current").checkpoint.net
    golden = _arrays(bundles / "current" / "golden.npz")
    for graph in ("step", "interest"):
        golden[f"{graph}/in/leaning"] = np.zeros((3, 2, net.config.width), np.float32)
    assert _computes(net, golden)
    golden["interest/out/interests"] = 1.1 * golden["interest/out/interests"]
    assert not _computes(net, golden)


def test_a_title_may_have_what_some_take_for_the_end_of_a_line(bundles):
    path = bundles / "current" / "items" / "items.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    title = "first\x85second\u2028third"
    path.write_bytes(b"".join([json.dumps(json.loads(first) | {"title": title}, ensure_ascii=False).encode() + b"\n", *others]))
    assert read_origin(bundles / "current").titles[0] == title


def test_a_model_of_one_platform_learns_and_is_judged_there_alone(origin, events):
    settings, since = origin.checkpoint.settings, origin.checkpoint.known_until_ms - 30 * 86_400_000  # enough on a platform, too
    whole = dataclasses.replace(origin.checkpoint, known_until_ms=since)
    on_web = dataclasses.replace(whole, settings=settings | {"data": settings["data"] | {"platform": "web"}})
    dataset = read_events(events, origin)
    everywhere, there = (newer(dataset, dataclasses.replace(origin, checkpoint=each), 0.3) for each in (whole, on_web))
    web = there.seq.platforms.index("web") + 1
    for part in ("learnable", "valid", "test"):
        every, chosen = (getattr(each if part == "learnable" else each.split, part) for each in (everywhere, there))
        assert np.array_equal(chosen.position, every.position[everywhere.seq.platform[every.position] == web])
        assert 0 < len(chosen) < len(every)
    assert len(there.seq.item) == len(everywhere.seq.item)  # what users did elsewhere is read all the same


def test_item_features_are_read_by_name(origin, events):
    found = newer(read_events(events, origin), origin, 0.3)
    columns = {"feature_a": 1.0, "feature_b": 2.0, "feature_c": 3.0}
    items = found.items.with_columns(pl.lit(value).alias(name) for name, value in columns.items())
    found = dataclasses.replace(found, items=items)
    values = features_of(found, dataclasses.replace(origin, features=("feature_a", "feature_c")))
    assert (values == [1.0, 3.0]).all()
    with pytest.raises(NothingNewError, match="have no feature_d"):
        features_of(found, dataclasses.replace(origin, features=("feature_a", "feature_c", "feature_d")))


@pytest.mark.parametrize("damage", ["items/items.jsonl", "items/bias.npy", "golden.npz", "manifest.json"])
def test_a_damaged_bundle_is_refused(bundles, events, damage):
    (bundles / "current" / damage).write_bytes(b"\x00")
    result = call(bundles / "current", events)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


def test_an_unknown_choice_of_what_is_refreshed_is_refused(bundles, events):
    result = call(bundles / "current", events, "--refresh", "everything")
    assert result.exit_code == 2
    assert "--refresh must be one of items, heads, items+heads, all" in result.stderr


def test_an_update_takes_the_lanes_that_the_training_had(trained_bundle):
    checkpoint = read_origin(trained_bundle).checkpoint
    checkpoint.settings["train"]["least_steps"] = 800
    assert train_settings(checkpoint, UpdateSettings()).lanes == checkpoint.settings["train"]["lanes"]
    checkpoint.history[-1]["batch"] = 8
    found = train_settings(checkpoint, UpdateSettings())
    assert (found.lanes, found.least_steps) == (8, 0)
