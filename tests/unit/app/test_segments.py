"""The segments of a device against brute force: a device that chooses among ties as it likes, and the bundle's own graph."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.catalogue.catalogue import NEVER, Catalogue
from app.recommend import device as device_module
from app.recommend import segments as segments_module
from app.recommend.device import DeviceScan
from app.recommend.retrieve import Limits
from app.recommend.segments import Segments
from app.runtime.bundle import read_bundle
from app.runtime.session import open_runtime

WIDTH, HALVES, SLOTS = 3, 2, 4
MOMENT = 10**12
ONE = np.float32(0.95)


class NumpyDevice:
    """Graphs in numpy. Of equal scores it takes any, in any order, and rows without a score get any place."""

    def __init__(self, block, seed=0):
        self.block = block
        self.rng = np.random.default_rng(seed)
        self.put = []
        self.calls = []

    def resident(self, array):
        self.put.append(array.nbytes)
        return array.copy()

    def kept_popularity(self, popularity):
        # Whole numbers too; where scores are worked out on the host, which takes logarithms, that of 0.95 + 0.05.
        return {"recent": self.resident(np.where(popularity == ONE, 0, popularity).astype(np.float32))}

    def scan(self, feeds):
        matrix, (k,) = feeds["item_matrix"], feeds["k"]
        assert len(matrix) % self.block == 0
        assert k <= len(matrix)
        self.calls.append((len(feeds["interests"]), len(matrix), int(k)))
        scores = (feeds["interests"] @ matrix.T).max(1) + feeds["item_bias"] + feeds["bias"]
        scores = scores + feeds["popularity_weight"] @ feeds["recent"].T
        for of_user, rows, amounts in zip(scores, feeds["repeat_rows"], feeds["repeat_scores"], strict=True):
            np.add.at(of_user, rows[rows >= 0], amounts[rows >= 0])
        order = np.stack([np.lexsort((self.rng.random(len(one)), -one))[:k] for one in scores])
        found = np.take_along_axis(scores, order, 1)
        order[found == -np.inf] = self.rng.integers(0, len(matrix), (found == -np.inf).sum())
        return {"scores": found.astype(np.float32), "rows": order}


def whole(rng, levels, *shape):
    """Whole numbers, so that sums are exact and ties many."""
    return rng.integers(-levels, levels + 1, shape).astype(np.float32)


def made(rng, count, levels):
    return Catalogue(
        [f"i{n}" for n in range(count)], [None] * count, [()] * count, whole(rng, levels, count, WIDTH), whole(rng, levels, count)
    )


def change(catalogue, rng, levels, kind):
    """Some changes of one kind, as the event loop makes them."""
    count = len(catalogue)
    rows = rng.choice(count, min(count, int(rng.integers(1, 6))), replace=False).tolist()
    if kind == "new":
        for _ in rows:
            row = catalogue.put(f"i{len(catalogue)}", None, None)
            if rng.random() < 0.8:
                catalogue.teach(row, whole(rng, levels, WIDTH), float(whole(rng, levels)), 1)
    for row in rows:
        if kind == "renewed":
            catalogue.teach(row, whole(rng, levels, WIDTH), float(whole(rng, levels)), 1)
        elif kind == "gone":
            catalogue.close(row)
        elif kind == "back":
            catalogue.as_in_bundle(row)
        elif kind == "untaught":
            catalogue.unteach(row)
        elif kind == "later":
            catalogue.put(catalogue.ids[row], None, None, MOMENT + 5, NEVER)
    if kind == "all gone":
        for row in range(count):
            catalogue.close(row)
    catalogue.settle(catalogue.version + 1)


def asked(rng, users, count, levels):
    return {
        "interests": whole(rng, levels, users, 2, WIDTH),
        "popularity_weight": whole(rng, 1, users, HALVES),
        "repeat_rows": np.where(rng.random((users, SLOTS)) < 0.5, rng.integers(0, count, (users, SLOTS)), -1),
        "repeat_scores": whole(rng, levels, users, SLOTS),
        "repeat_interest": np.zeros((users, WIDTH), np.float32),
    }


def brute(interest, user, vectors, bias, popularity, limits, m):
    scores = (interest["interests"][user] @ vectors.T).max(0) + bias
    scores = scores + interest["popularity_weight"][user] @ np.where(popularity == ONE, 0, popularity)[: len(bias)].T
    rows = interest["repeat_rows"][user]
    np.add.at(scores, rows[rows >= 0], interest["repeat_scores"][user][rows >= 0])
    if limits.bias is not None:
        scores = scores + limits.bias
    if limits.mask is not None:
        scores = np.where(limits.mask, scores, -np.inf)
    if limits.among is not None:
        among = np.zeros(len(scores), bool)
        among[list(limits.among)] = True
        scores = np.where(among, scores, -np.inf)
    scores[list(limits.without)] = -np.inf
    order = np.lexsort((np.arange(len(scores)), -scores))[:m]
    return order[scores[order] > -np.inf], scores[order][scores[order] > -np.inf]


def ruled(rng, count, shared, few):
    """The rules of one user; some have those of others."""
    mask = shared["mask"] if rng.random() < 0.4 else None
    bias = shared["bias"] if rng.random() < 0.3 else None
    among = rng.choice(count, min(count, 5), replace=False).tolist() if few and rng.random() < 0.2 else None
    without = rng.choice(count, int(rng.integers(0, min(count, 9) + 1)), replace=False).tolist() if rng.random() < 0.5 else ()
    return Limits(mask, among, without, bias)


KINDS = ["new", "renewed", "gone", "back", "untaught", "later", "all gone", "compact", "nothing"]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 60),
    rows=st.sampled_from([1, 4, 7, 16, 64]),
    block=st.sampled_from([1, 2, 4, 8]),
    delta_most=st.sampled_from([0, 3, 10, 10**6]),
    levels=st.sampled_from([0, 1, 3, 50]),
    steps=st.lists(st.sampled_from(KINDS), max_size=6),
    m=st.integers(0, 70),
    few=st.booleans(),
)
def test_segments_give_what_brute_force_gives_whatever_happened_to_the_catalogue(
    seed, count, rows, block, delta_most, levels, steps, m, few
):
    rng = np.random.default_rng(seed)
    catalogue = made(rng, count, levels)
    graphs = NumpyDevice(block, seed)
    laid_out = partial(Segments, block=block, delta_most=delta_most, beside=lambda work: work())
    scan = DeviceScan(graphs, catalogue, catalogue.bias_at(MOMENT), rows, laid_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_module, "FEW", 4 if few else -1)
        patch.setattr(device_module, "_LEFT_OUT", 6)
        patch.setattr(segments_module, "_SCORES", 64)
        for step in [*steps, "nothing"]:
            if step == "compact":
                scan._segments.compact(scan.at(catalogue.bias_at(MOMENT)))
            elif step != "nothing":
                change(catalogue, rng, levels, step)
            shown = scan.at(catalogue.bias_at(MOMENT))
            popularity = np.full((len(catalogue), HALVES), ONE) if few else whole(rng, levels, len(catalogue), HALVES)
            n = len(shown.bias)
            users = int(rng.integers(1, 4))
            interest = asked(rng, users, n, levels)
            shared = {"mask": rng.random(n) < rng.random(), "bias": whole(rng, levels, n)}
            limits = [ruled(rng, n, shared, few) for _ in range(users)]
            found = scan.best(interest, m, shown, popularity, limits)
            for user in range(users):
                rows_right, right = brute(interest, user, shown.vectors, shown.bias, popularity, limits[user], m)
                assert found[user].rows.tolist() == rows_right.tolist()
                assert np.array_equal(found[user].scores, right)


def laid_out(rng, count, rows, **options):
    catalogue, graphs = made(rng, count, 50), NumpyDevice(4)
    lay_out = partial(Segments, **({"block": 4, "delta_most": 10**6} | options))
    return catalogue, graphs, DeviceScan(graphs, catalogue, catalogue.bias_at(MOMENT), rows, lay_out)


def ask(scan, graphs, shown, rng, m=5, limits=None):
    interest = asked(rng, 1, len(shown.bias), 50)
    popularity = np.full((len(shown.bias), HALVES), ONE)
    (found,) = scan.best(interest, m, shown, popularity, [limits or Limits()])
    right, _ = brute(interest, 0, shown.vectors, shown.bias, popularity, limits or Limits(), m)
    assert found.rows.tolist() == right.tolist()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_of_items_of_one_score_the_first_rows_are_listed_whichever_the_device_chose():
    catalogue = Catalogue([f"i{n}" for n in range(64)], [None] * 64, [()] * 64, np.zeros((64, WIDTH), np.float32), np.zeros(64))
    scan = DeviceScan(NumpyDevice(4), catalogue, catalogue.bias_at(MOMENT), 32, partial(Segments, block=4, delta_most=10**6))
    interest = asked(np.random.default_rng(0), 1, 64, 0)
    (found,) = scan.best(interest, 5, scan.at(catalogue.bias_at(MOMENT)), np.full((64, HALVES), ONE), [Limits()])
    assert found.rows.tolist() == [0, 1, 2, 3, 4]


def test_an_item_that_got_another_vector_is_listed_once(rng):
    catalogue, graphs, scan = laid_out(rng, 40, 16)
    catalogue.teach(20, whole(rng, 50, WIDTH), 0.0, 1)
    catalogue.settle(1)
    ask(scan, graphs, scan.at(catalogue.bias_at(MOMENT)), rng, m=40)


def test_a_change_puts_its_rows_and_one_bias_on_the_device_and_not_the_matrix(rng):
    catalogue, graphs, scan = laid_out(rng, 4_000, 1_000)
    ask(scan, graphs, scan.at(catalogue.bias_at(MOMENT)), rng)
    graphs.put.clear()
    catalogue.teach(2_500, whole(rng, 50, WIDTH), 0.0, 1)
    catalogue.settle(1)
    shown = scan.at(catalogue.bias_at(MOMENT))
    graphs.calls.clear()
    scan.best(asked(rng, 1, 4_000, 50), 5, shown, np.full((4_000, HALVES), ONE), [Limits()])
    assert (scan.layout.segments, scan.layout.delta_rows) == (4, 1)
    # A delta of a block with bias, zeros and popularity; the bias of the third segment; popularity, which is another table.
    delta = 4 * 4 * (WIDTH + 1 + 1 + HALVES)
    assert sum(graphs.put) == delta + 4 * 1_000 + 4 * 4_000 * HALVES
    assert len(graphs.calls) == 5


def test_what_is_closed_moves_the_bias_of_its_segment_alone(rng):
    catalogue, graphs, scan = laid_out(rng, 4_000, 1_000)
    graphs.put.clear()
    catalogue.close(3_999)
    catalogue.settle(1)
    scan._segments._view(scan.at(catalogue.bias_at(MOMENT)))
    assert graphs.put == [4 * 1_000]
    assert scan.layout.delta_rows == 0


def test_a_compaction_lays_out_anew_only_segments_in_which_something_changed(rng):
    catalogue, graphs, scan = laid_out(rng, 4_000, 1_000)
    for row in (2_100, 2_200):
        catalogue.teach(row, whole(rng, 50, WIDTH), 0.0, 1)
    for n in range(10):
        catalogue.teach(catalogue.put(f"new {n}", None, None), whole(rng, 50, WIDTH), 0.0, 1)
    catalogue.settle(1)
    shown = scan.at(catalogue.bias_at(MOMENT))
    ask(scan, graphs, shown, rng)
    assert scan.layout.delta_rows == 12
    graphs.put.clear()
    scan._segments.compact(shown)
    assert sorted(graphs.put) == [4 * 12 * WIDTH, 4 * 1_000 * WIDTH]  # what came, filled up to a block, and the third segment
    ask(scan, graphs, shown, rng)
    assert (scan.layout.segments, scan.layout.delta_rows, scan.layout.compactions) == (5, 0, 1)


def test_who_began_before_a_compaction_gets_the_list_of_then(rng):
    catalogue, graphs, scan = laid_out(rng, 40, 16)
    before = scan.at(catalogue.bias_at(MOMENT))
    catalogue.teach(catalogue.put("new", None, None), np.full(WIDTH, 50, np.float32), 50.0, 1)
    catalogue.close(3)
    catalogue.settle(1)
    now = scan.at(catalogue.bias_at(MOMENT))
    scan._segments.compact(now)
    ask(scan, graphs, before, rng, m=40)
    ask(scan, graphs, now, rng, m=41)


def test_a_large_delta_is_laid_out_beside_and_lists_do_not_wait_for_it(rng):
    works = []
    catalogue, graphs, scan = laid_out(rng, 40, 16, delta_most=2, beside=works.append)
    for row in range(3):
        catalogue.teach(row, whole(rng, 50, WIDTH), 0.0, 1)
    catalogue.settle(1)
    ask(scan, graphs, scan.at(catalogue.bias_at(MOMENT)), rng)
    ask(scan, graphs, scan.at(catalogue.bias_at(MOMENT)), rng)
    catalogue.teach(7, whole(rng, 50, WIDTH), 0.0, 2)  # while it is on its way
    catalogue.settle(2)
    shown = scan.at(catalogue.bias_at(MOMENT))
    ask(scan, graphs, shown, rng, m=40)
    assert len(works) == 1  # one at a time
    works[0]()
    ask(scan, graphs, shown, rng, m=40)
    assert (scan.layout.delta_rows, scan.layout.compactions) == (1, 1)


def test_a_compaction_that_fails_leaves_lists_as_they_were_and_may_be_tried_again(rng, monkeypatch):
    works = []
    catalogue, graphs, scan = laid_out(rng, 40, 16, delta_most=0, beside=works.append)
    catalogue.teach(0, whole(rng, 50, WIDTH), 0.0, 1)
    catalogue.settle(1)
    shown = scan.at(catalogue.bias_at(MOMENT))
    ask(scan, graphs, shown, rng, m=40)
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "resident", lambda _: (_ for _ in ()).throw(MemoryError("no room")))
        works.pop()()
    ask(scan, graphs, shown, rng, m=40)
    catalogue.close(1)
    catalogue.settle(2)
    ask(scan, graphs, scan.at(catalogue.bias_at(MOMENT)), rng, m=40)
    works.pop()()
    ask(scan, graphs, scan.at(catalogue.bias_at(MOMENT)), rng, m=40)
    assert (scan.layout.delta_rows, scan.layout.compactions) == (0, 1)


def test_the_same_rules_are_put_on_the_device_once_and_segments_without_a_row_are_not_asked(rng):
    catalogue, graphs, scan = laid_out(rng, 64_000, 16_000)
    shown, mask = scan.at(catalogue.bias_at(MOMENT)), np.zeros(64_000, bool)
    mask[20_000:40_000] = True
    limits = Limits(mask=mask, without=range(20_000, 20_005))
    ask(scan, graphs, shown, rng, limits=limits)
    graphs.calls.clear()
    graphs.put.clear()
    interest, popularity = asked(rng, 3, 64_000, 50), np.full((64_000, HALVES), ONE)
    scan.best(interest, 5, shown, popularity, [limits, Limits(mask=mask), limits])
    assert [users for users, *_ in graphs.calls] == [3, 3]  # all three at once, from the two segments that the mask lets through
    scan.best(interest, 5, shown, popularity, [limits] * 3)
    assert sum(graphs.put) == 2 * 4 * 16_000 * HALVES  # popularity, which is another table


def test_many_threads_ask_while_the_catalogue_changes(rng):
    catalogue, graphs, scan = laid_out(rng, 300, 64, delta_most=8, beside=None)
    failed = []

    def read(seed):
        mine = np.random.default_rng(seed)
        try:
            for _ in range(60):
                shown = snapshots[-1]
                n = len(shown.bias)
                found = scan.best(asked(mine, 2, n, 50), 20, shown, np.full((n, HALVES), ONE), [Limits()] * 2)
                for one in found:
                    assert len(one.rows) == min(20, int(np.isfinite(shown.bias).sum()))
                    assert np.isfinite(shown.bias[one.rows]).all()
        except BaseException as error:
            failed.append(error)
            raise

    snapshots = [scan.at(catalogue.bias_at(MOMENT))]
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for kind in ["new", "renewed", "gone"] * 15:
        change(catalogue, rng, 50, kind)
        snapshots.append(scan.at(catalogue.bias_at(MOMENT)))
    for thread in threads:
        thread.join()
    assert not failed
    while threading.active_count() > 1 and scan._segments._compacting:
        pass
    ask(scan, graphs, scan.at(catalogue.bias_at(MOMENT)), rng, m=50)


@pytest.fixture
def runtime(tiny_bundle):
    return open_runtime(read_bundle(tiny_bundle), "cpu", 1)


@pytest.mark.parametrize("rows", [128, 1_024])
def test_the_bundles_own_graph_gives_what_score_gives_over_all_rows(runtime, rows):
    rng = np.random.default_rng(0)
    n, width = 900, runtime.bundle.vectors.shape[1]
    halves = runtime.bundle.popularity.shape[1]
    vectors, bias = rng.normal(size=(n, width)).astype(np.float32), rng.normal(size=n).astype(np.float32)
    catalogue = Catalogue([f"i{k}" for k in range(n)], [None] * n, [()] * n, vectors, bias)
    scan = DeviceScan(runtime, catalogue, catalogue.bias_at(MOMENT), rows)
    for row in (0, 500):
        catalogue.teach(row, rng.normal(size=width).astype(np.float32), 0.0, 1)
    catalogue.teach(catalogue.put("new", None, None), rng.normal(size=width).astype(np.float32), 0.0, 1)
    catalogue.close(7)
    catalogue.settle(1)
    shown = scan.at(catalogue.bias_at(MOMENT))
    users = 3
    interest = {
        "interests": rng.normal(size=(users, 1, width)).astype(np.float32),
        "popularity_weight": rng.uniform(size=(users, halves)).astype(np.float32),
        "repeat_rows": rng.integers(-1, n + 1, (users, 16)),
        "repeat_scores": rng.normal(size=(users, 16)).astype(np.float32),
        "repeat_interest": rng.normal(size=(users, width)).astype(np.float32),
    }
    interest["repeat_rows"][0, :3] = [0, n, 7]
    popularity = rng.exponential(size=(n + 1, halves)).astype(np.float32)
    found = scan.best(interest, 200, shown, popularity, [Limits()] * users)
    feeds = {"item_matrix": shown.vectors, "item_bias": shown.bias, "bias": np.zeros((1, n + 1), np.float32)}
    whole_list = runtime.score({**interest, **feeds, **runtime.of_popularity(popularity), "k": np.asarray([200])})
    for user, one in enumerate(found):
        assert np.abs(one.scores - whole_list["scores"][user]).max() < 1e-5
        assert one.rows.tolist() == whole_list["rows"][user].tolist()
