"""Whose story is told."""

from __future__ import annotations

from app.demo.histories import Past, past_of
from app.demo.rehearsal import History, Question, Step, WireEvent
from app.demo.replay import Answer
from app.demo.story import choose, shown_ranks, tell, watch


def asked(user, at, targets):
    return Question(user, at, targets)


def purchase(at, item, basket=None, type="purchase"):
    return WireEvent(type=type, timestamp=at, item_id=item, basket_id=basket)


def test_only_customers_with_enough_baskets_before_and_a_few_in_the_replay_are_watched():
    pasts = {"regular": Past(30, 5), "rare": Past(30, 4), "once": Past(30, 9), "always": Past(30, 9)}
    often = {"regular": 2, "rare": 2, "once": 1, "always": 5, "stranger": 2}
    steps = [Step(query=asked(user, n, ["a"])) for user, count in often.items() for n in range(count)]
    assert watch(steps, pasts) == {"regular"}


def test_not_more_customers_are_watched_than_the_replay_has_time_for():
    steps = [Step(query=asked(f"u{n}", 1, ["a"])) for n in range(100) for _ in range(2)]
    assert watch(steps, {f"u{n}": Past(9, 9) for n in range(100)}) == {f"u{n}" for n in range(60)}


def test_the_story_is_that_of_the_list_that_gained_most_of_the_next_basket():
    answers = [
        # No hit, and the largest gain: nothing to show before the purchase.
        Answer(asked("missed", 1, ["z"]), ["a"], ["p", "q", "r"]),
        Answer(asked("gained", 1, ["a"]), ["a", "b"], ["p", "q"]),
        Answer(asked("lost", 1, ["a"]), ["a", "p"], ["a"]),
        Answer(asked("missed", 2, ["p", "q", "r"]), []),
        Answer(asked("gained", 2, ["p", "q"]), []),
        Answer(asked("lost", 2, ["p", "q"]), []),
    ]
    chosen = choose(answers)
    assert chosen is not None
    assert (chosen.answer.question.user_id, chosen.following.as_of) == ("gained", 2)


def test_without_a_watched_customer_that_came_back_there_is_no_story():
    assert choose([Answer(asked("u", 1, ["a"]), ["a"]), Answer(asked("u", 2, ["a"]), ["a"], ["b"])]) is None


def test_the_past_counts_baskets_with_a_purchase():
    views = [purchase(1, "a", "1", "view"), purchase(2, "b", "2"), purchase(2, "c", "2"), purchase(9, "c"), purchase(9, "d")]
    assert past_of(History("u", {}, views), {"purchase"}) == Past(events=5, baskets=2)


def test_a_story_tells_the_last_purchases_latest_first_and_leaves_out_what_was_not_bought():
    events = [purchase(n * 1000, f"i{n}", str(n)) for n in range(7)] + [purchase(8000, "i0", "8", "cancellation")]
    answers = [Answer(asked("u", 9000, ["a", "b"]), ["a", "x"], ["x", "c"]), Answer(asked("u", 10_000, ["c"]), [])]
    chosen = choose(answers)
    assert chosen is not None
    story = tell(chosen, [History("other", {}, []), History("u", {"country": "Norway"}, events)], {"purchase"})
    assert [item for _, item in story.last_bought] == ["i6", "i5", "i4", "i3", "i2"]
    assert (story.baskets, story.new, story.next_bought, story.attributes) == (7, {"c"}, ["c"], {"country": "Norway"})
    assert story.asked.timestamp() == 9


def test_a_list_is_shown_from_its_top_and_wherever_something_is_marked():
    assert shown_ranks(["a", "b", "c", "d", "e"], {"b", "e"}, 2) == [0, 1, 4]
