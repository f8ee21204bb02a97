"""SASRec and GRU4Rec: what they read, that they never see the future, and that they learn."""

import dataclasses

import numpy as np
import pytest
import torch
from random_world import build as build_world
from random_world import random_world
from tiny_run import tiny_settings

from model.baselines.nets import train as train_module
from model.baselines.nets.checkpoint import ARCHITECTURES, build, described, load_encoder, training_of
from model.baselines.nets.streams import BEGIN, Streams
from model.baselines.nets.train import EncoderTrainer, encoder_lists
from model.checkpoint import CheckpointError, load_checkpoint
from model.data.sequences import Queries
from model.data.splits import by_time, leave_one_out, next_basket, training_queries
from model.data.synthetic import synthetic_world
from model.loop import CHECKPOINT
from model.settings import DataSettings, Gru4recSettings, SasrecSettings
from model.task import make_task

LENGTH = 5
SPLITS = {"loo": leave_one_out, "time": lambda seq: by_time(seq, 0.7, 0.4), "basket": lambda seq: next_basket(seq, 0.7, 0.4)}


@pytest.fixture(params=ARCHITECTURES)
def net(request):
    """An untrained net of 12 items that looks at the last five."""
    torch.manual_seed(0)
    small = dataclasses.replace(
        tiny_settings(), sasrec=SasrecSettings(width=8, length=LENGTH), gru4rec=Gru4recSettings(width=8, length=LENGTH)
    )
    made = build(12, described(request.param, small)).eval()
    with torch.no_grad():
        made.item.weight.mul_(50)  # as large as after training, so that what is read decides the list
    return made


def purchases(seq, user, position):
    return [int(seq.item[row]) for row in range(seq.offsets[user], position) if seq.positive[row]]


@torch.no_grad()
def plain_lists(net, seq, queries, k, filter_seen):
    """One query at a time, one row, no padding."""
    lists = []
    for user, position in zip(queries.user.tolist(), queries.position.tolist(), strict=True):
        tokens = [BEGIN] + [item + 1 for item in purchases(seq, user, position)]
        scores = net.item_scores(net(torch.tensor([tokens[-LENGTH:]]))[:, -1])[0]
        if filter_seen:
            past = seq.item[seq.offsets[user] : position]
            scores[past[past >= 0].tolist()] = -torch.inf
        best = torch.sort(scores, descending=True, stable=True).indices[:k].tolist()
        best = [item for item in best if scores[item] > -torch.inf]
        lists.append(best + [-1] * (k - len(best)))
    return np.array(lists)


@pytest.mark.parametrize("protocol", SPLITS)
@pytest.mark.parametrize("most_tokens", [1, 37, 10_000])
def test_lists_are_those_of_each_query_alone(net, protocol, most_tokens):
    seq = random_world(3, users=10)
    split = SPLITS[protocol](seq)
    found = encoder_lists(net, seq, split.test, LENGTH, 6, split.filter_seen, most_tokens=most_tokens)
    np.testing.assert_array_equal(found, plain_lists(net, seq, split.test, 6, split.filter_seen))


def test_a_changed_future_changes_no_list(net):
    seq = random_world(4, users=10)
    split = SPLITS["time"](seq)
    position = int(split.test.position[0])
    before = encoder_lists(net, seq, split.test, LENGTH, 6, False)
    item = seq.item.copy()
    item[position : seq.offsets[seq.user[position] + 1]] = 0
    after = encoder_lists(net, dataclasses.replace(seq, item=item), split.test, LENGTH, 6, False)
    np.testing.assert_array_equal(before[0], after[0])


def test_what_is_known_after_a_token_depends_on_no_later_one(net):
    tokens = torch.tensor([[BEGIN, 3, 4, 5, 6]])
    changed = torch.tensor([[BEGIN, 3, 4, 9, 9]])
    with torch.no_grad():
        torch.testing.assert_close(net(tokens)[:, :3], net(changed)[:, :3])
        assert not torch.allclose(net(tokens)[:, 3:], net(changed)[:, 3:])


@pytest.mark.parametrize("protocol", SPLITS)
def test_every_training_query_is_asked_once_in_an_epoch_after_the_item_before_it(protocol):
    seq = random_world(5, users=10)
    queries = training_queries(seq, SPLITS[protocol](seq))
    streams, rng = Streams(seq), np.random.default_rng(0)
    for _ in range(5):
        asked = []
        for batch in streams.batches(streams.training_windows(queries, LENGTH, rng), queries, 40, rng):
            assert batch.tokens.size <= 40
            assert batch.tokens.shape[1] <= LENGTH
            for lane, column, query in zip(batch.lane, batch.column, batch.query, strict=True):
                past = [BEGIN] + [item + 1 for item in purchases(seq, queries.user[query], queries.position[query])]
                read = batch.tokens[lane, : column + 1].tolist()
                assert read == past[-len(read) :]
            asked += batch.query.tolist()
        assert sorted(asked) == list(range(len(queries)))


