"""Questions that wait together are answered together, each with its own answer."""

import asyncio
import time

import pytest

from app.errors import LateError, NotReadyError, OverloadedError, StorageError
from app.runtime.batcher import Batcher, Patience


class Oracle:
    """Answers with twice the question; may be told to wait, or to fail."""

    def __init__(self):
        self.batches, self.gate = [], asyncio.Event()
        self.gate.set()

    async def __call__(self, questions):
        self.batches.append(list(questions))
        await self.gate.wait()
        if "bad" in questions:
            raise ValueError("a bad question")
        if "away" in questions:
            raise StorageError("away")
        return [ValueError("odd") if question == "odd" else question * 2 for question in questions]


@pytest.fixture
def oracle():
    return Oracle()


def batcher(oracle, most=4, running=1, waiting=100, **more):
    return Batcher(oracle, most=most, running=running, waiting=waiting, **more)


async def test_questions_of_one_turn_share_a_batch_and_keep_their_answers(oracle):
    ask = batcher(oracle, most=100)
    assert await asyncio.gather(*(ask(n) for n in range(30))) == [2 * n for n in range(30)]
    assert oracle.batches == [list(range(30))]


async def test_a_lone_question_waits_for_nobody(oracle):
    ask = batcher(oracle)
    assert [await ask(n) for n in range(3)] == [0, 2, 4]
    assert oracle.batches == [[0], [1], [2]]


async def test_what_comes_while_a_batch_runs_makes_up_the_next_ones(oracle):
    ask = batcher(oracle, most=4)
    oracle.gate.clear()
    tasks = [asyncio.create_task(ask(0))]
    await asyncio.sleep(0.01)
    tasks += [asyncio.create_task(ask(n)) for n in range(1, 10)]
    await asyncio.sleep(0.01)
    assert oracle.batches == [[0]]
    oracle.gate.set()
    assert await asyncio.gather(*tasks) == [2 * n for n in range(10)]
    assert oracle.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


async def test_beyond_its_bound_questions_are_refused_and_the_others_answered(oracle):
    ask = batcher(oracle, most=1, waiting=3)
    oracle.gate.clear()
    tasks = [asyncio.create_task(ask(0))]
    await asyncio.sleep(0.01)
    tasks += [asyncio.create_task(ask(n)) for n in range(1, 6)]
    await asyncio.sleep(0.01)
    oracle.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[:4] == [0, 2, 4, 6]
    assert all(isinstance(answer, OverloadedError) for answer in answers[4:])
    assert await ask(7) == 14


async def test_a_bad_question_does_not_fail_those_beside_it(oracle):
    ask = batcher(oracle)
    answers = await asyncio.gather(ask("a"), ask("bad"), ask("odd"), ask("b"), return_exceptions=True)
    assert (answers[0], answers[3]) == ("aa", "bb")
    assert [str(answer) for answer in answers[1:3]] == ["a bad question", "odd"]


async def test_storage_that_is_away_is_asked_once_for_all(oracle):
    ask = batcher(oracle)
    answers = await asyncio.gather(ask("a"), ask("away"), return_exceptions=True)
    assert all(isinstance(answer, StorageError) for answer in answers)
    assert len(oracle.batches) == 1


async def test_whoever_gives_up_is_left_out_and_holds_nobody_up(oracle):
    ask = batcher(oracle, most=2)
    oracle.gate.clear()
    first = asyncio.create_task(ask(0))
    await asyncio.sleep(0.01)
    given_up, stays = asyncio.create_task(ask(1)), asyncio.create_task(ask(2))
    await asyncio.sleep(0.01)
    given_up.cancel()
    first.cancel()
    await asyncio.sleep(0.01)
    oracle.gate.set()
    assert await stays == 4
    assert oracle.batches == [[0], [2]]


async def asked_while_one_runs(ask, oracle, questions):
    """One question that runs, and some that come meanwhile; the oracle is free again, and its answers are under way."""
    oracle.gate.clear()
    tasks = [asyncio.create_task(ask(0))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(ask(n)) for n in questions]
    await asyncio.sleep(0)
    oracle.gate.set()
    return tasks


async def test_a_stop_in_the_middle_of_a_batch_does_not_say_that_nothing_was_done(oracle):
    ask = batcher(oracle)
    oracle.gate.clear()
    asked = asyncio.create_task(ask(0))
    await asyncio.sleep(0.01)
    (running,) = ask._tasks
    running.cancel()
    with pytest.raises(NotReadyError, match="may have been done"):
        await asked


async def test_a_pace_lets_what_comes_a_little_later_share_the_batch(oracle):
    ask = batcher(oracle, pace_s=0.2)
    tasks = await asked_while_one_runs(ask, oracle, [1])
    await asyncio.sleep(0.02)
    assert oracle.batches == [[0]]
    tasks.append(asyncio.create_task(ask(2)))
    assert await asyncio.gather(*tasks) == [0, 2, 4]
    assert oracle.batches == [[0], [1, 2]]


async def test_enough_questions_do_not_wait_for_the_pace(oracle):
    ask = batcher(oracle, pace_s=60, enough=2)
    tasks = await asked_while_one_runs(ask, oracle, [1])
    await asyncio.sleep(0.02)
    assert oracle.batches == [[0]]
    tasks.append(asyncio.create_task(ask(2)))  # cuts the wait short
    assert await asyncio.wait_for(asyncio.gather(*tasks), 5) == [0, 2, 4]
    tasks = await asked_while_one_runs(ask, oracle, [1, 2])  # there from the start
    assert await asyncio.wait_for(asyncio.gather(*tasks), 5) == [0, 2, 4]


