"""Items by ID and by content: what hiding IDs in training does, and what an item without one gets."""

import pytest
import torch
from tiny_run import TinyRun

from model.assess import load_run
from model.nets.item import ItemFusion


def fusion(id_dropout, text_width=4):
    torch.manual_seed(0)
    item = ItemFusion(items=50, width=6, text_width=text_width, feature_width=0, id_dropout=id_dropout)
    with torch.no_grad():
        item.no_id += 0.5
        item.bias += torch.randn(50)
        item.no_bias += 3.0
    return item


@pytest.fixture
def text():
    return torch.randn(50, 4, generator=torch.Generator().manual_seed(0))


def test_in_training_an_item_whose_id_is_hidden_is_an_unseen_item(text):
    item = fusion(id_dropout=1.0).train()
    assert all(torch.equal(a, b) for a, b in zip(item(text, None), item.unseen(text, None), strict=True))


def test_only_a_share_of_items_is_hidden_and_none_outside_training(text):
    item = fusion(id_dropout=0.3).train()
    vectors, bias = item(text, None)
    hidden = (vectors == item.unseen(text, None)[0]).all(1)
    assert 5 <= int(hidden.sum()) <= 25
    assert torch.equal(bias == 3.0, hidden)
    item.eval()
    assert torch.equal(item(text, None)[1], item.bias)
    assert not (item(text, None)[0] == item.unseen(text, None)[0]).all(1).any()


def test_ids_of_a_model_that_knows_nothing_else_are_never_hidden():
    item = fusion(id_dropout=1.0, text_width=0).train()
    assert torch.equal(item(None, None)[0], item.id.weight)
    with pytest.raises(ValueError, match="by ID only"):
        item.unseen(None, None)


def test_text_alone_places_a_trained_item_near_its_own_vector(tiny_run: TinyRun):
    checkpoint, task = load_run(tiny_run.run, tiny_run.data)
    with torch.no_grad():
        vectors, _ = checkpoint.net.item(task.inputs.item_text, None)
        unseen, _ = checkpoint.net.item.unseen(task.inputs.item_text, None)
    vectors, unseen = vectors - vectors.mean(0), unseen - unseen.mean(0)
    alike = torch.nn.functional.cosine_similarity(unseen[:, None], vectors[None], dim=2)
    own = torch.diagonal(alike)
    # Its rank among all items, by chance a half.
    assert float((alike > own[:, None]).float().mean()) < 0.25
