"""The command that holds an update against a training from scratch, on the smallest world: it says what it saw, bad news too."""

import dataclasses
import json
import time

import numpy as np
import pytest
import torch
from tiny_run import TinyRun, tiny_settings
from typer.testing import CliRunner

from model.benchmark import renewal
from model.benchmark.page import section
from model.benchmark.results import read_updates
from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.cli import app
from model.data.dataset import read_dataset
from model.intervals import UserBootstrap
from model.ledger import read_ledger
from model.nets import Longwave
from model.task import load_task
from model.update.run import refresh

TOML = (
    "[train]\nepochs = 3\nleast_steps = 0\nlanes = 16\nchunk = 32\nwarmup_steps = 5\nlearning_rate = 5e-3\nthreads = 1\n"
    "[model]\nwidth = 16\nheads = 2\nring = 8\nring_width = 8\naccumulator_width = 8\nrepeats = 16\nrepeat_hidden = 8\n"
)


def call(tiny_run: TinyRun, place, *options, toml=TOML):
    (place / "mine.toml").write_text(toml)
    words = ["measure-update", tiny_run.data, "--preset", place / "mine.toml", "--out", place / "out", "--work", place / "work"]
    return CliRunner().invoke(app, [*map(str, words), "--new", "0.3", *options])


def read(place, part="valid"):
    return json.loads((place / "out" / "update" / f"data-mine-{part}-0-new-30.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_run: TinyRun):
    """A folder with trained runs and the result of one call. What is called there again must not train."""
    folder = tmp_path_factory.mktemp("update")
    result = call(tiny_run, folder)
    assert result.exit_code == 0, result.output
    return folder


def test_all_three_are_asked_the_same_and_what_they_learned_ends_where_it_should(place):
    found = read(place)
    moments = found["moments_ms"]
    assert moments["old_learns_until"] < moments["new_from"] < moments["asked_from"] < moments["asked_until"]
    assert set(found["asked"]["models"]) == {"old", "updated", "retrained"}
    assert found["asked"]["queries"] > 20
    k = found["asked"]["k"]
    ndcg = {model: metrics[f"ndcg@{k}"]["mean"] for model, metrics in found["asked"]["models"].items()}
    for model, ratio in found["asked"]["times_retrained"].items():
        assert ratio["mean"] == pytest.approx(ndcg[model] / ndcg["retrained"], rel=1e-4)
        assert ratio["low"] <= ratio["mean"] <= ratio["high"]
    assert 1 <= found["epochs"]["kept"] <= found["epochs"]["full_training"] <= 3
    events = found["update"]["events"]
    assert events["new"] / sum(events.values()) == pytest.approx(0.3, abs=0.05)
    assert found["served"] == ("updated" if found["update"]["gate"]["after"] >= found["update"]["gate"]["before"] else "old")
    assert not (place / "out" / "ledger.jsonl").exists()  # the test part was not looked at


def test_the_share_is_of_what_was_measured(place):
    found = read(place)
    for which, training in (("of_full_training", "full_training"), ("of_retraining", "retraining")):
        for clock in ("wall", "cpu"):
            seconds = found["seconds"]
            assert found["share"][which][clock] == pytest.approx(seconds["update"][clock] / seconds[training][clock], rel=1e-4)


def test_a_worse_and_slower_update_is_seen(tiny_run, place, monkeypatch):
    before = read(place)

    def spoiled(*arguments):
        refreshed = refresh(*arguments)
        until = time.process_time() + 2 * before["seconds"]["update"]["cpu"]  # the first one also warmed up
        while time.process_time() < until:
            pass
        with torch.no_grad():
            bias = refreshed.checkpoint.net.item.bias
            bias += 3 * torch.randn(bias.shape, generator=torch.Generator().manual_seed(0))
        return refreshed

    trained = (place / "work").rglob("checkpoint.pt")
    stamps = {path: path.stat().st_mtime_ns for path in trained}
    assert len(stamps) == 2
    monkeypatch.setattr(renewal, "refresh", spoiled)
    assert call(tiny_run, place, "--out", str(place / "spoiled")).exit_code == 0
    after = json.loads((place / "spoiled" / "update" / "data-mine-valid-0-new-30.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # what is trained is kept
    times = after["asked"]["times_retrained"]
    assert times["updated"]["high"] < 0.9
    assert times["old"] == before["asked"]["times_retrained"]["old"]
    assert after["served"] == "old"
    assert after["asked"]["updated_minus_old"]["high"] < 0
    assert after["seconds"]["update"]["cpu"] > 1.5 * before["seconds"]["update"]["cpu"]
    assert after["share"]["of_full_training"]["cpu"] > before["share"]["of_full_training"]["cpu"]
    (result,) = read_updates(place / "spoiled")
    text = section([], "figures", [], updates=[result])
    assert "refuses it" in text
    assert f"{times['updated']['mean']:.4f} [{times['updated']['low']:.4f}, {times['updated']['high']:.4f}]" in text


def test_the_page_has_a_line_for_each_seed_and_their_mean(place):
    found = read(place)
    other = json.loads(json.dumps(found | {"seed": 1}))
    other["share"]["of_full_training"]["cpu"] = found["share"]["of_full_training"]["cpu"] + 0.02
    lines = section([], "figures", [], updates=[found, other]).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows] == ["seed", "---", "0", "1", "mean"]
    assert len({len(row) for row in rows}) == 1
    assert rows[-1][-2] == f"{found['share']['of_full_training']['cpu'] + 0.01:.1%}"
    assert "### data, an update on 30% new events, preset mine, valid part" in lines


def test_a_refit_keeps_the_average_of_its_weights_as_any_training_does(tiny_run: TinyRun, tmp_path):
    settings = tiny_settings()
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, average=0.9))
    refit = renewal.Refit(load_task(tiny_run.data, settings.data), settings, tmp_path, 1)
    kept = refit.run().net.state_dict()
    for name, weights in refit.average.module.state_dict().items():
        assert torch.equal(kept[name], weights), name


def test_what_is_being_trained_anew_is_not_taken_for_finished(tiny_run: TinyRun, tmp_path, monkeypatch):
    dataset = read_dataset(tiny_run.data)
    (tmp_path / renewal.COST).write_text('{"wall": 1.0, "cpu": 1.0}')
    task = load_task(tiny_run.data, tiny_settings().data)
    net = Longwave(task.model_config(tiny_settings()))
    kept = Checkpoint(net, tiny_settings().as_dict() | {"model": {"width": 8}}, [], task.data, {}, None, 0, [], {})
    save_checkpoint(kept, tmp_path / "checkpoint.pt")

    def killed(folder):
        (folder / "checkpoint.pt").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(renewal, "remove_run", killed)
    with pytest.raises(KeyboardInterrupt):
        renewal.train_old(dataset, tiny_settings(), 0.87, 0.3, tmp_path)
    assert list(tmp_path.iterdir()) == []  # a cost without its checkpoint would be an error for ever


def test_a_finished_training_from_before_a_setting_is_kept_and_one_on_another_device_is_not(tiny_run: TinyRun, tmp_path):
    dataset, once = read_dataset(tiny_run.data), dataclasses.replace(tiny_settings().train, epochs=1)
    settings = dataclasses.replace(tiny_settings(), train=once)
    cost = renewal.train_old(dataset, settings, 0.87, 0.3, tmp_path).cost
    older = load_checkpoint(tmp_path / "checkpoint.pt")
    del older.settings["train"]["foreign"]
    save_checkpoint(older, tmp_path / "checkpoint.pt")
    assert renewal.train_old(dataset, settings, 0.87, 0.3, tmp_path).cost == cost
    # Its cost would be no measure for an update there.
    elsewhere = dataclasses.replace(settings, train=dataclasses.replace(once, device="cpu"))
    assert renewal.train_old(dataset, elsewhere, 0.87, 0.3, tmp_path).cost != cost


def test_a_look_at_the_test_part_is_noted(tiny_run, place):
    result = call(tiny_run, place, "--part", "test", toml=TOML.replace("epochs = 3", "epochs = 1"))
    assert result.exit_code == 0, result.output
    (line,) = read_ledger(place / "out" / "ledger.jsonl")
    found = read(place, "test")
    assert (line["command"], line["part"], line["queries"]) == ("measure-update", "test", found["asked"]["queries"])
    assert set(line["metrics"]) == {"old", "updated", "retrained"}


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--part", "train"), "part must be one of valid, test"), (("--new", "0.7"), "new must be a share")],
)
def test_what_cannot_be_measured_is_one_line(tiny_run, place, options, said):
    result = call(tiny_run, place, *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_too_little_that_is_new_is_said_before_anything_is_trained(tiny_run, tmp_path):
    result = call(tiny_run, tmp_path, "--new", "0.02")
    assert result.exit_code == 2
    assert "too little is new" in result.stderr
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_a_ratio_is_of_means_and_its_interval_of_the_same_users():
    rng = np.random.default_rng(0)
    user, second = np.repeat(np.arange(200), 3), rng.random(600)
    bootstrap = UserBootstrap(user)
    same = bootstrap.ratio(0.9 * second, second)
    assert dataclasses.astuple(same) == pytest.approx((0.9, 0.9, 0.9))
    first = second + 0.1 * rng.standard_normal(600)
    ratio, difference = bootstrap.ratio(first, second), bootstrap.difference(first, second)
    assert ratio.mean == pytest.approx(difference.ratio)
    assert ratio.low < ratio.mean < ratio.high
    assert (ratio.low > 1) == (difference.low > 0)
    assert np.isnan(bootstrap.ratio(first, 0 * second).mean)
    first[0] = np.nan  # left out of both
    assert bootstrap.ratio(first, second).mean == pytest.approx(first[1:].mean() / second[1:].mean())
