"""What has left the ring, after every event of a chunk at once, against one event after another."""

import pytest
import torch

from model.nets.accumulate import BLOCK, Accumulators

DAY_MS = 86_400_000


@pytest.mark.parametrize("events", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("fresh", [True, False])
def test_after_every_event_it_is_what_the_steps_leave(events, fresh):
    torch.manual_seed(0)
    users, width, inner = 3, 6, 4
    acc = Accumulators(width, inner, (4.0, 64.0), (86_400.0, 9e6)).double()
    means = torch.zeros(users, 4, inner).double() if fresh else torch.randn(users, 4, inner).double()
    weight = torch.zeros(users, 4).double() if fresh else torch.rand(users, 4).double()
    interest = torch.randn(users, events, width).double()
    gaps = torch.randint(0, DAY_MS, (users, events + 1)) * torch.randint(0, 2, (users, events + 1))  # many ties
    clock = gaps.cumsum(1)
    found = acc.everywhere(means, weight, interest, clock)
    assert found.shape == (users, events + 1, 4, inner)
    expected = [means]
    for t in range(events):
        means, weight = acc.step(means, weight, interest[:, t], (clock[:, t + 1] - clock[:, t])[:, None])
        expected.append(means)
    torch.testing.assert_close(found, torch.stack(expected, 1), atol=1e-6, rtol=1e-5)
