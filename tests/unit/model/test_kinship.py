"""The sums of what a user had last: what they add to the interest, and what is hidden from them in training."""

import pytest
import torch
from tiny_run import MODEL

from model.nets import EventBatch, Longwave, ModelConfig
from model.nets.event import EventFusion
from model.nets.kinship import SHARE, Kinship

DECAYS = (0.25, 0.5)


def events(vectors, known=None):
    users, length = vectors.shape[:2]
    known = torch.ones(users, length, dtype=torch.bool) if known is None else known
    whole = torch.zeros(users, length, dtype=torch.int64)
    return EventBatch(vectors, known, known.to(torch.int64), whole, whole, torch.full((users, length, 3), torch.nan), whole)


def test_the_interest_gets_each_items_own_vector_the_less_the_longer_ago():
    torch.manual_seed(0)
    kinship = Kinship(3, DECAYS)
    vectors = torch.randn(1, 3, 5)  # of which the last two numbers are the transition's
    sums = kinship.everywhere(torch.zeros(1, 6), events(vectors))[:, -1]
    ages = torch.tensor([2.0, 1.0, 0.0])
    faded = sum(SHARE / 2 * (decay**ages) for decay in DECAYS)
    expected = (faded[:, None] * vectors[0, :, :3]).sum(0, keepdim=True)
    assert torch.allclose(kinship.interest(sums, torch.randn(1, 3)), expected, atol=1e-6)


def test_how_much_a_sum_counts_depends_on_the_moment():
    kinship = Kinship(3, DECAYS)
    with torch.no_grad():
        kinship.gain.weight[1, 0] = 1.0
    sums, z = torch.ones(1, 6), torch.tensor([[2.0, 0.0, 0.0]])
    assert torch.allclose(kinship.interest(sums, z), torch.full((1, 3), SHARE + 2.0))


def test_an_item_that_nobody_knows_adds_nothing_and_yet_takes_its_turn():
    kinship, vectors = Kinship(3, DECAYS), torch.ones(1, 2, 3)
    sums = kinship.everywhere(torch.zeros(1, 6), events(vectors, torch.tensor([[True, False]])))[:, -1]
    assert torch.allclose(sums, torch.tensor([[0.25] * 3 + [0.5] * 3]))


@pytest.fixture
def net():
    torch.manual_seed(0)
    sizes = MODEL | {"transition": 0, "repeats": 0, "interests": 1, "dropout": 0.0, "kinship_decays": DECAYS, "item_dropout": 0.5}
    return Longwave(ModelConfig(items=9, event_types=1, **sizes))


def asked(net):
    vectors, _ = net.item(None, None)
    batch = events(vectors[None, :4].detach())
    moment = torch.tensor([[4]]), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    start = net.initial_state(torch.zeros(1, 0, dtype=torch.int64))
    readout, _ = net(batch, torch.ones(1, 4, dtype=torch.bool), start, *moment)
    return readout.interests


def test_numbers_of_an_events_item_are_hidden_in_training_alone(net):
    assert not torch.equal(asked(net.train()), asked(net))
    assert torch.equal(asked(net.eval()), asked(net))


def test_what_is_hidden_from_one_part_of_the_net_is_hidden_from_all(net, monkeypatch):
    seen = []
    for part in (Kinship, EventFusion):
        name = "leads" if part is Kinship else "forward"
        whole = getattr(part, name)
        monkeypatch.setattr(part, name, lambda self, event, *rest, whole=whole: seen.append(event) or whole(self, event, *rest))
    asked(net.train())
    assert len(seen) >= 3  # once for what is asked, once for the state after it
    assert all(torch.equal(event.item_vector, seen[0].item_vector) for event in seen)
    assert bool((seen[0].item_vector == 0).any())
