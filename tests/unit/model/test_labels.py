"""Labels of items, what the net expects of them, and how true that is."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import torch
from random_world import random_world
from scipy.spatial.distance import jensenshannon
from tiny_run import TinyRun

from model import interests
from model.assess import load_run
from model.export.bundle import SCHEMA
from model.interests import interest_report
from model.labels import CLUSTERS, LONGEST, Labels, item_labels
from model.nets.portrait import drift, label_weights


def items(categories, titles=None):
    titles = titles or [f"t{row}" for row in range(len(categories))]
    schema = {"title": pl.String(), "categories": pl.List(pl.String())}
    return pl.DataFrame({"title": titles, "categories": categories}, schema=schema)


def test_the_most_frequent_categories_are_the_labels_and_an_item_belongs_to_its_own_in_equal_parts():
    labels = item_labels(items([["b", "a"], ["a"], ["b", "rare", "a"], [], None]), None)
    assert labels is not None
    assert labels.names == ["a", "b"]
    np.testing.assert_allclose(labels.share, [[0.5, 0.5], [1, 0], [0.5, 0.5], [0, 0], [0, 0]])


def test_without_categories_items_are_grouped_by_their_texts_and_the_groups_named_by_their_words():
    rng = np.random.default_rng(0)
    kinds = rng.permutation(np.repeat(np.arange(CLUSTERS), 8))
    words = ["".join(rng.choice(list("abcdefgh"), 7)) for _ in range(CLUSTERS)]
    text = (np.eye(CLUSTERS)[kinds] + 0.01 * rng.normal(size=(len(kinds), CLUSTERS))).astype(np.float32)
    labels = item_labels(items([[]] * len(kinds), [f"the {words[kind]} 12" for kind in kinds]), text)
    assert labels is not None
    assert (labels.share.sum(1) == 1).all()
    assert {labels.names[row.argmax()]: words[kind] for row, kind in zip(labels.share, kinds, strict=True)} == {
        w: w for w in words
    }


def test_without_categories_and_texts_there_are_no_labels():
    assert item_labels(items([[], [], []]), None) is None
    assert item_labels(items([["a"], ["a"]]), None) is None  # one label says nothing


def test_categories_with_odd_names_are_names_that_a_manifest_takes():
    labels = item_labels(items([["a", None, ""], ["a", " a "], [" ", "", None], ["x" * 500, "b"], ["x" * 500, "b"]]), None)
    assert labels is not None
    assert labels.names == ["a", "b", "x" * LONGEST]
    np.testing.assert_allclose(labels.share, [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])
    assert manifest_name()["maxLength"] == LONGEST


def test_groups_of_long_words_have_names_that_a_manifest_takes():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(4 * CLUSTERS, 8)).astype(np.float32)
    titles = [f"{'a' * 200}b {'a' * 200}c" if row % 2 else f"{'a' * 200}{'bcd'[row % 3]}" for row in range(len(text))]
    labels = item_labels(items([[]] * len(text), titles), text)
    assert labels is not None
    assert len(set(labels.names)) == CLUSTERS
    assert all(0 < len(name) <= LONGEST for name in labels.names)


def test_few_different_texts_make_few_groups():
    text = np.eye(3, dtype=np.float32)[np.arange(4 * CLUSTERS) % 3]
    labels = item_labels(items([[]] * len(text), [f"{['tea', 'oil', 'hat'][row % 3]}" for row in range(len(text))]), text)
    assert labels is not None
    assert sorted(labels.names) == ["hat", "oil", "tea"]
    assert (labels.share.sum(0) > 0).all()
    assert item_labels(items([[]] * len(text)), np.ones_like(text)) is None  # one group says nothing


def manifest_name():
    schema = json.loads(SCHEMA.read_text())
    return schema["$defs"]["Labels"]["properties"]["names"]["items"]


def test_labels_of_late_are_counted_as_a_loop_would():
    seq = random_world(seed=5)
    share = np.eye(seq.items, dtype=np.float32)[:, :3]  # items 0, 1, 2 have a label each
    asked = np.arange(len(seq.item))
    queries = type("Asked", (), {"position": asked, "user": seq.user})
    task = type("Of", (), {"seq": seq, "labels": Labels(["a", "b", "c"], share)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interests, "RECENT", 2)
        found = interests._recent(task, queries)
    for row in asked:
        mine = [r for r in range(seq.offsets[seq.user[row]], row) if seq.positive[r] and 0 <= seq.item[r] < 3]
        np.testing.assert_allclose(found[row], share[seq.item[mine[-2:]]].sum(0) if mine else 0, err_msg=str(row))


def test_the_net_knows_better_what_comes_than_what_was_says(tiny_run: TinyRun):
    checkpoint, task = load_run(tiny_run.run, tiny_run.data)
    report = interest_report(checkpoint, task, task.split.valid)
    assert report is not None
    assert task.labels is not None
    assert report.labels == len(task.labels.names) == 5
    assert report.queries > 50
    for name in ("accuracy@1", "recall@3", "f1@3"):
        assert report.net[name].mean > report.recent[name].mean
        assert report.difference[name].mean == pytest.approx(report.net[name].mean - report.recent[name].mean)
    mixed = dataclasses.replace(task, labels=Labels(task.labels.names, np.roll(task.labels.share, 1, 1)))
    assert interest_report(checkpoint, dataclasses.replace(mixed, labels=None), task.split.valid) is None


def test_a_label_weighs_what_its_items_are_expected_to_have():
    scores = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    weights = label_weights(scores, torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]))
    torch.testing.assert_close(weights, torch.tensor([[0.625, 0.125]]))


def test_drift_is_none_for_one_who_stays_and_large_for_one_who_turns():
    one, other, none = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    pairs = [(one, one), (1e-9 * one, 3 * one), (one, other), (one + other, one), (none, none)]
    found = drift(torch.stack([torch.stack(pair) for pair in pairs]))
    half = float(jensenshannon([0.5, 0.5], [1, 0], base=2)) ** 2
    torch.testing.assert_close(found[:, 0], torch.tensor([0.0, 0.0, 1.0, half, 0.0], dtype=torch.float32), atol=1e-6, rtol=0)
