"""The trainer's configuration files."""

import copy
import dataclasses
import tomllib

import pytest

from model.baselines.nets.checkpoint import described
from model.nets import ModelConfig
from model.settings import (
    ALLOWED,
    PRESETS,
    ConfigError,
    DataSettings,
    Gru4recSettings,
    SasrecSettings,
    TrainSettings,
    UpdateSettings,
    load_settings,
    model_defaults,
    that_decide,
)


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
        "update": dataclasses.asdict(UpdateSettings()),
        "sasrec": dataclasses.asdict(SasrecSettings()),
        "gru4rec": dataclasses.asdict(Gru4recSettings()),
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
        ("[training]\nepochs = 3", ["unknown table [training]", "[train]", "[sasrec]"]),
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nchunk = 0", ["train.chunk must be a whole number in 2..512, got 0"]),
        ("[train]\nchunk = 513", ["train.chunk", "513"]),
        ("[train]\nlanes = 0", ["train.lanes"]),
        ("[train]\nepochs = 0", ["train.epochs"]),
        ("[train]\npatience = 0", ["train.patience"]),
        ("[train]\nvalid_queries = 0", ["train.valid_queries"]),
        ("[train]\nwarmup_steps = -1", ["train.warmup_steps"]),
        ("[train]\nseed = -1", ["train.seed", "0..4294967295"]),
        ("[train]\nseed = 4294967296", ["train.seed"]),
        ("[train]\nthreads = -1", ["train.threads"]),
        ("[train]\nnegatives = 9\n[model]\ninterests = 2", ["train.negatives must be 0 where model.interests is above 1, got 9"]),
        ("[model]\ntransition = 6", ["model.transition must be divisible by the number of transition_decays (4), got 6"]),
        ("[model]\ntransition_decays = [0.5, 1.0]", ["model.transition_decays must be one or more different numbers"]),
        (
            "[model]\nkinship_decays = [0.5, 0.5]",
            ["model.kinship_decays must be different numbers in 0.000001..0.999999, or none"],
        ),
        ("[model]\nitem_dropout = 1.0", ["model.item_dropout must be at least 0 and below 1"]),
        ('[train]\nprecision = "half"', ["train.precision must be one of auto, float32, bfloat16, got 'half'"]),
        ("[train]\nlearning_rate = 0", ["train.learning_rate must be finite and above 0, got 0.0"]),
        ("[train]\ndirect_learning_rate = nan", ["train.direct_learning_rate", "nan"]),
        (f"[train]\nclip = 1{'0' * 400}", ["train.clip", "inf"]),
        ("[train]\nweight_decay = -0.1", ["train.weight_decay must be finite and not below 0"]),
        ("[train]\nsmoothing = 1.0", ["train.smoothing must be at least 0 and below 1"]),
        ("[model]\ndropout = 1.0", ["model.dropout"]),
        ("[model]\nid_dropout = 1.1", ["model.id_dropout must be in 0..1"]),
        ("[model]\nwidth = 3", ["model.width"]),
        ("[model]\nwidth = 66", ["model.width must be divisible by model.heads (4), got 66"]),
        ("[model]\nheads = 5\nwidth = 65", ["model.ring_width must be divisible by model.heads (5), got 32"]),
        ("[model]\nheads = 0", ["model.heads"]),
        ('[data]\nitems_only = true\ntext_encoder = "minilm"', ["data.text_encoder", "data.items_only"]),
        ("[sasrec]\nwidth = 65", ["sasrec.width must be divisible by sasrec.heads (2), got 65"]),
        ("[gru4rec]\nlength = 1", ["gru4rec.length must be a whole number in 2..1000000, got 1"]),
        ("[model]\nlayers = 0", ["model.layers"]),
        ("[model]\nring = 0", ["model.ring"]),
        ("[model]\nring_width = -4", ["model.ring_width"]),
        ("[model]\naccumulator_width = 0", ["model.accumulator_width"]),
        ("[model]\nrepeats = -1", ["model.repeats"]),
        ("[model]\nrepeat_hidden = 0", ["model.repeat_hidden"]),
        ("[model]\ninterests = 0", ["model.interests"]),
        ("[model]\nevent_half_lives = []", ["model.event_half_lives must be one or more numbers in 0.001..1e12, got []"]),
        ("[model]\ntime_half_lives_s = [0]", ["model.time_half_lives_s"]),
        ("[model]\nrepeat_half_lives_s = [inf]", ["model.repeat_half_lives_s"]),
        ("[model]\npopularity_half_lives_s = [-1]", ["model.popularity_half_lives_s"]),
        ("[model]\ngap_edges_s = [60, 1]", ["model.gap_edges_s", "ascending"]),
        ("[model]\ngap_edges_s = [0, 1]", ["model.gap_edges_s"]),
        # Finite and above 0, but not so in what the net has them in: float32, or whole milliseconds.
        (
            "[model]\ngap_edges_s = [1e-300, 1]",
            ["model.gap_edges_s must be one or more numbers in 0.001..1e12, ascending by 0.001"],
        ),
        ("[model]\ngap_edges_s = [1, 1e300]", ["model.gap_edges_s"]),
        ("[model]\ngap_edges_s = [1, 1.0001]", ["model.gap_edges_s", "ascending by 0.001 or more"]),
        ("[model]\nevent_half_lives = [1e-300]", ["model.event_half_lives must be one or more numbers in 0.001..1e12"]),
        ("[model]\ntime_half_lives_s = [1e-300]", ["model.time_half_lives_s"]),
        ("[model]\nrepeat_half_lives_s = [1e300]", ["model.repeat_half_lives_s"]),
        ("[model]\npopularity_half_lives_s = [1e-300]", ["model.popularity_half_lives_s"]),
        (
            "[model]\ntransition_decays = [1e-200]",
            ["model.transition_decays must be one or more different numbers in 0.000001.."],
        ),
        ("[model]\ntransition_decays = [0.5, 0.50000000001]", ["model.transition_decays"]),
        ("[model]\nkinship_decays = [1e-300]", ["model.kinship_decays"]),
        ("[model]\nkinship_decays = [0.9999999999]", ["model.kinship_decays"]),
        ('[data]\nprotocol = "random"', ["data.protocol must be one of auto, loo, time, basket, got 'random'"]),
        ("[data]\nmin_item_events = 0", ["data.min_item_events"]),
        ("[data]\nvalid_quantile = 0.0", ["data.valid_quantile must be above 0 and below 1"]),
        ("[data]\ntest_quantile = 0.8", ["data.valid_quantile must be below data.test_quantile (0.8), got 0.85"]),
        ("train = 3", ["train must be a table, got 3"]),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(written, text, words):
    path = written(text)
    with pytest.raises(ConfigError) as error:
        load_settings(path)
    assert all(word in str(error.value) for word in [str(path), *words]), error.value
    assert len(str(error.value).splitlines()) == 1


