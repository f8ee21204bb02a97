"""Lists under rules: every rule by an example, and against a brute force over all items."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.catalogue.lists import ListColumn
from app.recommend.rules import Cap, Pin, Rules
from app.recommend.select import POOL_FACTOR, POOL_LEAST, select, selecting
from app.recommend.selection import GaveWay, Why


class World:
    """Items with scores; those at -inf are not eligible. Notes what was asked for."""

    def __init__(self, scores, vectors=None):
        self.scores = np.asarray(scores, np.float32)
        self.vectors = None if vectors is None else np.asarray(vectors, np.float32)
        self.asked = []
        order = np.lexsort((np.arange(len(self.scores)), -self.scores))
        self.order = order[self.scores[order] > -np.inf]

    def more(self, m):
        self.asked.append(m)
        return self.order[:m], self.scores[self.order[:m]]

    def select(self, **rules):
        vectors = None if self.vectors is None else lambda rows: self.vectors[rows]
        return select(Rules(**rules), self.more, lambda rows: self.scores[rows], vectors)


def pin(row, position, barred=None):
    return Pin(f"i{row}", row, position, barred)


FALLING = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]


def test_without_rules_the_list_is_the_best_k_and_no_more_was_asked_for():
    world = World([1.0, 3.0, 3.0, -math.inf, 2.0])
    chosen = world.select(k=3)
    assert (chosen.rows, chosen.scores, chosen.gave_way) == ([1, 2, 4], [3.0, 3.0, 2.0], [])
    assert world.asked == [3]
    assert world.select(k=9).rows == [1, 2, 4, 0]


def test_a_pin_stands_at_its_position_and_once():
    world = World(FALLING)
    assert world.select(k=4, pins=[pin(5, 2)]).rows == [0, 5, 1, 2]
    assert world.select(k=4, pins=[pin(0, 3)]).rows == [1, 2, 0, 3]  # the best may stand lower, too
    chosen = world.select(k=3, pins=[pin(5, 1), pin(4, 2), pin(3, 3)])
    assert (chosen.rows, chosen.scores) == ([5, 4, 3], [4.0, 5.0, 6.0])
    assert world.asked == [4, 4]


def test_a_pin_has_its_score_and_no_minimum():
    chosen = World(FALLING).select(k=4, pins=[pin(5, 1)], min_score=8.0)
    assert (chosen.rows, chosen.scores) == ([5, 0, 1], [4.0, 9.0, 8.0])
    assert chosen.gave_way == [GaveWay("k", "min_score", missing=1)]


@pytest.mark.parametrize(
    ("pins", "rows", "gave_way"),
    [
        ([Pin("nowhere", None, 1)], [0, 1, 2], [("unknown", "nowhere", 1)]),
        ([Pin("late", None, 1, "not_available")], [0, 1, 2], [("not_available", "late", 1)]),
        ([pin(4, 1, "hidden")], [0, 1, 2], [("hidden", "i4", 1)]),
        ([pin(6, 2)], [0, 1, 2], [("not_eligible", "i6", 2)]),
        ([pin(5, 4)], [0, 1, 2], [("beyond_k", "i5", 4)]),
        ([pin(1, 4)], [0, 1, 2], [("beyond_k", "i1", 4)]),  # and comes by its score
        ([pin(5, 1), pin(4, 1)], [5, 0, 1], [("position_taken", "i4", 1)]),
        ([pin(6, 1), pin(4, 1)], [4, 0, 1], [("not_eligible", "i6", 1)]),  # the place of one that cannot be shown is free
        ([pin(5, 3), pin(5, 1)], [5, 0, 1], [("already_pinned", "i5", 3)]),
        ([pin(5, 1), pin(1, 1)], [5, 0, 1], [("position_taken", "i1", 1)]),
    ],
)
def test_a_pin_that_cannot_stand_gives_way_by_name_and_the_list_is_full(pins, rows, gave_way):
    chosen = World([*FALLING, -math.inf]).select(k=3, pins=pins)
    assert chosen.rows == rows
    assert [(one.reason, one.item_id, one.position) for one in chosen.gave_way] == gave_way
    assert {one.rule for one in chosen.gave_way} == {"pin"}


def test_in_a_list_that_is_too_short_pins_move_up():
    chosen = World([1.0, 2.0, 3.0]).select(k=9, pins=[pin(2, 8), pin(1, 5)])
    assert (chosen.rows, chosen.gave_way) == ([0, 1, 2], [])


def test_no_group_has_more_than_its_cap_and_what_comes_instead_is_the_next_best():
    brand = Cap("brand", 1, np.asarray([0, 0, 1, 0, -1, -1], np.int32))
    chosen = World(FALLING).select(k=4, caps=[brand])
    assert (chosen.rows, chosen.gave_way) == ([0, 2, 4, 5], [])  # items of no group are not capped


def test_an_item_in_several_groups_counts_in_each_of_them():
    groups = np.asarray([[0, 1], [1, -1], [0, -1], [2, 2], [2, -1], [-1, -1]], np.int32)
    assert World(FALLING).select(k=3, caps=[Cap("category", 1, groups)]).rows == [0, 3, 5]
    assert World(FALLING).select(k=5, caps=[Cap("category", 2, groups)]).rows == [0, 1, 2, 3, 4]  # twice in one group is once


def test_several_caps_hold_together():
    brand = Cap("brand", 1, np.asarray([0, 0, 1, 2, 2, 3]))
    seller = Cap("seller", 1, lambda rows: np.asarray([0, 1, 0, 1, 2, 2])[rows])
    # An item that one cap has passed over takes no room in the other.
    assert World(FALLING).select(k=3, caps=[brand, seller]).rows == [0, 3, 5]


def test_pins_count_in_the_caps_before_all_others():
    brand = Cap("brand", 1, np.asarray([0, 1, 1, 0, 2, 2]))
    chosen = World(FALLING).select(k=3, caps=[brand], pins=[pin(5, 3), pin(3, 2)])
    assert (chosen.rows, chosen.gave_way) == ([1, 3, 5], [])  # not 0: the pin behind it has its room


def test_a_pin_that_a_cap_has_no_room_for_gives_way_to_the_pin_above():
    brand = Cap("brand", 1, np.asarray([0, 0, 1, 2, 3, 0]))
    chosen = World(FALLING).select(k=3, caps=[brand], pins=[pin(5, 2), pin(1, 1)])
    assert chosen.rows == [1, 2, 3]
    assert chosen.gave_way == [GaveWay("pin", "cap", "i5", 2, ("brand",))]


def test_caps_that_leave_fewer_than_k_are_held_and_named():
    brand, none = np.asarray([0, 0, 1, 1, 0, 1]), Cap("none", 0, np.asarray([-1, -1, -1, -1, -1, 0]))
    chosen = World(FALLING).select(k=5, caps=[Cap("brand", 1, brand), none])
    assert chosen.rows == [0, 2]
    assert chosen.gave_way == [GaveWay("k", "caps", caps=("brand", "none"), missing=3)]


def test_too_few_eligible_items_are_nobodys_fault():
    chosen = World([1.0, -math.inf]).select(k=5, caps=[Cap("brand", 3, np.zeros(2, np.int32))])
    assert (chosen.rows, chosen.gave_way) == ([0], [])


def test_more_is_asked_for_until_the_list_is_full():
    # 5,000 items of one brand before the first of another.
    brand = np.where(np.arange(6_000) < 5_000, 0, np.arange(6_000))
    world = World(-np.arange(6_000.0))
    chosen = world.select(k=10, caps=[Cap("brand", 3, brand)])
    assert chosen.rows == [0, 1, 2, *range(5_000, 5_007)]
    assert world.asked == [64, 256, 1024, 4096, 16384]


def test_nothing_is_asked_for_when_no_group_has_room():
    world = World(-np.arange(6_000.0))
    chosen = world.select(k=10, caps=[Cap("brand", 3, np.arange(6_000) % 3)])
    assert (len(chosen.rows), world.asked) == (9, [64])
    assert chosen.gave_way == [GaveWay("k", "caps", caps=("brand",), missing=1)]
    assert chosen.why(4_000) == Why("capped", cap="brand")


def test_nothing_is_asked_for_when_no_list_of_entries_has_room():
    column = ListColumn(6_000)
    for row in range(6_000):
        column.put(row, [f"c{row % 3}", f"d{row % 7}"])
    world = World(-np.arange(6_000.0))
    chosen = world.select(k=10, caps=[Cap("categories", 3, column.groups())])
    assert (len(chosen.rows), world.asked) == (9, [64])
    assert chosen.why(4_000) == Why("capped", cap="categories")


def test_a_large_catalogue_is_asked_whether_any_group_has_room_when_a_part_of_it_was_looked_at():
    world = World(-np.arange(100_000.0))
    chosen = world.select(k=10, caps=[Cap("brand", 3, np.arange(100_000) % 3)])
    assert (len(chosen.rows), world.asked) == (9, [64, 256, 1024, 4096, 16384])


def test_an_item_that_came_after_the_groups_were_made_is_in_none():
    column = ListColumn(2)
    column.put(0, ["a", "b", "c", "d", "e"])
    column.put(1, ["a"])
    for groups, expected in [
        (np.asarray([4, 4]), [[4], [-1], [4]]),
        (np.asarray([[4, 5], [4, -1]]), [[4, -1], [-1, -1], [4, 5]]),
        (column.groups(), [[0, -1, -1, -1, -1], [-1] * 5, [0, 1, 2, 3, 4]]),
    ]:
        assert Cap("brand", 1, groups).codes(np.asarray([1, 2, 0])).tolist() == expected
    brand = Cap("brand", 1, np.asarray([0, 0, 1]))
    assert World(FALLING).select(k=5, caps=[brand]).rows == [0, 2, 3, 4, 5]


def test_what_was_drawn_stands_behind_all_pins_and_is_no_promise():
    brand = Cap("brand", 1, np.asarray([0, 1, 2, 3, 4, 4]))
    rules = Rules(k=3, caps=[brand], pins=[pin(5, 3)])
    world = World(FALLING)
    steps = selecting(rules, lambda rows: world.scores[rows], drawn=[pin(4, 1), pin(3, 2)])
    next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send(world.more(64))
    chosen = end.value.value
    assert (chosen.rows, chosen.pinned, chosen.gave_way) == ([0, 3, 5], [3, 5], [])


def test_a_list_of_pins_alone_asks_for_nothing():
    world = World(FALLING)
    assert (world.select(k=2, pins=[pin(3, 1), pin(4, 2)]).rows, world.asked) == ([3, 4], [])


def test_diversity_puts_what_is_like_the_first_behind_what_is_not():
    vectors = [[1, 0], [1, 0], [0, 1], [0.6, 0.8], [-1, 0], [0, 0]]
    world = World([10.0, 9.0, 8.0, 6.0, 1.0, 0.0], vectors)
    # Relevance 1, .9, .8, .6, .1, 0. Second: .45 - .5, .4, .3 - .3, .05 + .5, 0; then .4; then 0, .45 - .5 and .3 - .4.
    assert world.select(k=6, diversity=0.5).rows == [0, 4, 2, 5, 1, 3]
    assert world.select(k=3, diversity=0.05).rows == [0, 1, 2]
    assert world.select(k=3, diversity=0.0).rows == [0, 1, 2]
    assert world.select(k=6, diversity=1.0).rows[:2] == [0, 4]


def test_twins_tie_and_go_by_row():
    rng = np.random.default_rng(1)
    vectors = np.repeat(rng.normal(size=(1, 63)), 300, axis=0)
    assert World(np.zeros(300), vectors).select(k=20, diversity=0.7).rows == list(range(20))


def test_what_stands_already_are_the_pins_too():
    vectors = [[1, 0], [0, 1], [0, 1], [1, 0]]
    assert World([4.0, 3.0, 2.0, 1.0], vectors).select(k=3, diversity=0.8, pins=[pin(3, 3)]).rows == [1, 0, 3]


def test_an_item_beyond_the_pool_is_not_put_forward_and_caps_go_on_behind_it():
    n = POOL_LEAST + 50
    vectors = np.zeros((n, 2))
    vectors[:, 0] = 1
    vectors[POOL_LEAST:, 1] = 5  # unlike all in the pool
    world = World(-np.arange(float(n)), vectors)
    assert max(world.select(k=10, diversity=0.9).rows) < POOL_LEAST
    brand = np.where(np.arange(n) < POOL_LEAST, 0, 1)
    assert world.select(k=5, diversity=0.9, caps=[Cap("brand", 3, brand)]).rows[3:] == [POOL_LEAST, POOL_LEAST + 1]


def test_why_says_of_every_item_what_happened_to_it():
    vectors = [[1, 0], [1, 0], [1, 0.1], [0, 1], [0, 1], [1, 1], [0, 1]]
    brand = Cap("brand", 1, np.asarray([0, 1, 2, 3, 3, 4, -1]))
    world = World([9.0, 8.0, 7.0, 6.5, 6.0, 1.0, -math.inf], vectors)
    chosen = world.select(k=3, diversity=0.8, caps=[brand], pins=[pin(5, 2)], min_score=2.0)
    assert chosen.rows == [0, 5, 3]
    assert chosen.why(0) == Why("chosen", 1, 1, 9.0)
    assert chosen.why(5) == Why("pinned", 2, 6, 1.0)
    assert chosen.why(3) == Why("chosen", 3, 4, 6.5)
    assert chosen.why(1) == Why("diversity", None, 2, 8.0)  # would be third by score
    assert chosen.why(2) == Why("behind", None, 3, 7.0)
    assert chosen.why(4) == Why("behind", None, 5, 6.0)
    assert chosen.why(6) == Why("not_eligible")
    low = world.select(k=6, caps=[brand], min_score=6.8)
    assert low.why(5) == Why("below_min_score", None, 6, 1.0)
    plain = world.select(k=5, caps=[brand])
    assert plain.why(4) == Why("capped", None, 5, 6.0, "brand")
    assert world.select(k=2).why(5) == Why("not_reached")


def test_rules_that_need_more_than_they_were_given_say_so():
    world = World(FALLING)
    with pytest.raises(ValueError, match="vectors"):
        world.select(k=2, diversity=0.5)
    with pytest.raises(ValueError, match="scores_of"):
        select(Rules(k=2, pins=[pin(1, 1)]), world.more)


# --- against a brute force over all items, in plain Python


def codes_of(cap, row):
    found = cap.groups(np.asarray([row]))[0] if callable(cap.groups) else cap.groups[row]
    return set(np.atleast_1d(found).tolist()) - {-1}


class Room:
    def __init__(self, caps):
        self.caps, self.counts = caps, {}

    def has(self, row):
        return all(self.counts.get((n, c), 0) < cap.most for n, cap in enumerate(self.caps) for c in codes_of(cap, row))

    def take(self, row):
        for n, cap in enumerate(self.caps):
            for code in codes_of(cap, row):
                self.counts[n, code] = self.counts.get((n, code), 0) + 1


def brute_pins(scores, rules, room):
    places, gone = {}, []
    for one in sorted(rules.pins, key=lambda one: one.position):
        shown = one.row is not None and one.barred is None and scores[one.row] > -math.inf
        stands = shown and one.position <= rules.k and one.position not in places and one.row not in places.values()
        if stands and room.has(one.row):
            places[one.position] = one.row
            room.take(one.row)
        else:
            gone.append((one.item_id, one.position))
    return places, gone


def brute_rest(scores, rules, room, pinned):
    """What may be chosen besides pins, best first."""
    rows = [row for row in range(len(scores)) if scores[row] > -math.inf and scores[row] >= rules.min_score and row not in pinned]
    return sorted(rows, key=lambda row: (-scores[row], row))


def brute_plain(rest, room, wanted):
    taken = []
    for row in rest:
        if len(taken) < wanted and room.has(row):
            taken.append(row)
            room.take(row)
    return taken


def cosine(a, b):
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def mmr_values(pool, scores, vectors, standing, diversity):
    low, high = scores[pool[-1]], scores[pool[0]]
    values = {}
    for row in pool:
        relevance = 1.0 if low == high else (scores[row] - low) / (high - low)
        nearest = max((cosine(vectors[row], vectors[other]) for other in standing), default=0.0)
        values[row] = (1 - diversity) * relevance - diversity * nearest
    return values


def in_order(k, places, taken):
    rest = iter(taken)
    listed = [places[position] if position in places else next(rest, None) for position in range(1, k + 1)]
    return [row for row in listed if row is not None]


@st.composite
def any_pin(draw, n, k):
    row, position = draw(st.integers(0, n - 1)), draw(st.integers(1, k + 2))
    kind = draw(st.sampled_from(["good", "good", "good", "unknown", "hidden"]))
    return Pin(f"i{row}", None if kind == "unknown" else row, position, "hidden" if kind == "hidden" else None)


@st.composite
def questions(draw, vectors):
    """A catalogue with many ties, of a size on either side of what is asked for at first, and rules for it."""
    n = draw(st.integers(1, 12) | st.integers(50, 400))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 10, 10_000]))
    scores = rng.integers(0, levels, n).astype(np.float32)
    scores[rng.random(n) < draw(st.sampled_from([0, 0.1, 0.7, 1.0]))] = -math.inf
    k = draw(st.integers(1, 12) | st.integers(13, 120))
    caps = []
    for number in range(draw(st.integers(0, 2))):
        count = draw(st.sampled_from([1, 3, 40]))
        shape = (n,) if draw(st.booleans()) else (n, 3)
        # Skewed, so that good items are often of one group.
        even = draw(st.booleans())
        groups = (rng.integers(-1, count, shape) if even else rng.geometric(0.6, shape) - 2).astype(np.int32)
        given = groups if draw(st.booleans()) else (lambda rows, groups=groups: groups[rows])
        caps.append(Cap(f"cap {number}", draw(st.integers(0, 4)), given))
    pins = [draw(any_pin(n, k)) for _ in range(draw(st.sampled_from([0, 0, 1, 3, 8])))]
    low = draw(st.sampled_from([-math.inf, -math.inf, 0.0, levels / 2, float(levels)]))
    world = World(scores, vectors(rng, n))
    return world, {"k": k, "pins": pins, "caps": caps, "min_score": low}


def check_the_rest(world, rules, chosen, places, gone):
    scores = world.scores.tolist()
    assert [(one.item_id, one.position) for one in chosen.gave_way if one.rule == "pin"] == gone
    assert chosen.scores == [scores[row] for row in chosen.rows]
    assert sorted(chosen.pinned) == sorted(places.values())
    # k means k, but for what the caps or the minimum leave.
    short = [one for one in chosen.gave_way if one.rule == "k"]
    room = Room(rules.caps)
    for row in chosen.rows:
        room.take(row)
    left = [row for row in range(len(scores)) if scores[row] > -math.inf and row not in chosen.rows]
    good = [row for row in left if scores[row] >= rules.min_score]
    if len(chosen.rows) < rules.k:
        assert not any(room.has(row) for row in good)
        reason = "caps" if good else "min_score" if left else None
        assert [(one.reason, one.missing) for one in short] == ([(reason, rules.k - len(chosen.rows))] if reason else [])
    else:
        assert short == []
    for row in range(len(scores)):
        why = chosen.why(row)
        assert (why.what in ("pinned", "chosen")) == (row in chosen.rows)
        assert (why.what == "pinned") == (row in places.values())
        if scores[row] == -math.inf:
            assert why.what in ("not_eligible", "not_reached", "capped")
        elif row not in chosen.rows:
            assert why.what != "not_eligible"
            if why.what == "below_min_score":
                assert scores[row] < rules.min_score
            if why.what == "capped":
                assert not room.has(row)
            if why.what == "behind":
                assert len(chosen.rows) == rules.k


@settings(max_examples=400, deadline=None)
@given(questions(lambda rng, n: None))
def test_a_list_is_that_of_a_brute_force_over_all_items(question):
    world, rules = question[0], Rules(**question[1])
    scores = world.scores.tolist()
    chosen = world.select(**question[1])
    room = Room(rules.caps)
    places, gone = brute_pins(scores, rules, room)
    taken = brute_plain(brute_rest(scores, rules, room, places.values()), room, rules.k - len(places))
    assert chosen.rows == in_order(rules.k, places, taken)
    check_the_rest(world, rules, chosen, places, gone)


def axes(rng, n):
    """Vectors whose cosines are 0, 1 and -1 to the bit; some have no direction."""
    vectors = np.zeros((n, 4))
    vectors[np.arange(n), rng.integers(0, 4, n)] = rng.choice([1, 1, 2, -1, 0], n)
    return vectors


@settings(max_examples=200, deadline=None)
@given(questions(axes), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_a_diverse_list_is_that_of_a_naive_one(question, diversity):
    world, rules = question[0], Rules(**question[1], diversity=diversity)
    scores, vectors = world.scores.tolist(), world.vectors.tolist()
    chosen = world.select(**question[1], diversity=diversity)
    room = Room(rules.caps)
    places, gone = brute_pins(scores, rules, room)
    rest = brute_rest(scores, rules, room, places.values())
    pool, taken = rest[: max(POOL_FACTOR * rules.k, POOL_LEAST)], []
    while len(taken) < rules.k - len(places):
        values = mmr_values(pool, scores, vectors, [*places.values(), *taken], diversity) if pool else {}
        free = [row for row in pool if row not in taken and room.has(row)]
        if not free:
            break
        best = max(free, key=lambda row: values[row])  # the first of equals
        taken.append(best)
        room.take(best)
    taken += brute_plain(rest[len(pool) :], room, rules.k - len(places) - len(taken))
    assert chosen.rows == in_order(rules.k, places, taken)
    check_the_rest(world, rules, chosen, places, gone)


@settings(max_examples=100, deadline=None)
@given(questions(lambda rng, n: rng.normal(size=(n, 7))), st.floats(0.01, 1.0))
def test_every_step_of_a_diverse_list_takes_the_largest_value(question, diversity):
    world, rules = question[0], Rules(**question[1], diversity=diversity)
    scores, vectors = world.scores.tolist(), world.vectors.tolist()
    chosen = world.select(**question[1], diversity=diversity)
    room = Room(rules.caps)
    places, gone = brute_pins(scores, rules, room)
    rest = brute_rest(scores, rules, room, places.values())
    pool, standing = rest[: max(POOL_FACTOR * rules.k, POOL_LEAST)], list(places.values())
    for row in [row for row in chosen.rows if row not in places.values()]:
        free = [other for other in pool if other not in standing and room.has(other)]
        if free:
            values = mmr_values(pool, scores, vectors, standing, diversity)
            assert values[row] >= max(values[other] for other in free) - 1e-6
        standing.append(row)
        room.take(row)
    check_the_rest(world, rules, chosen, places, gone)


@settings(max_examples=100, deadline=None)
@given(questions(lambda rng, n: rng.normal(size=(n, 3))))
@example((World([], np.zeros((0, 3))), {"k": 3}))
def test_with_no_diversity_vectors_change_nothing(question):
    world, rules = question
    plain = World(world.scores).select(**rules)
    diverse = world.select(**rules, diversity=0.0)
    assert (diverse.rows, diverse.scores, diverse.gave_way) == (plain.rows, plain.scores, plain.gave_way)