def test_cuts_fall_elsewhere_in_every_epoch():
    seq = random_world(5, users=10)
    queries = training_queries(seq, SPLITS["time"](seq))
    streams, rng = Streams(seq), np.random.default_rng(0)
    cuts = {tuple(streams.training_windows(queries, LENGTH, rng).start.tolist()) for _ in range(8)}
    assert len(cuts) > 4


@pytest.fixture(scope="module")
def task():
    return make_task(synthetic_world("tiny").dataset, DataSettings())


@pytest.fixture(params=ARCHITECTURES)
def trainer(request, task, tmp_path):
    def make(name="run", task=task, **changes):
        settings = tiny_settings()
        settings = dataclasses.replace(
            settings,
            train=dataclasses.replace(settings.train, **changes),
            sasrec=SasrecSettings(width=32, length=50, learning_rate=5e-3, batch_tokens=200),
            gru4rec=Gru4recSettings(width=32, length=50, learning_rate=5e-3, batch_tokens=200),
        )
        return EncoderTrainer(request.param, task, settings, tmp_path / name)

    return make


def test_it_may_have_its_own_number_of_epochs():
    settings = dataclasses.replace(tiny_settings(), sasrec=SasrecSettings(epochs=7))
    assert training_of("sasrec", settings).epochs == described("sasrec", settings)["train"]["epochs"] == 7
    assert training_of("gru4rec", settings) == settings.train


def test_of_few_events_a_step_has_fewer_tokens(trainer, monkeypatch):
    assert trainer(least_steps=1_000_000).batch == 200  # of so few it has a thousand at least
    monkeypatch.setattr(train_module, "FEWEST_TOKENS", 60)
    run = trainer(least_steps=1_000_000)
    assert run.batch == 100
    batches = list(run.batches(np.random.default_rng(run.train.seed)))
    assert len(batches) == run.steps_per_epoch > trainer().steps_per_epoch
    assert max(batch.tokens.size for batch in batches) <= 100


def test_a_run_of_other_least_steps_is_another_run(trainer):
    trainer(epochs=1).run()
    with pytest.raises(CheckpointError, match=r"\(train\.least_steps\)"):
        trainer(epochs=1, least_steps=800).resume()


def test_it_learns_a_rule_that_only_the_order_tells(trainer, task):
    follower = np.roll(np.random.default_rng(0).permutation(12), 1)[np.argsort(np.random.default_rng(0).permutation(12))]
    walks = []
    for user in range(48):
        item = user % 12
        for moment in range(20):
            walks.append((user, item, 0, moment, moment))
            item = int(follower[item])
    seq = build_world(walks, 12)
    split = leave_one_out(seq, filter_seen=False)
    ruled = dataclasses.replace(task, seq=seq, split=split, train_queries=training_queries(seq, split))
    kept = trainer(task=ruled, epochs=25, patience=25).run()
    assert kept.history[-1]["valid_ndcg"] > 0.9


def test_a_killed_run_goes_on_as_if_nothing_had_happened(trainer):
    class KilledError(Exception):
        pass

    def kill(progress):
        if progress.epoch == 1:
            raise KilledError

    whole = trainer("whole", epochs=2).run()
    with pytest.raises(KilledError):
        trainer("killed", epochs=2).run(kill)
    torch.manual_seed(99)
    resumed = trainer("killed", epochs=2)
    assert resumed.resume()
    found = resumed.run()
    stored = load_encoder(resumed.folder / CHECKPOINT)
    with pytest.raises(CheckpointError, match=r"a run of the neural baseline .*, expected one of our net"):
        load_checkpoint(resumed.folder / CHECKPOINT)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, found.net.state_dict()[name]), name
        assert torch.equal(tensor, stored.net.state_dict()[name]), name


def test_a_file_of_something_else_is_no_checkpoint(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"x\.pt: not a checkpoint of a neural baseline"):
        load_encoder(tmp_path / "x.pt")


def test_a_query_of_a_user_without_purchases_is_answered(net):
    seq = random_world(1)
    empty = Queries(
        np.array([0], np.int32), seq.offsets[:1].copy(), np.zeros(1, np.int64), np.zeros(2, np.int64), np.zeros(0, np.int32)
    )
    assert encoder_lists(net, seq, empty, LENGTH, 12, True)[0].min() >= 0
