"""Dropout from bytes: what torch's own does, in distribution."""

import pytest
import torch

from model.nets.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.7])
def test_a_share_is_dropped_and_the_rest_scaled_so_that_the_mean_stays(p):
    torch.manual_seed(0)
    x = torch.ones(301, 333, requires_grad=True)
    out = Dropout(p)(x)
    kept = out != 0
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=0.005)
    assert float(out.detach().mean()) == pytest.approx(1, abs=0.01)
    assert len(out[kept].unique()) == 1
    # Neither a row nor a column is dropped together with another one.
    assert float(kept.float().mean(0).std()) < 0.04
    assert float(kept.float().mean(1).std()) < 0.04
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_masks_differ_from_call_to_call_and_come_back_with_the_seed():
    drop, x = Dropout(0.5), torch.ones(64)
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    torch.manual_seed(1)
    assert torch.equal(first, drop(x))
    assert not torch.equal(first, second)


def test_nothing_is_dropped_when_asked_or_at_a_share_of_0():
    x = torch.ones(64)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
