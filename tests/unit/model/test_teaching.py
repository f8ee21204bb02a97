"""Distillation: what teachers are asked, what is kept of it, and what a student's loss makes of that."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from tiny_run import tiny_settings
from typer.testing import CliRunner

from model import losses
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.cli import app
from model.loop import CHECKPOINT
from model.losses import Soft, basket_cross_entropy, basket_softmax
from model.predict import score_blocks
from model.seen import NEVER, Seen
from model.settings import ConfigError, DataSettings, load_settings
from model.task import load_task
from model.teach import teach
from model.teacher import Teacher, TeacherError
from model.train import Trainer

TOP = 12


@pytest.fixture(scope="module")
def task(tiny_run):
    checkpoint = load_checkpoint(tiny_run.run / CHECKPOINT)
    return load_task(tiny_run.data, DataSettings(**checkpoint.settings["data"]), checkpoint.item_text.numpy())


@pytest.fixture(scope="module")
def taught(tiny_run, tmp_path_factory):
    """The folder of what the tiny run says, asked twice over: the mean of two equal teachers is that of one."""
    folder = tmp_path_factory.mktemp("taught")
    words = ["teach", tiny_run.data, tiny_run.run, tiny_run.run, "--out", folder, "--top", TOP, "--temperature", 2]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return folder


def test_the_answers_kept_are_the_best_of_the_teachers_softmax(tiny_run, task, taught):
    net = load_checkpoint(tiny_run.run / CHECKPOINT).net
    scores = torch.cat(list(score_blocks(net, task.inputs, task.seq, task.split, task.train_queries)))
    best = torch.topk(torch.softmax(scores / 2, 1), TOP)
    some = torch.arange(0, len(task.train_queries), 7)
    told = Teacher(taught, task).at(some, 0.3)
    assert told.weight == 0.3
    torch.testing.assert_close(told.share.sum(1), torch.ones(len(some)))
    torch.testing.assert_close(told.share, (best.values / best.values.sum(1, keepdim=True))[some], atol=1e-3, rtol=0)
    assert (told.rows == best.indices[some]).float().mean() > 0.99  # but for ties


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_against_the_mixture_gradients_included(smoothing, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK", 3)
    rng = torch.Generator().manual_seed(0)
    known, matrix, bias = (torch.randn(s, generator=rng, dtype=torch.float64, requires_grad=True) for s in [(8, 4), (6, 4), (6,)])
    owner, target = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 2, 1, 4, 3, 5, 2, 1, 4])
    rows = torch.stack([torch.randperm(6, generator=rng)[:3] for _ in range(8)])
    soft = Soft(rows, torch.softmax(torch.randn(8, 3, generator=rng, dtype=torch.float64), 1), 0.7)
    came = torch.zeros(8, 6, dtype=torch.float64)
    came[owner, target] = 1
    came = (1 - smoothing) * came / came.sum(1, keepdim=True) + smoothing / 6
    wanted = 0.3 * came + 0.7 * torch.zeros(8, 6, dtype=torch.float64).scatter(1, rows, soft.share)
    plain = torch.nn.functional.cross_entropy(known @ matrix.t() + bias, wanted)
    whole = basket_cross_entropy(known @ matrix.t() + bias, owner, target, smoothing, soft)
    blocked = basket_softmax(known, matrix, bias, owner, target, smoothing, soft=soft)
    for loss in (whole, blocked):
        torch.testing.assert_close(loss, plain)
        for one, other in zip(
            *(torch.autograd.grad(each, [known, matrix, bias], retain_graph=True) for each in (loss, plain)), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_where_seen_items_play_no_part_teachers_are_not_asked_of_them():
    first = torch.full((1, 5), NEVER)
    first[0, 3] = 0
    seen = Seen(first, torch.zeros(2, dtype=torch.int64), torch.tensor([1, 1]))
    known, matrix = torch.randn(2, 3, requires_grad=True), torch.randn(5, 3)
    soft = Soft(torch.tensor([[0, 3], [2, 3]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 1.0)  # 3 fills up, with nothing
    owner, target = torch.arange(2), torch.tensor([1, 4])
    told = basket_softmax(known, matrix, torch.zeros(5), owner, target, seen=seen, soft=soft)
    same = basket_softmax(known, matrix, torch.zeros(5), owner, torch.tensor([0, 2]), seen=seen)
    free = torch.tensor([0, 1, 2, 4])
    torch.testing.assert_close(told, torch.nn.functional.cross_entropy((known @ matrix.t())[:, free], torch.tensor([0, 2])))
    torch.testing.assert_close(told, same)


def test_a_student_of_its_teacher_alone_comes_close_to_it(tiny_run, task, taught, tmp_path):
    settings = tiny_settings(tiny_run.encoder)
    train = dataclasses.replace(settings.train, teacher=str(taught), distil=1.0, epochs=2)
    student = Trainer(task, dataclasses.replace(settings, train=train), tmp_path)
    queries = torch.arange(len(task.train_queries))
    told = Teacher(taught, task).at(queries, 1.0)

    def agreement():
        student.net.eval()
        scores = torch.cat(list(score_blocks(student.net, task.inputs, task.seq, task.split, task.train_queries)))
        return float((torch.log_softmax(scores, 1).gather(1, told.rows) * told.share).sum(1).mean())

    before = agreement()
    student.run()
    assert agreement() > before + 0.2


def test_teachers_of_other_questions_are_refused(tiny_run, taught, tmp_path):
    other = load_task(tiny_run.data, DataSettings(protocol="loo"))
    with pytest.raises(TeacherError, match="other questions"):
        Teacher(taught, other)
    with pytest.raises(TeacherError, match="not what `longwave-train teach` wrote"):
        Teacher(tmp_path, other)
    with pytest.raises(TeacherError, match="--top must be at least 1"):
        teach(tiny_run.data, [tiny_run.run], tmp_path, top=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-320, float("inf"), float("nan")])
def test_a_temperature_that_leaves_no_shares_is_refused_and_nothing_is_written(tiny_run, tmp_path, temperature):
    with pytest.raises(TeacherError, match=r"--temperature must be in 0\.001\.\.1000"):
        teach(tiny_run.data, [tiny_run.run], tmp_path / "taught", top=TOP, temperature=temperature)
    assert not (tmp_path / "taught").exists()


def test_a_teaching_that_was_killed_leaves_no_answers_of_two(tiny_run, task, taught, tmp_path, monkeypatch):
    folder = tmp_path / "taught"
    shutil.copytree(taught, folder)
    written = []

    def killed(file, array):
        if written:
            raise KeyboardInterrupt
        written.append(array)
        np.lib.format.write_array(file, array)

    monkeypatch.setattr(np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        teach(tiny_run.data, [tiny_run.run], folder, top=TOP, temperature=0.5)
    with pytest.raises(TeacherError, match="not what `longwave-train teach` wrote"):
        Teacher(folder, task)
    assert {path.name for path in folder.iterdir()} == {"rows.npy", "shares.npy"}


def test_a_student_goes_on_with_the_answers_that_it_began_with(tiny_run, task, taught, tmp_path):
    folder = tmp_path / "taught"
    shutil.copytree(taught, folder)
    opened, queries = Teacher(folder, task), torch.arange(20)
    before = opened.at(queries, 1.0)
    teach(tiny_run.data, [tiny_run.run], folder, top=TOP, temperature=0.5)
    torch.testing.assert_close(opened.at(queries, 1.0), before, rtol=0, atol=0)
    assert not torch.equal(Teacher(folder, task).at(queries, 1.0).share, before.share)


def test_the_first_item_is_right_if_it_is_any_of_the_basket(task, taught):
    queries = task.train_queries
    first = np.load(taught / "rows.npy")[:, 0]
    right = [first[q] in queries.targets(q) for q in range(len(queries))]
    assert np.diff(queries.target_offsets).max() > 1
    assert json.loads((taught / "teacher.json").read_text())["right"] == pytest.approx(np.mean(right))


def test_a_damaged_answer_is_refused(task, taught, tmp_path):
    for name in ("teacher.json", "shares.npy"):
        (tmp_path / name).write_bytes((taught / name).read_bytes())
    np.save(tmp_path / "rows.npy", np.zeros((3, TOP), np.uint16))
    with pytest.raises(TeacherError, match="do not fit"):
        Teacher(tmp_path, task)


def test_a_teacher_beside_sampled_softmax_is_refused(tmp_path):
    (tmp_path / "mine.toml").write_text('[train]\nteacher = "said"\nnegatives = 10\n')
    with pytest.raises(ConfigError, match=r"train\.teacher must be"):
        load_settings(tmp_path / "mine.toml")


def test_a_student_does_not_go_on_with_a_teacher_that_says_something_else_by_now(task, taught, tmp_path):
    said = shutil.copytree(taught, tmp_path / "said")

    def student():
        settings = tiny_settings()
        return Trainer(
            task, dataclasses.replace(settings, train=dataclasses.replace(settings.train, teacher=str(said))), tmp_path
        )

    first = student()
    first.epoch = 1
    first._keep(first._kept(first._resumable()))
    assert student().resume()
    rows = np.load(said / "rows.npy")
    np.save(said / "rows.npy", rows[:, ::-1])
    with pytest.raises(CheckpointError, match=r"learned from another teaching than .*said has now"):
        student().resume()
    np.save(said / "rows.npy", rows)
    assert student().resume()
    # A run of before, which does not say what it was taught, goes on.
    stored = load_checkpoint(tmp_path / CHECKPOINT)
    save_checkpoint(
        dataclasses.replace(stored, data={k: v for k, v in stored.data.items() if k != "teacher"}), tmp_path / CHECKPOINT
    )
    np.save(said / "rows.npy", rows[:, ::-1])
    assert student().resume()
