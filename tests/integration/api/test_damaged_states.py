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


@pytest.mark.parametrize("damage", [cut_short, ahead_of_everything])
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


async def committed(raw, key: str, but: bytes) -> bytes:
    """The stored state once it is another than `but`."""
    for _ in range(200):
        state = raw.get(key) or b""
        if state != but:
            return state
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was committed")
