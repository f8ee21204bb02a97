"""A picture alone tells who likes an item: also of one that the trainer never saw."""

import dataclasses

import numpy as np
import pytest
import torch
from pictured_shop import NEW, SETTINGS, STYLES, WIDTH, pictures, task_of

from model.begin import begun
from model.checkpoint import load_checkpoint
from model.data.dataset import read_dataset
from model.predict import read_out
from model.task import make_task
from model.update.newer import NothingNewError, features_of, newer, read_events
from model.update.origin import OriginError, read_origin


def test_items_that_the_trainer_never_saw_are_ranked_by_their_pictures(pictured_shop):
    net, task = load_checkpoint(pictured_shop / "run" / "checkpoint.pt").net, task_of(pictured_shop)
    asked = task.split.valid
    interests = read_out(net, task.inputs, task.seq, asked).readout.interests
    with torch.no_grad():
        matrix, _ = net.item.unseen(None, torch.as_tensor(pictures(NEW, seed=3)))
        scores = torch.matmul(interests, matrix.t()).amax(1)
    many = NEW // STYLES
    style = np.array([int(task.seq.user_ids[user][1:]) % STYLES for user in asked.user])
    found = scores.topk(many).indices.numpy() % STYLES == style[:, None]
    assert len(asked) > 100
    assert found.mean() > 0.7  # recall of a style's new items; by chance it is a third


def test_the_manifest_of_the_bundle_says_what_the_item_graph_takes(pictured_shop):
    origin = read_origin(pictured_shop / "bundles" / "current")
    assert (origin.features, origin.vectors) == ((), {"image": WIDTH})
    assert origin.checkpoint.item_features.shape == (task_of(pictured_shop).seq.items, WIDTH)


def test_a_training_begins_with_a_bundle_only_where_the_vectors_are_the_same(pictured_shop):
    origin, task = read_origin(pictured_shop / "bundles" / "current"), task_of(pictured_shop)
    assert begun(origin, task).config.feature_width == WIDTH
    with pytest.raises(OriginError, match=r"its item vectors are .*'image': 12.*those of the data .*'sound': 12"):
        begun(origin, dataclasses.replace(task, vectors={"sound": WIDTH}))


def test_an_update_reads_vectors_by_name_and_length_and_those_of_old_items_as_training_saw_them(pictured_shop):
    bundle = pictured_shop / "bundles" / "current"
    origin = read_origin(bundle)
    # As of before the last weeks, of which everything is new then.
    checkpoint = dataclasses.replace(origin.checkpoint, known_until_ms=int(task_of(pictured_shop).split.valid_cut_ms))
    origin = dataclasses.replace(origin, checkpoint=checkpoint)
    found = newer(read_events(pictured_shop / "data", origin), origin, 0.3)
    seen = checkpoint.item_features.numpy()
    changed = found.items.with_columns(vector_image=found.items["vector_image"].reverse())
    np.testing.assert_array_equal(features_of(dataclasses.replace(found, items=changed), origin)[: len(seen)], seen)
    older = dataclasses.replace(origin, checkpoint=dataclasses.replace(checkpoint, item_features=None))
    assert not np.array_equal(features_of(dataclasses.replace(found, items=changed), older)[: len(seen)], seen)
    with pytest.raises(NothingNewError, match="have no vector_sound"):
        features_of(found, dataclasses.replace(origin, vectors={"sound": 4}))
    with pytest.raises(NothingNewError, match="have vector_image of 12 numbers, the model reads 4"):
        features_of(found, dataclasses.replace(origin, vectors={"image": 4}))


def test_a_model_of_items_alone_reads_no_vectors(pictured_shop):

    settings = dataclasses.replace(SETTINGS.data, items_only=True)
    task = make_task(read_dataset(pictured_shop / "data"), settings)
    assert (task.item_features, task.vectors) == (None, {})