def test_every_number_of_a_configuration_has_its_bounds():
    kept = {
        "data": dataclasses.asdict(DataSettings()),
        "train": dataclasses.asdict(TrainSettings()),
        "model": model_defaults(),
        "update": dataclasses.asdict(UpdateSettings()),
        "sasrec": dataclasses.asdict(SasrecSettings()),
        "gru4rec": dataclasses.asdict(Gru4recSettings()),
    }
    for table, defaults in kept.items():
        free = {
            key for key, value in defaults.items() if key in ("text_encoder", "platform", "teacher") or isinstance(value, bool)
        }
        assert ALLOWED[table].keys() == defaults.keys() - free
        assert all(allowed.holds(defaults[key]) for key, allowed in ALLOWED[table].items())


def test_the_ends_of_the_bounds_are_allowed(written):
    ends = "[train]\nchunk = 512\nseed = 4294967295\nweight_decay = 0\n[model]\nid_dropout = 1\nrepeats = 0\ndropout = 0"
    ends += "\nevent_half_lives = [0.001, 1e12]\ngap_edges_s = [0.001, 0.002, 1e12]\ntransition_decays = [0.000001, 0.999999]"
    assert load_settings(written(ends)).train.chunk == 512


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"mine.toml: not TOML"):
        load_settings(path)


def test_an_unknown_name_lists_the_presets():
    with pytest.raises(
        ConfigError, match=r"enormous: neither .* preset \(.*demo, .*retail, small, sparse, tiny, titles, turning\)"
    ):
        load_settings("enormous")


def test_what_decides_a_run_is_neither_its_threads_nor_the_age_of_its_checkpoint():
    settings = load_settings("base")
    ours, sasrec = settings.as_dict(), described("sasrec", settings)
    for now in (ours, sasrec):
        older = copy.deepcopy(now)
        older["train"] |= {"threads": 7, "device": "cpu", "compile": True}
        del older["train"]["average"]
        assert that_decide(older) == that_decide(now)
        for table, key, value in (("train", "average", 0.9), ("data", "test_quantile", 0.5), ("model", "dropout", 0.7)):
            other = copy.deepcopy(older)
            other[table][key] = value
            assert that_decide(other) != that_decide(now)
    assert that_decide(sasrec | {"architecture": "gru4rec", "model": {}}) != that_decide(sasrec)
