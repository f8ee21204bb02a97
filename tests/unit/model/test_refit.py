"""A model that is chosen on a validation part, and then learns that part, too."""

import dataclasses

import pytest
import torch
from tiny_run import TinyRun, tiny_settings
from typer.testing import CliRunner

from model.assess import assess
from model.checkpoint import CheckpointError, load_checkpoint
from model.cli import app
from model.compare import compare
from model.data.dataset import read_dataset
from model.data.synthetic import synthetic_world
from model.history import best_epoch, best_ndcg
from model.loop import CHECKPOINT
from model.refit import CHOICE, train_run
from model.settings import ConfigError, DataSettings, load_settings
from model.task import make_task

NAN = float("nan")


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def dataset():
    return synthetic_world("tiny").dataset


@pytest.fixture(scope="module")
def settings():
    tiny = tiny_settings()
    return dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, epochs=2, refit=True))


@pytest.fixture(scope="module")
def run(dataset, settings, tmp_path_factory):
    """A folder with a finished run; do not write into it."""
    folder = tmp_path_factory.mktemp("refit")
    train_run(dataset, settings, folder)
    return folder


def test_it_learns_all_before_the_test_part_for_as_many_epochs_as_were_best(dataset, run):
    chosen, kept = load_checkpoint(run / CHOICE / CHECKPOINT), load_checkpoint(run / CHECKPOINT)
    assert chosen.settings["data"]["valid_quantile"] == 0.85
    assert kept.settings["data"]["valid_quantile"] == kept.settings["data"]["test_quantile"] == 0.9
    assert kept.settings["train"]["stop_after"] == len(kept.history) == best_epoch(chosen.history)
    assert best_ndcg(chosen.history) > 0
    assert best_ndcg(kept.history) is None
    before = make_task(dataset, DataSettings(**chosen.settings["data"]))
    whole = make_task(dataset, DataSettings(**kept.settings["data"]))
    assert len(whole.split.valid) == 0
    assert len(whole.train_queries) == len(before.train_queries) + len(before.split.valid)
    assert whole.train_queries.as_of.max() < whole.split.cut_ms == before.split.cut_ms
    assert kept.item_ids == whole.seq.item_ids


def test_a_run_killed_while_it_learns_anew_goes_on_to_the_same_weights(dataset, settings, run, tmp_path):
    chosen = []

    def kill(progress):
        if chosen and progress.done > 0.3:
            raise KilledError

    with pytest.raises(KilledError):
        train_run(dataset, settings, tmp_path, say=chosen.append, report=kill)
    found = train_run(dataset, settings, tmp_path, resume=True)
    whole = load_checkpoint(run / CHECKPOINT)
    assert all(torch.equal(tensor, found.net.state_dict()[name]) for name, tensor in whole.net.state_dict().items())


def test_it_is_evaluated_beside_baselines_that_were_chosen_before_the_test_part(tiny_run: TinyRun, settings, tmp_path):
    train_run(read_dataset(tiny_run.data), settings, tmp_path / "run")
    report = assess(tmp_path / "run", tiny_run.data)
    assert report.valid_cut_ms == report.cut_ms
    assert {"longwave", "own frequency", "co-transition"} <= report.models.keys()
    with pytest.raises(CheckpointError, match="no validation part"):
        compare(read_dataset(tiny_run.data), [tmp_path / "run"])


def test_leave_one_out_asks_what_would_be_learned(tmp_path, tiny_run: TinyRun):
    config = tmp_path / "mine.toml"
    config.write_text('[data]\nprotocol = "loo"\n[train]\nrefit = true\n')
    with pytest.raises(ConfigError, match=r"train\.refit must be false"):
        load_settings(str(config))
    untimed = dataclasses.replace(tiny_settings(), train=dataclasses.replace(tiny_settings().train, refit=True))
    untimed = dataclasses.replace(untimed, data=DataSettings(protocol="loo"))
    with pytest.raises(ConfigError, match=r"train\.refit must be false"):
        train_run(synthetic_world("tiny").dataset, untimed, tmp_path / "run")
    assert not (tmp_path / "run" / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[data]\nvalid_quantile = 0.95\n", "data.valid_quantile must be at most data.test_quantile"),
        ("[data]\nvalid_quantile = 0.9\n[train]\nrefit = true\n", "train.refit needs a validation part"),
        ('[train]\nrefit = true\nteacher = "taught"\n', "train.refit must be false with train.teacher"),
        ("[train]\nstop_after = -1\n", "train.stop_after must be"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, toml, said):
    (tmp_path / "mine.toml").write_text(toml)
    with pytest.raises(ConfigError, match=said):
        load_settings(str(tmp_path / "mine.toml"))


def test_without_a_validation_part_all_epochs_are_trained_and_the_last_weights_kept(tiny_run: TinyRun, tmp_path):
    (tmp_path / "mine.toml").write_text(
        "[data]\nvalid_quantile = 0.9\n[train]\nepochs = 4\npatience = 1\nstop_after = 3\nthreads = 1\n"
        "[model]\nwidth = 16\nring = 4\nring_width = 8\nrepeats = 4\n"
    )
    words = ["train", str(tiny_run.data), "--out", str(tmp_path / "run"), "--config", str(tmp_path / "mine.toml")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "3 epochs -> " in result.stdout
    assert "nan" not in result.stdout


def test_the_best_epoch_is_the_last_of_the_best_and_without_validation_the_last():
    course = [{"epoch": 1, "valid_ndcg": 0.2}, {"epoch": 2, "valid_ndcg": 0.3}, {"epoch": 3, "valid_ndcg": 0.3}]
    assert (best_epoch(course), best_ndcg(course)) == (3, 0.3)
    assert (best_epoch([*course, {"epoch": 4, "valid_ndcg": NAN}]), best_epoch([{"epoch": 1, "valid_ndcg": NAN}])) == (3, 1)
    assert (best_epoch([]), best_ndcg([])) == (0, None)
