"""A service under load whose workers and whose Redis are killed: nothing acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis

ROOT = Path(__file__).parents[3]

if str(ROOT) not in sys.path:  # the load tests are part of the checkout, not of the package
    sys.path.insert(0, str(ROOT))

from loadtests.errors import BenchError  # noqa: E402
from loadtests.fault import WRONG, run_faults  # noqa: E402
from loadtests.fault_check import difference  # noqa: E402
from loadtests.fault_kills import Service  # noqa: E402

_LENGTH_AT = 40  # in a state's header: here follow the length of the tensors and the tensors themselves (app/state/codec.py)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the workers under /proc")


def run(bundle: Path, folder: Path, *kinds: str, **options: Any) -> dict[str, Any]:
    figures = run_faults(bundle, folder, kinds, **options)  # type: ignore[arg-type]
    print(json.dumps(figures, indent=2))
    return figures


def test_what_was_acknowledged_survives_every_kill_once_and_states_are_the_folds_of_their_sequences(tiny_bundle, tmp_path):
    kills = ("redis", "worker", "redis", "stall", "service", "redis", "worker", "redis")
    figures = run(tiny_bundle, tmp_path, *kills, calm_s=(0.1, 0.6))
    assert {name: figures[name] for name in ("lost", "lost_from_log", *WRONG) if figures[name]} == {}, figures["examples"]
    assert figures["unexpected"] == {}
    assert figures["kills"] == {"redis": 4, "worker": 2, "service": 1, "stall": 1}
    assert figures["acknowledged"] > 1_000
    assert figures["retries"] > 0
    assert figures["states_compared"] > 10


def test_a_redis_that_syncs_once_a_second_loses_acknowledged_events(tiny_bundle, tmp_path):
    # If it did not, the test above would lose nothing either, whatever the service did.
    figures = run(tiny_bundle, tmp_path, "redis", "redis", "redis", fsync="everysec", workers=1)
    assert figures["lost"] > 0
    assert figures["doubled"] == 0


def test_a_run_without_events_is_given_up_and_says_what_can_be_seen_of_each_part(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("loadtests.fault_kills._FLOW_S", 0.2)
    with pytest.raises(BenchError) as given_up:
        run(tiny_bundle, tmp_path, "redis", clients=0)
    said = str(given_up.value)
    assert "no events flow before: redis" in said
    assert '"ready":true' in said
    assert "answers a PING: True" in said
    assert "bytes synced" in said
    assert "Fatal Python error: Aborted" in said  # the stacks of the workers, if they have begun


def answer(*items: tuple[str, float], **fields: Any) -> dict[str, Any]:
    listed = [{"item_id": item, "score": score} for item, score in items]
    return {"source": "model", "applied_events": 3, "last_event_time": None, "items": listed} | fields


def test_why_a_run_is_given_up_is_heard_though_the_service_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr("loadtests.fault_kills._STOP_S", 0.2)
    service = Service(tmp_path, "redis://127.0.0.1:1", tmp_path / "log", 2)
    service._command = [
        sys.executable,
        "-c",
        "import signal; signal.pthread_sigmask(0, {15}); print(1, flush=True); signal.pause()",
    ]

    def give_up() -> None:
        while not service.last_words():
            time.sleep(0.01)
        raise BenchError("no events")

    with pytest.raises(BenchError, match="no events"), service:
        give_up()


def test_lists_differ_by_more_than_float_noise_or_not_at_all():
    list_ = answer(("a", 2.0), ("b", 1.0), ("c", 0.9999))
    assert difference(list_, answer(("a", 2.0009), ("b", 1.0), ("c", 0.9999))) is None
    assert difference(list_, answer(("a", 2.0), ("c", 1.00005), ("b", 0.99995))) is None  # too near to be told apart
    assert difference(list_, answer(("a", 2.002), ("b", 1.0), ("c", 0.9999))) is not None
    assert difference(list_, answer(("b", 2.0), ("a", 1.0), ("c", 0.9999))) is not None
    assert difference(list_, answer(("a", 2.0), ("b", 1.0))) is not None
    assert difference(list_, list_ | {"applied_events": 2}) is not None
    assert difference(list_, list_ | {"source": "fallback"}) is not None


def exchange_states(store: redis.Redis) -> None:
    """Give two users each the other's memory under their own header."""
    one, other = sorted(store.keys("lw:*:state:*own*"))[-2:]
    first, second = store.get(one), store.get(other)
    store.set(one, first[:_LENGTH_AT] + second[_LENGTH_AT:])
    store.set(other, second[:_LENGTH_AT] + first[_LENGTH_AT:])


def test_each_kind_of_damage_is_found(tiny_bundle, tmp_path):
    def spoil(store: redis.Redis) -> None:
        sequences = sorted(key for key in store.keys("lw:*:seq:own*") if store.llen(key) > 3)
        lost, doubled, swapped = sequences[0], sequences[1], sequences[2]
        store.rpop(lost)
        store.rpush(doubled, store.lindex(doubled, 0))
        store.hincrby(doubled.replace(b":seq:", b":meta:"), "n", 1)
        first, second = store.lrange(swapped, 0, 1)
        store.lset(swapped, 0, second)
        store.lset(swapped, 1, first)
        exchange_states(store)
        log = max(store.keys("lw:*:log"), key=store.xlen)
        ((entry, _),) = store.xrange(log, count=1)
        store.xdel(log, entry)

    figures = run(tiny_bundle, tmp_path, workers=1, afterwards=spoil)
    assert (figures["lost"], figures["doubled"]) == (1, 1)
    assert figures["lost_from_log"] == 1
    assert figures["miscounted"] == 1
    assert figures["reordered"] == 1
    assert figures["states_wrong"] >= 2
