"""Pretraining without answers: the loss, what a view is, and that users are found again after it."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_run import tiny_settings

from model.data.synthetic import synthetic_world
from model.pretrain import CROP, LEAST, WINDOW, info_nce, interest_of_view, view, windows
from model.task import make_task
from model.train import Trainer


def test_the_loss_is_minus_the_log_of_the_share_of_the_other_view():
    torch.manual_seed(0)
    views = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    expected = []
    for index in range(6):
        others = [place for place in range(6) if place != index]
        shares = torch.softmax(torch.stack([views[index] @ views[place] / 0.5 for place in others]), 0)
        expected.append(-torch.log(shares[others.index((index + 3) % 6)]))
    torch.testing.assert_close(info_nce(3 * views[:3], 2 * views[3:], 0.5), torch.stack(expected).mean())


def test_a_view_is_a_stretch_of_a_window_of_training_events():
    rng = np.random.default_rng(0)
    begin, end = np.array([0, 300, 310, 330]), np.array([250, 305, 330, 400])
    for _ in range(20):
        found = np.concatenate(list(windows(begin, end, rng)))
        assert len(found) == 3  # the second has too few events
        for first, last in found:
            (user,) = np.flatnonzero((begin <= first) & (last <= end))
            assert last - first == min(WINDOW, end[user] - begin[user]) >= LEAST
        rows, valid, hidden = view(found, rng)
        for own, real, (first, last) in zip(rows, valid, found, strict=True):
            assert real.sum() == round(CROP * (last - first))
            assert (np.diff(own[real]) == 1).all()
            assert first <= own[real][0] <= own[real][-1] < last
        assert not hidden[~valid].any()


@pytest.fixture(scope="module")
def task():
    return make_task(synthetic_world("tiny").dataset, tiny_settings().data)


def test_padding_and_hidden_items_leave_no_trace(task, tmp_path):
    run = Trainer(task, tiny_settings(), tmp_path)
    run.net.eval()
    matrix, _ = run.net.item(None, None)
    (window, *_) = windows(task.seq.offsets[:-1], task.split.train_end, np.random.default_rng(0))
    together = interest_of_view(run.net, run.inputs, matrix, window[:4], np.random.default_rng(1))
    rows, valid, hidden = view(window[:4], np.random.default_rng(1))
    used = np.unique(task.seq.item[rows[valid & ~hidden]])
    spoiled = torch.full_like(matrix, 1e3).index_copy(0, torch.as_tensor(used[used >= 0]).long(), matrix[used[used >= 0]])
    apart = interest_of_view(run.net, run.inputs, spoiled, window[:4], np.random.default_rng(1)) - together
    assert apart.abs().max() < 1e-5


def test_users_are_found_the_better_the_longer_and_training_follows(task, tmp_path):
    settings = tiny_settings()
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, pretrain=40, epochs=1))
    run = Trainer(task, settings, tmp_path)
    kept = run.run()
    losses = json.loads((tmp_path / "pretrain.json").read_text())
    assert len(losses) == 40
    assert losses[-1] < 0.8 * losses[0]
    assert len(kept.history) == 1
