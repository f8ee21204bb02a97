"""Named interests in a user's profile."""

import pytest

START_MS = 1_300_000_000_000


def bought(row, at_ms):
    return {"user_id": "u", "type": "purchase", "item_id": f"item-{row:03d}", "timestamp": at_ms}


async def test_a_profile_names_what_the_user_is_interested_in_and_how_far_that_has_moved(start):
    async with start() as client:
        await client.tell(*[bought(row, START_MS + row) for row in range(9)])
        profile = await client.profile("u")
        weights = [interest["weight"] for interest in profile["interests"]]
        assert {interest["label"] for interest in profile["interests"]} == {"books", "cups", "lamps"}
        assert weights == sorted(weights, reverse=True)
        assert sum(weights) == pytest.approx(1, abs=1e-3)
        assert 0 < profile["drift"] < 2
        # Fresh: the next event counts at once, with no background fold.
        await client.tell(bought(50, START_MS + 10**9))
        assert (await client.profile("u"))["interests"] != profile["interests"]


async def test_one_without_events_has_no_interests_and_no_drift(start):
    async with start() as client:
        assert (await client.put("/v1/users/u", json={"attributes": {"country": "France"}})).status_code == 200
        profile = await client.profile("u")
        assert (profile["events"], profile["interests"], profile["drift"]) == (0, [], None)
