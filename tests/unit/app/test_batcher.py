"""Questions that wait together are answered together, each with its own answer."""

import asyncio

import pytest

from app.errors import OverloadedError, StorageError
from app.runtime.batcher import Batcher


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
