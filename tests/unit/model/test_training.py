"""Training on the smallest world: it learns, it repeats, and a killed run goes on as if nothing had happened."""

import dataclasses
import errno
import os

import numpy as np
import pytest
import torch
from tiny_run import TinyRun, tiny_settings
from torch.utils.tensorboard import SummaryWriter
from typer.testing import CliRunner

from model import loop
from model.baselines.popularity import Popularity
from model.baselines.recent_popularity import RecentPopularity
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.cli import app
from model.data.splits import select
from model.data.synthetic import synthetic_world
from model.distributed import Group
from model.loop import BOARD, CHECKPOINT, TrainingError
from model.metrics import ndcg
from model.replay import replay
from model.settings import DataSettings
from model.task import make_task
from model.train import FEWEST_LANES, Trainer


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def task():
    return make_task(synthetic_world("tiny").dataset, DataSettings())


@pytest.fixture
def trainer(task, tmp_path):
    """Makes trainers of small runs: `trainer("name", epochs=2)`."""

    def make(name="run", **changes):
        settings = tiny_settings()
        return Trainer(task, dataclasses.replace(settings, train=dataclasses.replace(settings.train, **changes)), tmp_path / name)

    return make


def weights(checkpoint):
    return checkpoint.net.state_dict()


def assert_bitwise(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def figures(checkpoint):
    return [(epoch["loss"], epoch["valid_ndcg"]) for epoch in checkpoint.history]


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_killed_within_an_epoch_and_resumed_gives_the_weights_of_one_that_never_stopped(trainer, average):
    whole = trainer("whole", epochs=3, average=average).run()

    def kill(progress):
        if progress.epoch == 1 and progress.done > 0.3:
            raise KilledError

    with pytest.raises(KilledError):
        trainer("killed", epochs=3, average=average).run(kill)
    torch.manual_seed(99)  # whatever happened since
    resumed = trainer("killed", epochs=3, average=average)
    assert resumed.resume()
    assert resumed.epoch == 1
    found = resumed.run()
    assert_bitwise(weights(whole), weights(found))
    assert figures(whole) == figures(found)
    assert_bitwise(weights(found), weights(load_checkpoint(resumed.folder / CHECKPOINT)))


def test_the_average_of_the_weights_is_what_is_validated_and_kept(trainer, monkeypatch):
    run = trainer(epochs=1, average=0.8)
    averaged, validated = [], []
    step, validate = run.step, run._validate

    def follow(batch):
        loss = step(batch)
        now = run.net.item.id.weight.detach().clone()
        averaged.append(now if not averaged else 0.8 * averaged[-1] + 0.2 * now)
        return loss

    def look():
        validated.append(run.net.item.id.weight.detach().clone())
        return validate()

    monkeypatch.setattr(run, "step", follow)
    monkeypatch.setattr(run, "_validate", look)
    final = run.run()
    torch.testing.assert_close(validated[0], averaged[-1])
    assert torch.equal(weights(final)["item.id.weight"], validated[0])


def test_a_process_that_has_no_validation_query_goes_by_the_others(trainer, monkeypatch):
    class Second(Group):
        """The second of two processes, whose first one has the only query."""

        def wait(self):
            pass

        def total(self, values):
            return values + torch.tensor([0.25, 1.0], dtype=values.dtype)

        def average(self, parameters, loss, weight):
            return loss, weight

    monkeypatch.setattr(loop, "group", lambda: Second(1, 2))
    found = trainer(epochs=1, valid_queries=1).run()
    assert [epoch["valid_ndcg"] for epoch in found.history] == [0.25]


def test_the_seed_decides_the_weights(trainer):
    first, same, other = (trainer(name, epochs=1, seed=seed).run() for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert_bitwise(weights(first), weights(same))
    assert not torch.equal(weights(first)["item.id.weight"], weights(other)["item.id.weight"])


def test_training_stops_when_validation_no_longer_improves_and_keeps_the_best_weights(trainer, monkeypatch):
    run = trainer(epochs=9, patience=2)
    course, seen = iter([0.3, 0.5, 0.4, 0.2, 0.9]), []

    def validate(self):
        seen.append({name: tensor.clone() for name, tensor in self.net.state_dict().items()})
        return next(course)

    monkeypatch.setattr(Trainer, "_validate", validate)
    final = run.run()
    assert [epoch["valid_ndcg"] for epoch in final.history] == [0.3, 0.5, 0.4, 0.2]
    assert_bitwise(weights(final), seen[1])
    assert not torch.equal(seen[1]["item.id.weight"], seen[3]["item.id.weight"])
    assert final.training == {}


def test_of_few_events_a_step_has_a_half_of_the_lanes_or_a_half_of_these(trainer):
    asked = trainer(epochs=2, lanes=32)
    steps = asked.steps_per_epoch
    assert asked.batch == 32
    assert trainer(epochs=2, lanes=32, least_steps=2 * steps).batch == 32
    half = trainer(epochs=2, lanes=32, least_steps=2 * steps + 1)
    assert half.batch == 16
    assert 2 * half.steps_per_epoch > 2 * steps
    fewest = trainer(epochs=2, lanes=32, least_steps=1_000_000)
    assert fewest.batch == FEWEST_LANES == 8
    assert trainer(epochs=2, lanes=12, least_steps=1_000_000).batch == 12  # a half would be below
    many = {"epochs": 2, "lanes": 4 * fewest.task.seq.users, "chunk": 512}
    more = trainer(**many, least_steps=2 * trainer(**many).steps_per_epoch + 1)
    assert more.batch < fewest.task.seq.users  # a half of these lanes would not make more steps
    batches = list(fewest.batches(np.random.default_rng(fewest.train.seed)))
    assert len(batches) == fewest.steps_per_epoch
    assert max(batch.rows.size for batch in batches) <= 8 * fewest.train.chunk
    assert {epoch["batch"] for epoch in fewest.run().history} == {8}
    assert fewest.optimizer.param_groups[0]["lr"] < 1e-2 * fewest.train.learning_rate  # the rate's course is that of all steps


def test_a_run_with_fewer_lanes_that_was_killed_and_resumed_is_the_same(trainer):
    few = {"epochs": 2, "least_steps": 1_000_000}
    whole = trainer("whole", **few).run()

    def kill(progress):
        if progress.epoch == 1:
            raise KilledError

    with pytest.raises(KilledError):
        trainer("killed", **few).run(kill)
    resumed = trainer("killed", **few)
    assert resumed.resume()
    assert_bitwise(weights(whole), weights(resumed.run()))


def test_a_run_from_before_there_were_least_steps_had_none(trainer):
    done = trainer(epochs=1).run()
    del done.settings["train"]["least_steps"]
    save_checkpoint(done, trainer().folder / CHECKPOINT)
    again = trainer(epochs=1)
    again.resume()
    assert again.finished is not None
    with pytest.raises(CheckpointError, match=r"other data or settings \(train\.least_steps\)"):
        trainer(epochs=1, least_steps=800).resume()


def test_a_finished_run_is_not_taken_up_again_nor_one_of_other_settings(trainer):
    assert not trainer(epochs=1).resume()  # nothing there yet
    trainer(epochs=1).run()
    assert not trainer(epochs=1).resume()
    with pytest.raises(CheckpointError, match="other data or settings"):
        trainer(epochs=2).resume()


def test_a_finished_run_is_known_as_such_and_looking_at_it_draws_no_random_number(trainer):
    done = trainer(epochs=1).run()
    again = trainer(epochs=1)
    before = torch.get_rng_state()
    assert not again.resume()
    assert torch.equal(torch.get_rng_state(), before)
    assert again.finished is not None
    assert_bitwise(weights(done), weights(again.finished))


def test_a_task_without_a_question_to_validate_on_is_refused(task, tmp_path):
    empty = dataclasses.replace(task, split=dataclasses.replace(task.split, valid=select(task.split.valid, np.arange(0))))
    with pytest.raises(TrainingError, match=r"validation part .* asks nothing"):
        Trainer(empty, tiny_settings(), tmp_path / "run")


@pytest.fixture
def train(tiny_run: TinyRun, tmp_path):
    """The command on the tiny world: `train("--resume")`; how it went, and the checkpoint after it."""
    config = tmp_path / "mine.toml"
    config.write_text(
        "[train]\nepochs = 1\nleast_steps = 0\nthreads = 1\n[model]\nwidth = 16\nring = 4\nring_width = 8\nrepeats = 4\n"
    )

    def call(*options):
        words = ["train", str(tiny_run.data), "--out", str(tmp_path / "run"), "--config", str(config), *options]
        return CliRunner().invoke(app, words), (tmp_path / "run" / CHECKPOINT)

    return call


def test_the_command_says_that_steps_are_smaller_than_asked_for(train, tmp_path):
    config = tmp_path / "mine.toml"
    config.write_text(config.read_text().replace("least_steps = 0", "least_steps = 100"))
    done, _ = train()
    assert done.exit_code == 0, done.output
    assert "few events: 8 lanes instead of 64, for more steps (train.least_steps)" in done.output


@pytest.mark.parametrize("where", ["there", "there/run"])
@pytest.mark.parametrize("command", ["train", "evaluate", "rehearse"])
def test_a_place_that_is_a_file_or_below_one_is_refused_before_the_work(tiny_run: TinyRun, tmp_path, command, where):
    (tmp_path / "there").write_text("a file")
    first = [tiny_run.data] if command == "train" else [tiny_run.run, "--data", tiny_run.data]
    noted = ["--ledger", tmp_path / "ledger.jsonl"] if command == "evaluate" else []
    result = CliRunner().invoke(app, [str(word) for word in (command, *first, "--out", tmp_path / where, *noted)])
    assert result.exit_code == 2, result.output
    assert result.stderr.strip() == f"error: {tmp_path / 'there'}: a file, expected a folder"
    if noted:
        assert (tmp_path / "ledger.jsonl").read_text() == ""


def test_a_finished_run_is_neither_resumed_nor_overwritten_unasked(train):
    result, checkpoint = train("--resume")  # nothing there yet: a new run
    assert result.exit_code == 0
    trained = checkpoint.read_bytes()
    modified = checkpoint.stat().st_mtime_ns
    result, _ = train("--resume")
    assert result.exit_code == 0
    assert "already finished after 1 epochs" in result.stdout
    result, _ = train()
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in ("holds a run", "--resume", "--overwrite"))
    result, _ = train("--resume", "--overwrite")
    assert result.exit_code == 2
    assert (checkpoint.read_bytes(), checkpoint.stat().st_mtime_ns) == (trained, modified)
    result, _ = train("--overwrite")
    assert result.exit_code == 0
    assert checkpoint.stat().st_mtime_ns > modified
    assert len(list((checkpoint.parent / BOARD).iterdir())) == 1


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_what_killed_processes_had_written_of_checkpoints_is_cleared_away(train, tmp_path, option):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".{CHECKPOINT}.123.tmp").write_bytes(b"half")
    (tmp_path / "run" / "checkpoint.456.tmp").write_bytes(b"half")  # as it was called before
    result, _ = train(option)
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [CHECKPOINT, BOARD]


