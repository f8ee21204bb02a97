"""Who is folded with a model before it serves: who is charged to the rate is stored, and on a way back that is nobody."""

from __future__ import annotations

from conftest import START_MS, event

from app.state import keys
from app.state.events import StoredEvent
from app.state.store import Append

FEW = 20  # fewer than a state is stored for
MANY = 40


def of(user, count, first=0):
    """Views, which do not count towards popularity: that would change the lists."""
    return [event(user, 7 * n, n) | {"type": "view"} for n in range(first, first + count)]


async def fill(worker, users, count):
    """So many events of each user, in the store alone."""
    events = [StoredEvent("view", START_MS + 60_000 * n, f"item-{7 * n % 60:03d}") for n in range(count)]
    for start in range(0, len(users), 100):
        batches = [Append(user, events, [None] * count) for user in users[start : start + 100]]
        await worker.hall.service.store.append("default", batches)


async def backfilled(worker):
    """Users that this worker's backfills have been through, and the events that they have folded."""
    lines = (await worker.get("/metrics")).text.splitlines()
    return [
        int(float(line.split()[1]))
        for what in ("users", "events")
        for line in lines
        if line.startswith(f"longwave_backfilled_{what}_total ")
    ]


def states(raw, model_id):
    """Who has a state of this model in Redis."""
    return {keys.decode_id(key.decode().rpartition(":")[2]) for key in raw.scan_iter(f"lw:*:state:{model_id}:*")}


async def applied(worker, user):
    """Of which model a user's list is, and how many events it reflects. A twin, of whom the same was told now, has the same."""
    answer, twin = await worker.ask(user), await worker.ask(f"twin of {user}")
    assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in twin["items"]]
    assert answer["source"] == "model"
    return answer["model_id"], answer["applied_events"]


async def test_a_way_back_waits_for_no_backfill_and_its_lists_are_those_of_a_fold_anew(start, two_models, raw):
    folder, old, new = two_models
    others = [f"u{n}" for n in range(100)]
    async with start(folder, old) as one, start(folder, old, backfill_events_per_s=1, activation_timeout_s=5) as other:
        await one.tell(*of("as before", MANY), *of("with more", MANY), *of("with much more", MANY), *of("forgotten", MANY))
        await fill(one, others, MANY)
        for worker in (one, other):
            for user in ("as before", "with more", "with much more", "forgotten"):
                await worker.ask(user)
        assert (await one.activate(new)).status_code == 200
        assert await backfilled(one) == [104, 104 * MANY]
        await one.tell(*of("with more", 3, MANY), *of("with much more", MANY, MANY), *of("who came since", MANY))
        await one.hall.opened(old).flush()
        assert {"as before", "with more", "with much more", "forgotten"} == states(raw, old)
        raw.delete(keys.state_key("default", old, "forgotten"))  # as after its time
        there = states(raw, old)
        assert (await other.activate(old)).status_code == 200  # which at this rate would take an hour
        assert await backfilled(other) == [0, 0]
        assert states(raw, old) == there
        for user, count in {
            "as before": MANY,
            "with more": MANY + 3,
            "with much more": 2 * MANY,
            "forgotten": MANY,
            "who came since": MANY,
        }.items():
            await one.tell(*of(f"twin of {user}", count))
            for worker in (one, other):
                assert await applied(worker, user) == (old, count)
        # and forth again, which is the way back from there
        assert (await other.activate(new)).status_code == 200
        assert await backfilled(other) == [0, 0]
        assert await applied(other, "with much more") == (new, 2 * MANY)


async def test_who_has_less_to_be_folded_than_is_stored_is_neither_folded_nor_charged_by_a_backfill(start, two_models, raw):
    folder, old, new = two_models
    few = [f"few{n}" for n in range(60)]
    async with start(folder, old, backfill_events_per_s=400) as one:
        await one.tell(*of("few", FEW), *of("many", MANY))
        await fill(one, few, FEW)
        assert (await one.activate(new)).status_code == 200
        assert await backfilled(one) == [62, MANY]
        assert states(raw, new) == {"many"}
        await one.tell(*of("twin of few", FEW))
        assert await applied(one, "few") == (new, FEW)


async def test_where_sequences_are_short_states_are_stored_sooner_and_users_with_as_few_events_are_backfilled(
    start, two_models, raw
):
    folder, old, new = two_models
    async with start(folder, old, max_sequence=FEW, max_batch_events=FEW, dedupe_window=FEW) as one:
        await fill(one, ["u"], FEW)
        assert (await one.activate(new)).status_code == 200
        assert await backfilled(one) == [1, FEW]
    assert states(raw, new) == {"u"}


async def test_a_backfill_that_was_broken_off_charges_nobody_twice_and_ends(start, two_models):
    folder, old, new = two_models
    users, few = [f"u{n}" for n in range(100)], [f"few{n}" for n in range(500)]
    settings = {"backfill_events_per_s": 2_000, "activation_timeout_s": 1}
    async with start(folder, old, **settings) as one, start(folder, old, **settings) as other:
        await fill(one, users, MANY)
        await fill(one, few, FEW)
        tries = []
        while not tries or tries[-1] != 200:
            assert len(tries) < 10
            tries.append((await (one, other)[len(tries) % 2].activate(new)).status_code)
        assert 503 in tries
        counts = [await backfilled(worker) for worker in (one, other)]
        assert sum(events for _, events in counts) <= len(users) * MANY


async def test_a_backfill_passes_over_users_who_are_damaged(start, two_models, raw):
    folder, old, new = two_models
    good = [f"u{n}" for n in range(40)]
    async with start(folder, old) as one:
        await fill(one, [*good, "no event", "no time"], MANY)
        await fill(one, ["no event far behind"], 4_300)
        raw.lset(keys.user_keys("default", "no event").seq, 5, b"\xff\xfe")
        raw.hset(keys.user_keys("default", "no time").meta, "l", "never")
        raw.lset(keys.user_keys("default", "no event far behind").seq, 4_200, b"\xff\xfe")
        response = await one.activate(new)
        assert response.status_code == 200, response.text
        assert set(good) <= states(raw, new)
        for user in ("no event", "no time", "no event far behind"):
            assert (await one.get(f"/v1/users/{user}")).status_code == 503
            assert (await one.ask(user))["source"] == "fallback"
        assert (await one.ask(good[0]))["source"] == "model"
        assert (await one.delete("/v1/users/no event")).status_code == 200
