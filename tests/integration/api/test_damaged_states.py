"""A stored state that went bad costs one rebuild: the next answer is right, and its commit replaces what was there."""

import asyncio

import pytest
from conftest import history, same_list

from app.state import keys

APPLIED = slice(24, 32)  # codec.py: magic to epoch take 16 bytes, base and applied 8 each


def cut_short(state: bytes) -> bytes:
    return state[:-4]


def ahead_of_everything(state: bytes) -> bytes:
    return state[: APPLIED.start] + (10**6).to_bytes(8, "little") + state[APPLIED.stop :]


def flipped(state: bytes) -> bytes:
    return state[:-6] + bytes([state[-6] ^ 0xFF]) + state[-5:]


@pytest.mark.parametrize("damage", [cut_short, ahead_of_everything, flipped])
async def test_the_next_question_replaces_a_damaged_state_whose_header_is_whole(client, raw, damage):
    await client.tell(*history("u", 12))
    before = await client.ask("u")
    key = keys.state_key("default", before["model_id"], "u")
    good = await committed(raw, key, b"")
    raw.set(key, damage(good))
    same_list(await client.ask("u"), before)
    again = await committed(raw, key, damage(good))
    assert (len(again), again[:48]) == (len(good), good[:48])
    assert (await client.profile("u"))["folded_events"] == 12


async def test_a_damaged_state_that_began_earlier_than_the_sequence_is_not_met_again_and_again(start, raw):
    async with start(max_sequence=10) as client:
        good = b""
        for one in history("u", 12):
            await client.tell(one)
            key = keys.state_key("default", (await client.ask("u"))["model_id"], "u")
            good = await committed(raw, key, good)
        raw.set(key, flipped(good))
        await client.ask("u")
        again = await committed(raw, key, flipped(good))
        assert int.from_bytes(again[16:24], "little") == 2  # all that the sequence has
        await client.ask("u")
        assert 'longwave_rebuilt_states_total{reason="damaged"} 1.0' in (await client.get("/metrics")).text


async def committed(raw, key: str, but: bytes) -> bytes:
    """The stored state once it is another than `but`."""
    for _ in range(200):
        state = raw.get(key) or b""
        if state not in (b"", but):
            return state
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was committed")