def test_a_log_for_which_the_disk_is_too_small_ends_the_run_in_one_line(train, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    result, checkpoint = train()
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path / 'run' / BOARD}: cannot be written: No space left on device\n"
    assert not checkpoint.exists()


def test_items_alone_are_all_that_is_read_where_that_is_asked_for():
    world = synthetic_world("tiny").dataset
    everything = make_task(world, DataSettings())
    alone = make_task(world, DataSettings(items_only=True))
    assert everything.seq.attributes.shape[1] > 0
    assert everything.seq.text
    config = alone.model_config(tiny_settings())
    assert (config.attribute_sizes, config.feature_width, config.number_edges) == ((), 0, ((), (), ()))
    assert np.isnan(alone.seq.numbers).all()
    assert not alone.seq.text
    for field in ("item", "type", "time", "platform"):
        np.testing.assert_array_equal(getattr(alone.seq, field), getattr(everything.seq, field))


def test_a_loss_that_is_no_number_ends_the_run_with_advice(trainer):
    run = trainer(epochs=1)
    with torch.no_grad():
        run.net.item.bias[0] = torch.nan
    with pytest.raises(TrainingError, match=r"train\.learning_rate"):
        run.run()


def test_what_is_learned_beats_popularity_on_the_validation_part(tiny_run: TinyRun, task):
    valid = task.split.valid
    baselines = [Popularity(), RecentPopularity()]
    lists = replay(task.seq, valid, baselines, known=task.split.train_end, k=task.split.k)
    popular = max(float(np.nanmean(ndcg(ranked, valid, task.split.k))) for ranked in lists.values())
    history = load_checkpoint(tiny_run.run / CHECKPOINT).history
    assert max(epoch["valid_ndcg"] for epoch in history) > 1.1 * popular
    assert history[-1]["loss"] < history[0]["loss"] - 0.1


@pytest.mark.parametrize("protocol", ["basket", "time", "loo"])
def test_the_loss_of_a_step_is_that_of_the_scores_that_rank(protocol, tmp_path):
    settings = tiny_settings()
    train, model = dataclasses.replace(settings.train, precision="float32"), settings.model | {"interests": 1}
    settings = dataclasses.replace(settings, data=DataSettings(protocol=protocol), train=train, model=model)
    run = Trainer(make_task(synthetic_world("tiny").dataset, settings.data), settings, tmp_path)
    run.net.eval()  # no dropout
    batches = list(run.batches(np.random.default_rng(0)))[:3]
    blocked = [float(run._loss(batch).detach()) for batch in batches]
    run.begin_epoch()
    # With more than one interest the scores are made whole.
    object.__setattr__(run.net.config, "interests", 2)
    plain = [float(run._loss(batch).detach()) for batch in batches]
    assert blocked == pytest.approx(plain, rel=1e-5)
