"""The trainer's configuration files."""

import dataclasses
import tomllib

import pytest

from model.nets import ModelConfig
from model.settings import PRESETS, ConfigError, DataSettings, TrainSettings, load_settings, model_defaults


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_small_preset_holds_every_key_with_its_default_and_no_other():
    tables = tomllib.loads((PRESETS / "small.toml").read_text(encoding="utf-8"))
    defaults = {
        "data": dataclasses.asdict(DataSettings()),
        "train": dataclasses.asdict(TrainSettings()),
        "model": {key: list(value) if isinstance(value, tuple) else value for key, value in model_defaults().items()},
    }
    assert tables == defaults


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.toml")))
def test_every_preset_loads_by_name_and_builds_a_model(preset):
    settings = load_settings(preset)
    config = ModelConfig(items=3, event_types=1, **settings.model)
    assert config.width % config.heads == config.ring_width % config.heads == 0
    assert settings.train.epochs > 0


def test_the_demo_is_a_preset():
    assert (PRESETS / "demo.toml").exists()


def test_what_a_file_does_not_set_keeps_its_default(written):
    settings = load_settings(written("[train]\nepochs = 3\n[model]\nring = 4\nevent_half_lives = [1, 2.5]"))
    assert settings.train == TrainSettings(epochs=3)
    assert settings.data == DataSettings()
    assert settings.model == {"ring": 4, "event_half_lives": (1.0, 2.5)}


def test_a_whole_number_is_taken_where_a_fraction_is_meant(written):
    assert load_settings(written("[train]\nclip = 2")).train.clip == 2.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nepoch = 3", ["unknown key train.epoch", "epochs"]),
        ("[model]\nitems = 3", ["unknown key model.items"]),  # the data's matter
        ("[training]\nepochs = 3", ["unknown table [training]", "[train]"]),
        ("[train]\nepochs = 2.5", ["train.epochs must be of type int", "2.5"]),
        ("[train]\nepochs = true", ["train.epochs must be of type int", "True"]),
        ("[train]\nclip = true", ["train.clip must be of type float"]),
        ('[data]\ntest_quantile = "0.9"', ["data.test_quantile must be of type float", "'0.9'"]),
        ("[model]\nevent_half_lives = 3", ["model.event_half_lives must be a list of numbers", "3"]),
        ('[model]\ngap_edges_s = ["a"]', ["model.gap_edges_s must be a list of numbers"]),
        ("[model]\nquery_time = 1", ["model.query_time must be of type bool"]),
        ("epochs =", ["not TOML"]),
    ],
)
def test_what_cannot_be_used_is_named_with_its_file_and_key(written, text, words):
    path = written(text)
    with pytest.raises(ConfigError) as error:
        load_settings(path)
    assert all(word in str(error.value) for word in [str(path), *words]), error.value


def test_an_unknown_name_lists_the_presets():
    with pytest.raises(ConfigError, match=r"enormous: neither .* preset \(.*demo, .*small\)"):
        load_settings("enormous")