async def test_a_lone_question_pays_no_pace(oracle):
    ask = batcher(oracle, pace_s=60)
    for n in range(3):
        assert await asyncio.wait_for(asyncio.create_task(ask(n)), 5) == 2 * n
        await asyncio.sleep(0.001)  # as a client does that hears the answer before it asks again


async def test_a_batch_weighs_no_more_than_it_may_and_the_order_stays(oracle):
    ask = batcher(oracle, most=100, weigh=lambda question: question, heaviest=10)
    assert await asyncio.gather(*(ask(n) for n in [4, 6, 1, 30, 9, 1, 1])) == [8, 12, 2, 60, 18, 2, 2]
    assert oracle.batches == [[4, 6], [1], [30], [9, 1], [1]]  # one that is too heavy by itself goes alone


async def test_whoever_has_given_up_weighs_nothing(oracle):
    ask = batcher(oracle, weigh=lambda question: question, heaviest=10)
    tasks = await asked_while_one_runs(ask, oracle, [9, 5, 5])
    tasks[1].cancel()
    assert await asyncio.gather(tasks[0], *tasks[2:]) == [0, 10, 10]
    assert oracle.batches == [[0], [5, 5]]


async def test_who_has_waited_too_long_is_refused_when_the_turn_comes_and_was_not_asked(oracle):
    ask = batcher(oracle, most=1, patience=Patience(wait_s=0.1))
    oracle.gate.clear()
    tasks = [asyncio.create_task(ask(n)) for n in range(4)]
    await asyncio.sleep(0.2)
    just_come = asyncio.create_task(ask(4))
    await asyncio.sleep(0)
    oracle.gate.set()
    answers = await asyncio.gather(*tasks, just_come, return_exceptions=True)
    assert (answers[0], answers[-1]) == (0, 8)
    assert [type(answer) for answer in answers[1:-1]] == [LateError] * 3
    assert oracle.batches == [[0], [4]]


class Hanging:
    """Storage that lets everybody wait, then says that it is away; or loses a connection at once."""

    def __init__(self):
        self.asked, self.fails_s = [], {}

    async def __call__(self, questions):
        self.asked += questions
        if (delay_s := self.fails_s.get(questions[0])) is None:
            return list(questions)
        await asyncio.sleep(delay_s)
        raise StorageError("Redis did not answer")


@pytest.mark.parametrize("running", [1, 2])
async def test_who_waits_while_storage_hangs_hears_of_it_with_those_before(running):
    storage = Hanging()
    storage.fails_s = dict.fromkeys(range(100), 0.2)
    ask = Batcher(storage, most=1, running=running, waiting=100, patience=Patience(away_s=0.1))
    began_s = time.monotonic()
    answers = await asyncio.gather(*(ask(n) for n in range(50)), return_exceptions=True)
    assert time.monotonic() - began_s < 2  # and not 5 or 10
    assert storage.asked == list(range(running))
    assert [type(answer) for answer in answers] == [StorageError] * 50
    assert ["nothing of this was sent" in str(answer) for answer in answers] == [False] * running + [True] * (50 - running)
    assert await ask(100) == 100  # as soon as it is back


async def test_a_lost_connection_fails_nobody_but_its_batch():
    storage = Hanging()
    storage.fails_s = {0: 0.01}
    ask = Batcher(storage, most=1, running=1, waiting=100, patience=Patience(away_s=1))
    first, *others = await asyncio.gather(*(ask(n) for n in range(50)), return_exceptions=True)
    assert isinstance(first, StorageError)
    assert others == list(range(1, 50))


@pytest.mark.parametrize("running", [1, 2])
async def test_one_connection_that_hangs_while_storage_answers_others_fails_nobody_but_its_batch(running):
    storage = Hanging()
    storage.fails_s = {0: 0.2}
    ask = Batcher(storage, most=1, running=running, waiting=100, patience=Patience(away_s=0.1, answered_s=time.monotonic))
    first, *others = await asyncio.gather(*(ask(n) for n in range(30)), return_exceptions=True)
    assert isinstance(first, StorageError)
    assert others == list(range(1, 30))


async def test_storage_that_answered_before_it_hung_is_away():
    storage = Hanging()
    storage.fails_s = dict.fromkeys(range(30), 0.2)
    answered_s = time.monotonic()
    ask = Batcher(storage, most=1, running=1, waiting=100, patience=Patience(away_s=0.1, answered_s=lambda: answered_s))
    answers = await asyncio.gather(*(ask(n) for n in range(30)), return_exceptions=True)
    assert storage.asked == [0]
    assert [type(answer) for answer in answers] == [StorageError] * 30


async def test_storage_that_hangs_while_each_is_asked_alone_is_waited_for_once():
    asked = []

    async def bad_then_away(questions):
        asked.append(questions)
        if len(questions) > 1:
            raise ValueError("one of them is bad")
        await asyncio.sleep(0.2)
        raise StorageError("away")

    ask = batcher(bad_then_away, patience=Patience(away_s=0.1))
    answers = await asyncio.gather(*(ask(n) for n in range(4)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StorageError] * 4
    assert asked == [[0, 1, 2, 3], [0]]
