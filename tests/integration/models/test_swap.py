"""One model after the other while requests come in: none fails, none sees two models, none is answered by the old one later."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import time
import weakref
from dataclasses import replace
from datetime import datetime

import pytest
from conftest import event

from app.errors import StorageError
from app.models.activate import Activation
from app.models.hall import LEASE_S
from app.state import keys
from app.state.redis import RedisStore

HISTORY = [event("", 7 * n, n) for n in range(40)]


def of(user_id):
    return [one | {"user_id": user_id} for one in HISTORY]


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


async def test_after_an_activation_every_worker_answers_from_the_new_model(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as one, start(folder, old) as other:
        await one.tell(*of("u"))
        before = await one.ask("u")
        assert before["model_id"] == old
        response = await one.activate(new)
        assert (response.status_code, response.json()) == (200, {"model_id": new, "status": "active"})
        after = [await worker.ask("u") for worker in (one, other)]
        assert {answer["model_id"] for answer in after} == {new}
        assert ids(after[0]) != ids(before)
        assert [model["status"] for model in (await other.models())["models"] if model["model_id"] == new] == ["active"]
        # and what the new model says is what it would have said from the start
    async with start(folder, new) as fresh:
        assert (await fresh.ask("u"))["model_id"] == new
        await fresh.tell(*of("v"))
        assert ids(await fresh.ask("v")) == ids(await fresh.ask("u"))


async def test_requests_during_swaps_neither_fail_nor_mix_models(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as one, start(folder, old) as other:
        workers = [one, other]
        await one.tell(*of("u"))
        expected = {}
        for model_id in (new, old):  # what each says of this user
            assert (await one.activate(model_id)).status_code == 200
            expected[model_id] = ids(await one.ask("u"))
        assert expected[old] != expected[new]
        answers, stop, written = [], asyncio.Event(), [0]

        async def read(worker):
            while not stop.is_set():
                began = time.monotonic()
                answers.append((began, await worker.ask("u")))
                await asyncio.sleep(0)

        async def write(worker, number):
            while not stop.is_set():
                # A view, which does not count towards popularity: that would change the lists.
                await worker.tell(event(f"writer {number}", written[0], written[0]) | {"type": "view"})
                written[0] += 1

        tasks = [asyncio.create_task(read(worker)) for worker in workers * 2]
        tasks += [asyncio.create_task(write(worker, n)) for n, worker in enumerate(workers)]
        switched = []
        for turn in range(4):
            await asyncio.sleep(0.1)
            model_id = (new, old)[turn % 2]
            response = await workers[turn % 2].activate(model_id)
            assert response.status_code == 200, response.text
            switched.append((time.monotonic(), model_id))
        await asyncio.sleep(0.1)
        stop.set()
        await asyncio.gather(*tasks)  # a request that failed fails here
        assert len(answers) > 50
        for began, answer in answers:
            assert ids(answer) == expected[answer["model_id"]]
            latest = [model_id for at, model_id in switched if at < began]
            following = [model_id for at, model_id in switched if at >= began][:1]
            if latest:  # after its 200, the model itself or the one that is being activated next
                assert answer["model_id"] in {latest[-1], *following}
        assert {answer["model_id"] for _, answer in answers} == {old, new}


async def test_an_activation_is_not_over_while_one_worker_may_answer_from_the_old_model(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as one, start(folder, old) as slow:
        await one.tell(*of("u"))
        await slow.stop_following()  # from here on it looks when it is told to
        activation = asyncio.create_task(one.activate(new))
        async with asyncio.timeout(10):
            while one.hall.opened(new) is None:  # noqa: ASYNC110 - polls
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            assert (await one.models())["active"] == old  # the slow one could not answer from the new model yet
            await slow.says_that_it_has(new)
            while (await one.ask("u"))["model_id"] != new:  # noqa: ASYNC110 - polls
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert not activation.done()
        await slow.hall.follow_once()
        assert (await activation).status_code == 200
        assert (await slow.ask("u"))["model_id"] == new


async def test_a_model_that_is_let_go_leaves_memory_at_once(start, two_models):
    """Without the garbage collector, which looks at nothing that was there when the service was ready."""
    folder, old, new = two_models
    async with start(folder, old) as one:
        await one.tell(*of("u"))
        await one.ask("u")
        first = weakref.ref(one.hall._served)
        bundle = weakref.ref(one.hall._served.service.runtime.bundle)
        assert (await one.activate(new)).status_code == 200
        serving = await one.hall.board.serving()
        gc.disable()
        try:
            await one.ask("u")
            one.hall._let_go(serving, ())
            assert first() is not None  # it is the one before
            one.hall._let_go(replace(serving, previous=None), ())
            assert (first(), bundle()) == (None, None)
        finally:
            gc.enable()


async def test_a_request_ends_with_the_model_that_it_began_with(start, two_models, monkeypatch):
    folder, old, new = two_models
    async with start(folder, old) as one:
        await one.tell(*of("u"))
        before = await one.ask("u")
        began, go_on = asyncio.Event(), asyncio.Event()
        load = one.hall._store.load

        async def waits(*arguments, **options):
            if not began.is_set():
                began.set()
                await go_on.wait()
            return await load(*arguments, **options)

        monkeypatch.setattr(one.hall._store, "load", waits)
        asked = asyncio.create_task(one.ask("u"))
        await began.wait()
        assert (await one.activate(new)).status_code == 200
        after = await one.ask("u")
        go_on.set()
        answer = await asked
        assert (answer["model_id"], ids(answer)) == (old, ids(before))
        assert (after["model_id"], ids(after) == ids(before)) == (new, False)


async def test_a_lease_begins_before_the_board_is_read(start, two_models, monkeypatch):
    # Who is taken for dead is so from its last word on: a slow exchange must not make its lease end later than that.
    folder, old, _ = two_models
    async with start(folder, old) as one:
        await one.stop_following()
        clock = [time.monotonic()]
        monkeypatch.setattr("app.models.hall.monotonic", lambda: clock[0])
        beat, began = one.hall.board.beat, clock[0]

        async def slow(*arguments):
            clock[0] += 60
            return await beat(*arguments)

        monkeypatch.setattr(one.hall.board, "beat", slow)
        await one.hall.follow_once()
        assert one.hall._lease_until <= began + LEASE_S


async def test_a_worker_that_hears_nothing_answers_from_its_model_until_its_lease_ends(start, two_models, monkeypatch):
    folder, old, _ = two_models
    async with start(folder, old) as one:
        await one.tell(*of("u"))
        await one.stop_following()
        clock = [time.monotonic()]
        monkeypatch.setattr("app.models.hall.monotonic", lambda: clock[0])
        await one.hall.follow_once()

        async def away():
            raise StorageError("timed out")

        monkeypatch.setattr(one.hall.board, "serving", away)
        clock[0] += LEASE_S
        assert (await one.ask("u"))["source"] == "model"
        clock[0] += 0.001
        assert (await one.ask("u"))["source"] == "fallback"


async def test_active_users_are_folded_beforehand_and_the_others_at_their_first_read(start, two_models, raw):
    folder, old, new = two_models
    async with start(folder, old, backfill_days=10_000, commit_events=1) as one:
        for n in range(20):
            await one.tell(*of(f"u{n}"))
        await one.tell(event("old friend", 1) | {"timestamp": 1_000})
        assert (await one.activate(new)).status_code == 200
        stored = {key.decode() for key in raw.scan_iter("lw:*:state:*")}
        assert {keys.state_key("default", new, f"u{n}") for n in range(20)} <= stored
        assert keys.state_key("default", new, "old friend") not in stored
        assert (await one.ask("old friend"))["applied_events"] == 1


async def test_the_model_before_stays_open_and_reads_what_came_since_on_a_way_back(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as one:
        await one.tell(*of("u"))
        first = await one.ask("u")
        await one.activate(new)
        statuses = {model["model_id"]: model["status"] for model in (await one.models())["models"]}
        assert statuses == {new: "active", old: "previous"}
        assert one.hall.opened(old) is not None  # still open
        await one.tell(event("u", 3, 100))
        assert (await one.activate(old)).status_code == 200
        again = await one.ask("u")
        assert (again["model_id"], again["applied_events"]) == (old, first["applied_events"] + 1)


@pytest.mark.parametrize("damage", ["a byte of a graph", "golden", "manifest"])
async def test_a_bundle_that_cannot_be_verified_never_serves(start, two_models, tmp_path, damage):
    folder, old, new = two_models
    copy = shutil.copytree(folder, tmp_path / "bundles")
    file = copy / new / {"a byte of a graph": "step.onnx", "golden": "golden.npz", "manifest": "manifest.json"}[damage]
    spoilt = bytearray(file.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    file.write_bytes(spoilt)
    async with start(copy, old) as one, start(copy, old) as other:
        await one.tell(*of("u"))
        response = await other.activate(new)
        assert response.status_code == 409, response.text
        assert "cannot be served" in json.loads(response.content)["detail"]
        assert {(await worker.ask("u"))["model_id"] for worker in (one, other)} == {old}
        assert (await one.models())["active"] == old
        # mended, it can be activated
        file.write_bytes((folder / new / file.name).read_bytes())
        response = await other.activate(new)  # at once: why it failed before says nothing of this time
        assert response.status_code == 200, response.text


async def test_a_worker_that_cannot_read_the_board_does_not_answer_from_its_old_model(start, two_models, monkeypatch):
    folder, old, new = two_models
    async with start(folder, old) as one, start(folder, old) as blind:
        await one.tell(*of("u"))
        await blind.stop_following()

        async def away():
            raise StorageError("timed out")

        assert (await one.activate(new)).status_code == 200
        monkeypatch.setattr(blind.hall.board, "serving", away)  # this call alone: the user could be loaded
        answer = await blind.ask("u")
        assert (answer["source"], answer["degraded"]) == ("fallback", True)
        assert (await blind.get("/readyz")).status_code == 200
        assert (await blind.post("/v1/events", json=event("u", 1, 99))).status_code == 503


async def test_a_backfill_folds_so_many_events_a_second(start, two_models):
    folder, old, new = two_models
    async with start(folder, old, backfill_events_per_s=400, commit_events=1) as one:
        for n in range(10):
            await one.tell(*of(f"u{n}"))
        began = time.monotonic()
        assert (await one.activate(new)).status_code == 200
    assert time.monotonic() - began > 0.8  # 400 events


async def test_a_worker_opens_a_bundle_that_comes_later_than_its_activation(start, two_models, tmp_path, monkeypatch):
    folder, old, new = two_models
    monkeypatch.setattr("app.models.hall._TRY_AGAIN_S", 0.1)
    elsewhere = tmp_path / "bundles"
    shutil.copytree(folder / old, elsewhere / old)
    async with start(folder, old) as one:
        assert (await one.activate(new)).status_code == 200
        async with start(elsewhere, old) as late:
            await asyncio.sleep(0.2)
            assert (await late.get("/v1/users/u/recommendations")).status_code == 503
            shutil.copytree(folder / new, elsewhere / new)
            async with asyncio.timeout(10):
                while (response := await late.get("/v1/users/u/recommendations")).status_code == 503:  # noqa: ASYNC110 - polls
                    await asyncio.sleep(0.05)
            assert json.loads(response.content)["model_id"] == new


async def test_an_unknown_model_is_not_found_and_the_active_one_needs_no_activation(start, two_models):
    folder, old, _ = two_models
    async with start(folder, old) as one:
        assert (await one.activate("0" * 16)).status_code == 404
        generation = (await one.models())["generation"]
        assert (await one.activate(old)).status_code == 200
        assert (await one.models())["generation"] == generation


async def test_two_activations_at_once_are_one_and_a_conflict(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as one, start(folder, old) as other:
        responses = await asyncio.gather(one.activate(new), other.activate(new))
        assert sorted(response.status_code for response in responses) == [200, 409]


async def test_without_waiting_the_answer_comes_at_once_and_the_list_tells_the_progress(start, two_models):
    folder, old, new = two_models
    async with start(folder, old, backfill_events_per_s=2_000) as one:
        for n in range(20):
            await one.tell(*of(f"u{n}"))
        response = await one.activate(new, wait=False)
        assert (response.status_code, response.json()["status"]) == (202, "activating")
        seen = set()
        async with asyncio.timeout(20):
            while (listed := await one.models())["active"] != new:
                seen |= {model["status"] for model in listed["models"] if model["model_id"] == new}
                await asyncio.sleep(0.005)
        assert "backfilling" in seen


async def test_a_coordinator_that_dies_between_the_phases_leaves_the_old_model_and_the_way_free(start, two_models, monkeypatch):
    folder, old, new = two_models
    async with start(folder, old) as one:
        await one.tell(*of("u"))
        async with start(folder, old) as other:

            async def never(*_):
                await asyncio.Event().wait()

            monkeypatch.setattr(Activation, "_backfill", never)
            assert (await other.activate(new, wait=False)).status_code == 202
            for _ in range(200):
                if one.hall.opened(new) is not None:
                    break
                await asyncio.sleep(0.02)
            # SIGKILL: its tasks end, and it neither clears the board nor signs off.
            monkeypatch.setattr(other.hall.board, "end", never)
            other.app.state.hook.models.activation._running.cancel()
            await other.stop_following()
            await asyncio.sleep(0.05)
            monkeypatch.undo()
            assert (await one.ask("u"))["model_id"] == old
            assert (await one.activate(new)).status_code == 409  # for all that is known, the other one goes on
            async with asyncio.timeout(15):
                while (response := await one.activate(new)).status_code == 409:  # noqa: ASYNC110 - nobody tells when it is given up
                    await asyncio.sleep(0.1)
            assert response.status_code == 200, response.text
            assert (await one.ask("u"))["model_id"] == new


async def test_a_worker_that_slept_through_a_swap_does_not_answer_from_the_old_model(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as one, start(folder, old) as sleeper:
        await one.tell(*of("u"))
        assert (await sleeper.ask("u"))["model_id"] == old
        await sleeper.stop_following()  # stopped in the middle of everything; wakes after it was taken for dead
        began = time.monotonic()
        response = await one.activate(new)
        assert response.status_code == 200, response.text
        assert time.monotonic() - began > LEASE_S  # it was waited for as long as it might have answered
        answer = await sleeper.get("/v1/users/u/recommendations")
        for _ in range(100):
            if answer.status_code != 503:  # until it has opened the new one
                break
            await asyncio.sleep(0.02)
            answer = await sleeper.get("/v1/users/u/recommendations")
        assert json.loads(answer.content)["model_id"] == new


async def test_a_worker_that_starts_later_follows_what_is_active_not_what_it_was_given(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as one:
        await one.tell(*of("u"))
        await one.activate(new)
        async with start(folder, old) as late:
            for _ in range(200):
                response = await late.get("/v1/users/u/recommendations")
                if response.status_code == 200:
                    break
                await asyncio.sleep(0.02)
            assert json.loads(response.content)["model_id"] == new
    async with start(folder, old) as alone:  # nobody serves: who starts a service with a bundle wants that one
        assert (await alone.ask("u"))["model_id"] == old


async def test_while_storage_is_away_a_worker_goes_on_degraded_and_follows_when_it_is_back(start, two_models, monkeypatch):
    folder, old, new = two_models
    async with start(folder, old) as one, start(folder, old) as cut_off:
        await one.tell(*of("u"))

        async def away(*_, **__):
            raise StorageError("away")

        store: RedisStore = cut_off.hall._store
        exchange = store._transport.exchange
        monkeypatch.setattr(store._transport, "exchange", away)
        assert (await one.activate(new)).status_code == 200
        answer = await cut_off.ask("u")
        assert (answer["degraded"], answer["source"]) == (True, "fallback")
        monkeypatch.setattr(store._transport, "exchange", exchange)
        for _ in range(200):
            response = await cut_off.get("/v1/users/u/recommendations")
            if response.status_code == 200 and json.loads(response.content)["source"] == "model":
                break
            await asyncio.sleep(0.02)
        assert json.loads(response.content)["model_id"] == new


async def test_how_an_activation_ended_is_listed_and_counted_though_nobody_waited(start, two_models, tmp_path):
    folder, old, new = two_models
    copy = shutil.copytree(folder, tmp_path / "bundles")
    whole = (copy / new / "encode.onnx").read_bytes()
    (copy / new / "encode.onnx").write_bytes(whole[:-1])
    async with start(copy, old) as one, start(copy, old) as other:

        async def ended():
            assert (await one.activate(new, wait=False)).status_code == 202
            async with asyncio.timeout(10):
                while (listed := await other.models())["last_activation"] is None or listed["last_activation"] == before:  # noqa: ASYNC110 - polls
                    await asyncio.sleep(0.02)
            return listed["last_activation"]

        before = (await other.models())["last_activation"]
        assert before is None
        began = time.time()
        refused = before = await ended()
        assert (refused["model_id"], refused["result"]) == (new, "refused")
        assert "encode.onnx: damaged" in refused["reason"]
        assert began - 1 < datetime.fromisoformat(refused["at"]).timestamp() < time.time() + 1
        (copy / new / "encode.onnx").write_bytes(whole)
        await one.tell(*of("u"))
        done = await ended()
        assert (done["model_id"], done["result"], done["reason"]) == (new, "active", None)

        def value(name):
            (line,) = [line for line in metrics.splitlines() if line.startswith(name + " ")]
            return float(line.split()[1])

        async with asyncio.timeout(10):
            while 'longwave_activations_total{result="active"}' not in (metrics := (await one.get("/metrics")).text):  # noqa: ASYNC110 - polls
                await asyncio.sleep(0.02)
        assert value('longwave_activations_total{result="active"}') == value('longwave_activations_total{result="refused"}') == 1
        assert value("longwave_model_generation") == 2
        assert value("longwave_backfilled_users_total") == 1
        assert value("longwave_backfilled_events_total") == len(HISTORY)


async def test_an_activation_that_was_given_up_says_why(start, two_models, monkeypatch):
    folder, old, new = two_models
    async with start(folder, old, activation_timeout_s=1) as one:

        async def never(*_):
            await asyncio.Event().wait()

        monkeypatch.setattr(Activation, "_backfill", never)
        assert (await one.activate(new)).status_code == 503
        last = (await one.models())["last_activation"]
        assert (last["result"], last["model_id"]) == ("failed", new)
        assert "did not end within 1 s" in last["reason"]
        # and of one whose worker is stopped in the middle, another one hears
        async with start(folder, old) as other:
            assert (await other.activate(new, wait=False)).status_code == 202
            await asyncio.sleep(0.2)
        assert "was stopped" in (await one.models())["last_activation"]["reason"]
        assert (await one.models())["active"] == old
