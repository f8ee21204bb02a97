"""Cold items: nothing of them is in training, and only their texts rank them."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model.baselines.content_knn import ContentKnn
from model.benchmark import names
from model.benchmark.cold_items import HALF_LIVES, NEAREST, best_content_knns, by_text, cold_task, measure_cold_items
from model.benchmark.page import BEGIN, END
from model.cli import app
from model.data.cold import hold_out
from model.data.dataset import to_sequences
from model.data.errors import DataError
from model.data.inhabitants import WorldSize
from model.data.sequences import item_key
from model.data.splits import baskets
from model.data.synthetic import synthetic_world
from model.ledger import read_ledger
from model.metrics import recall
from model.popularity import PopularityTable
from model.settings import ConfigError, DataSettings, Settings, TrainSettings
from model.task import make_task
from model.train import Trainer

TRAIN = TrainSettings(
    epochs=4,
    least_steps=0,
    patience=4,
    lanes=16,
    chunk=32,
    warmup_steps=5,
    learning_rate=1e-2,
    unseen_items=0.3,
    content_weight=1.0,
    threads=1,
)
MODEL = {"width": 16, "ring": 4, "ring_width": 8, "accumulator_width": 8, "repeats": 8, "repeat_hidden": 8, "dropout": 0.1}


@pytest.fixture(scope="module")
def world():
    return synthetic_world(WorldSize(users=120, items=240, events=12_000, topics=6, days=120, planted_users=0)).dataset


@pytest.fixture(scope="module")
def held_out(world):
    return hold_out(world, share=0.2)


def words_of(dataset, ids):
    """(n, words) which words are in the titles of items."""
    titles = dict(zip(dataset.items["item_id"], dataset.items["title"], strict=True))
    words = sorted({word for title in titles.values() for word in title.split()})
    return np.array([[word in titles[item].split() for word in words] for item in ids], np.float32)


@pytest.fixture(scope="module")
def warm(world, held_out):
    settings = DataSettings(protocol="basket")
    ids = make_task(held_out.warm, settings).seq.item_ids
    return make_task(held_out.warm, settings, words_of(world, ids))


@pytest.fixture(scope="module")
def cold(world, held_out, warm):
    return cold_task(held_out, warm, "", words_of(world, held_out.cold))


@pytest.fixture(scope="module")
def net(warm, tmp_path_factory):
    return Trainer(warm, Settings(DataSettings(protocol="basket"), TRAIN, MODEL), tmp_path_factory.mktemp("run")).run().net


def test_which_items_are_held_out_is_a_matter_of_ids_and_seed_alone(world, held_out):
    assert len(held_out.cold) == round(0.2 * world.events["item_id"].drop_nulls().n_unique())
    backwards = dataclasses.replace(world, items=world.items.reverse())
    assert hold_out(backwards, share=0.2).cold == held_out.cold
    assert hold_out(world, share=0.2, seed=1).cold != held_out.cold
    assert hold_out(world, share=0.2).warm.manifest.fingerprint == held_out.warm.manifest.fingerprint


def test_an_item_without_a_title_is_never_held_out(world):
    first = world.items["item_id"][0]
    nameless = world.items.with_columns(title=world.items["title"].set(world.items["item_id"] != first, ""))
    assert hold_out(dataclasses.replace(world, items=nameless), share=1.0).cold == [first]
    with pytest.raises(DataError, match="none to hold out"):
        hold_out(world, share=1e-9)


def test_nothing_of_a_cold_item_is_in_training(world, held_out, warm, cold):
    gone, seq = set(held_out.cold), warm.seq
    assert not gone & set(held_out.warm.items["item_id"]) | gone & set(held_out.warm.events["item_id"])
    assert not gone & set(seq.item_ids)  # vocabulary: vectors, biases, targets
    assert not {item_key(item) for item in gone} & set(seq.item_key.tolist())  # inputs and own repeats
    assert world.events.height - held_out.warm.events.height == world.events["item_id"].is_in(list(gone)).sum() > 0
    # Nor is it in the questions' pasts, whoever asks: neither popularity nor a baseline ever counts one.
    assert cold.task.seq.item.max() < cold.first == seq.items
    table = PopularityTable.live(cold.task.seq, [1e9]).table
    assert table[:, cold.first :].sum() == 0 < table[:, : cold.first].sum()


def test_the_questions_are_the_baskets_with_a_cold_item_and_ask_for_nothing_else(world, held_out, warm, cold):
    whole = to_sequences(world)
    wanted = {}
    every = baskets(whole)
    gone = set(held_out.cold)
    for q in range(len(every)):
        targets = {whole.item_ids[row] for row in every.targets(q)}
        rows = np.flatnonzero(
            (whole.user == every.user[q]) & (whole.basket == whole.basket[every.position[q]]) & (whole.polarity[whole.type] > 0)
        )
        others = {whole.item_ids[row] for row in whole.item[rows] if row >= 0} - gone
        if targets & gone and others:
            wanted[(whole.user_ids[every.user[q]], int(every.as_of[q]))] = targets & gone
    seq, split = cold.task.seq, cold.task.split
    found = {}
    for queries in (split.valid, split.test):
        for q in range(len(queries)):
            assert seq.offsets[queries.user[q]] <= queries.position[q] < seq.offsets[queries.user[q] + 1]
            found[(seq.user_ids[queries.user[q]], int(queries.as_of[q]))] = {seq.item_ids[row] for row in queries.targets(q)}
    assert found == {key: items for key, items in wanted.items() if key[1] >= split.valid_cut_ms}
    assert (split.valid.as_of < split.cut_ms).all()
    assert (split.test.as_of >= split.cut_ms).all()


def shuffled(text, first, seed):
    """Each cold item with the text of another."""
    new = text.copy()
    new[first:] = np.random.default_rng(seed).permutation(new[first:])
    return new


def lists_of(cold, net, text):
    inputs = dataclasses.replace(cold.task.inputs, item_text=torch.as_tensor(text))
    return by_text(net, inputs, cold.task.seq, cold.task.split.test, cold.first)


def test_cold_items_are_ranked_by_their_texts_and_by_nothing_else(cold, net):
    text, other = cold.text, shuffled(cold.text, cold.first, 0)
    # Whichever item has a text, that text comes at the same place.
    np.testing.assert_array_equal(other[lists_of(cold, net, other)], text[lists_of(cold, net, text)])


def test_the_texts_say_which_cold_items_are_wanted(cold, net):
    def quality(text):
        return float(np.nanmean(recall(lists_of(cold, net, text), cold.task.split.test, 10)))

    # One shuffle alone is luck: 54 questions, and a sixth of the texts stay within their topic.
    assert quality(cold.text) > 0.04 + np.mean([quality(shuffled(cold.text, cold.first, seed)) for seed in range(5)])


def test_an_item_beyond_the_vocabulary_gets_the_vector_that_its_text_gives(cold, net):
    with torch.no_grad():
        matrix, bias = net.item(cold.task.inputs.item_text, None)
        new, new_bias = net.item.unseen(cold.task.inputs.item_text[cold.first :], None)
        known, _ = net.item(cold.task.inputs.item_text[: cold.first], None)
    assert torch.equal(matrix, torch.cat([known, new]))
    assert torch.equal(bias[cold.first :], new_bias)


def test_an_item_taken_for_a_new_one_has_nothing_but_its_text(cold, net):
    text = cold.task.inputs.item_text[: cold.first]
    with torch.no_grad():
        matrix, bias = net.item(text, None, None, torch.ones(cold.first, dtype=torch.bool))
        new, new_bias = net.item.unseen(text, None)
    assert torch.equal(matrix, new)
    assert torch.equal(bias, new_bias)


def test_the_report_has_the_net_by_text_and_as_served_beside_the_content_knn(cold, net):
    queries = cold.task.split.test
    served = by_text(net, cold.task.inputs, cold.task.seq, queries)
    found = measure_cold_items(cold, served, net)
    assert list(found["report"].models) == ["longwave", "content kNN", "longwave, as served"]
    assert list(found["shelf"].models) == ["longwave", "content kNN"]
    assert found["report"].comparisons["content kNN"]["recall@20"].p > 0
    assert found["report"].unseen_targets == 1
    assert found["report"].items == len(cold.text)


def test_items_without_texts_cannot_be_asked_for_cold(held_out):
    with pytest.raises(ConfigError, match=r"set data\.text_encoder"):
        cold_task(held_out, make_task(held_out.warm, DataSettings(protocol="basket")), "")


def test_one_command_measures_cold_items_notes_both_looks_and_is_shown_on_the_page(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(names.BENCHMARKS, "synthetic-cold", names.Benchmark("synthetic-tiny", ("basket",), cold=True))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(
        f'[data]\ntext_encoder = "{tiny_run.encoder}"\n[train]\nepochs = 1\nleast_steps = 0\nlanes = 16\nthreads = 1\n'
        "unseen_items = 0.1\ncontent_weight = 0.5\n[model]\nwidth = 16\nring = 4\nring_width = 8\nrepeats = 4\n"
    )
    (tmp_path / "page.md").write_text(f"{BEGIN}\n{END}\n")
    words = ["benchmark", "synthetic-cold", "--preset", "mine.toml"]
    refused = CliRunner().invoke(app, [*words, "--model", "sasrec"])
    assert refused.exit_code == 2
    assert "sasrec knows items by ID alone" in refused.stderr
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "benchmarks" / "synthetic-cold-mine-0.json").read_text())
    part = result["protocols"]["basket"]
    assert part["headline"] == "recall@20"
    assert part["cold_items"] == 8
    assert part["report"]["unseen_targets"] == 1
    looks = [(look["run"], look["queries"]) for look in read_ledger(tmp_path / "benchmarks" / "ledger.jsonl")]
    queries = part["report"]["queries"]
    assert looks == [("synthetic-cold-mine-0", queries), ("synthetic-cold-mine-0, cold items alone", queries)]
    shown = CliRunner().invoke(app, ["report", "--page", "page.md", "--figures", "figures"])
    assert shown.exit_code == 0, shown.output
    page = (tmp_path / "page.md").read_text()
    assert "8 items were held out of training altogether" in page
    assert page.count("| content kNN |") == 2


@pytest.mark.parametrize("novel", [False, True])
@pytest.mark.parametrize("half_life", [np.inf, 2.0])
def test_content_knn_is_the_cosine_with_the_decayed_mean_of_what_was_bought(cold, half_life, novel):
    task, text = cold.task, cold.text
    seq, queries = task.seq, task.split.test
    knn = ContentKnn(text, half_life, novel)
    knn.fit(seq, task.split.train_end)
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    for q in range(0, len(queries), 7):
        user, position = int(queries.user[q]), int(queries.position[q])
        rows = [row for row in range(seq.offsets[user], position) if seq.positive[row]]
        if not rows:
            continue
        ages, number = {}, 0
        for last, row in zip([None, *reversed(rows)], reversed(rows), strict=False):
            number += last is not None and seq.basket[last] != seq.basket[row]
            ages[row] = number
        mean = sum(unit[seq.item[row]] * seq.weight[seq.type[row]] * 0.5 ** (ages[row] / half_life) for row in rows)
        expected = unit @ mean / np.linalg.norm(mean)
        if novel:
            expected[sorted({int(seq.item[row]) for row in rows})] -= 2
        np.testing.assert_allclose(knn.score(user, position, 0), expected, atol=1e-5)


def test_content_knn_with_neighbours_sums_the_cosines_with_the_nearest_purchases(cold):
    task, text = cold.task, cold.text
    seq, queries = task.seq, task.split.test
    knn = ContentKnn(text, 2.0, nearest=3)
    knn.fit(seq, task.split.train_end)
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    for q in range(0, len(queries), 7):
        user, position = int(queries.user[q]), int(queries.position[q])
        weight, baskets = {}, []
        for row in reversed(range(seq.offsets[user], position)):
            if seq.positive[row]:
                if not baskets or baskets[-1] != seq.basket[row]:
                    baskets.append(seq.basket[row])
                weight.setdefault(int(seq.item[row]), 0.5 ** ((len(baskets) - 1) / 2))  # of an item, its last purchase
        if not weight:
            continue
        cosines = np.array([unit[item] @ unit.T * each for item, each in weight.items()])
        expected = np.sort(cosines, axis=0)[-3:].sum(0)
        np.testing.assert_allclose(knn.score(user, position, 0), expected, atol=1e-5)


def test_the_content_knn_of_each_view_is_the_best_of_those_that_validation_was_asked_of(cold):
    task, queries = cold.task, cold.task.split.valid
    best = best_content_knns(task.seq, task.split, cold.text, cold.first)
    for view, first in (("report", 0), ("shelf", cold.first)):
        knn, mean = best[view]
        for half_life, nearest, novel in itertools.product(HALF_LIVES, NEAREST, (False, True)):
            other = ContentKnn(cold.text, half_life, novel, nearest)
            other.fit(task.seq, task.split.train_end)
            lists = []
            for q in range(len(queries)):
                scores = other.score(int(queries.user[q]), int(queries.position[q]), 0)
                scores[:first] = -np.inf
                lists.append(np.argsort(-scores, kind="stable")[:20])
            assert np.nanmean(recall(np.array(lists), queries, 20)) <= mean + 1e-9
        assert knn.parameters()["nearest"] in NEAREST


def test_content_knn_of_a_user_without_a_purchase_is_popularity(cold):
    task = cold.task
    knn = ContentKnn(cold.text)
    knn.fit(task.seq, task.split.train_end)
    first = int(task.seq.offsets[0])
    counts = np.bincount(
        task.seq.item[task.seq.positive & (np.arange(len(task.seq.item)) < task.split.train_end[task.seq.user])],
        minlength=task.seq.items,
    )
    np.testing.assert_array_equal(knn.score(0, first, 0), counts)
