"""What a user's items were like, of late and for long."""

import pytest
import torch

from model.nets import EventBatch
from model.nets.leaning import HALF_LIVES, MOST, Leaning
from model.nets.portrait import drift


def events(vectors, known=None):
    users, length = vectors.shape[:2]
    known = torch.ones(users, length, dtype=torch.bool) if known is None else known
    whole = torch.zeros(users, length, dtype=torch.int64)
    return EventBatch(vectors, known, known.to(torch.int64), whole, whole, torch.full((users, length, 3), torch.nan), whole)


@pytest.fixture
def leaning():
    """Of vectors of width 3 that speak of three labels, a direction of each."""
    made = Leaning(3)
    made.learn(torch.eye(3), torch.eye(3))
    return made


@pytest.fixture
def met():
    """Seven events of three users, whose vectors end with two numbers of a transition; the item of the second is not known."""
    torch.manual_seed(0)
    known = torch.ones(3, 7, dtype=torch.bool)
    known[:, 1] = False
    return events(torch.randn(3, 7, 5), known)


def test_a_mean_is_half_made_of_the_events_of_a_half_life(leaning):
    late, early = 1e3 * torch.eye(3)[:2]
    vectors = torch.cat([early.expand(2_000, -1), late.expand(16, -1)])[None]
    found = leaning.after(torch.zeros(1, 2, MOST), events(vectors), torch.tensor([[2_016]]))[0]
    torch.testing.assert_close(found[0, :3], torch.tensor([0.5, 0.5, 0.0]), atol=1e-4, rtol=0)
    old = 0.5 ** (16 / HALF_LIVES[1])
    torch.testing.assert_close(found[1, :3], torch.tensor([1 - old, old, 0.0]), atol=1e-4, rtol=0)


def test_a_chunk_is_as_many_steps_whatever_it_is_padded_with(leaning, met):
    start = torch.rand(3, 2, MOST)
    counts = torch.tensor([[7], [3], [0]])
    found = leaning.after(start, met, counts)
    for user, count in enumerate(counts[:, 0].tolist()):
        stepped = start[user : user + 1]
        for at in range(count):
            stepped = leaning.step(stepped, EventBatch(*(None if field is None else field[user : user + 1, at] for field in met)))
        torch.testing.assert_close(found[user], stepped[0], atol=1e-6, rtol=1e-5)


def test_an_item_that_nobody_knows_turns_nobody(leaning, met):
    known = torch.ones(3, 1, dtype=torch.bool)
    one = leaning.after(torch.zeros(3, 2, MOST), events(torch.randn(3, 1, 3), known), torch.ones(3, 1, dtype=torch.int64))
    torch.testing.assert_close(drift(one), torch.zeros(3, 1), atol=1e-6, rtol=0)
    two = leaning.after(one, events(torch.randn(3, 1, 3), ~known), torch.ones(3, 1, dtype=torch.int64))
    torch.testing.assert_close(drift(two), drift(one), atol=1e-6, rtol=0)
    assert (drift(leaning.step(two, EventBatch(*(None if field is None else field[:, 0] for field in met)))) > 1e-5).all()


def test_labels_are_read_from_vectors_and_an_item_without_any_is_not_learned_from():
    generator = torch.Generator().manual_seed(0)
    looks = torch.randn(5, 8, generator=generator)  # of each label, and an item is near its own
    kind = torch.arange(200) % 5
    vectors = torch.cat(
        [looks[kind] + 0.1 * torch.randn(200, 8, generator=generator), torch.randn(200, 2, generator=generator)], 1
    )
    labels = torch.eye(5)[kind]
    labels[:50] = 0
    leaning = Leaning(8)
    leaning.learn(vectors, labels)
    said = leaning.step(torch.zeros(200, 2, MOST), events(vectors[:, None]).along(-1))[:, 0] / leaning.share[0]
    assert (said.argmax(1) == kind).all()
    torch.testing.assert_close(said.sum(1), torch.ones(200))
    assert (said[:, 5:] == 0).all()
    mixed = torch.full((4, 2), 0.5)
    leaning.learn(torch.zeros(4, 8), mixed)  # vectors that say nothing: all items are about what items are about
    said = leaning.step(torch.zeros(1, 2, MOST), events(torch.ones(1, 1, 8)).along(-1))[0, 0] / leaning.share[0]
    torch.testing.assert_close(said[:3], torch.tensor([0.5, 0.5, 0.0]))


def test_of_a_net_that_was_told_no_labels_nothing_drifts(met):
    leaning = Leaning(3)
    found = leaning.after(torch.zeros(3, 2, MOST), met, torch.tensor([[7], [3], [1]]))
    torch.testing.assert_close(drift(found), torch.zeros(3, 1), atol=1e-6, rtol=0)


def test_one_label_is_enough():
    leaning = Leaning(3)
    leaning.learn(torch.randn(4, 3), torch.ones(4, 1))
    assert torch.isfinite(leaning.reading).all()
    assert leaning.prior[0] > leaning.prior[1]


def test_of_a_large_catalogue_a_part_is_learned_from(monkeypatch):
    monkeypatch.setattr("model.nets.leaning.ENOUGH", 12)
    kind = torch.arange(3_000) // 1_000
    leaning = Leaning(3)
    leaning.learn(torch.eye(3)[kind], torch.eye(3)[kind])
    said = leaning.step(torch.zeros(3, 2, MOST), events(torch.eye(3)[:, None]).along(-1))[:, 0]
    assert said.argmax(1).tolist() == [0, 1, 2]
