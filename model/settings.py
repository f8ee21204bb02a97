"""The trainer's configuration: a TOML file of a few tables; presets/small.toml has every key, its default and its meaning."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from model.device import DEVICES
from model.errors import TrainerError
from model.nets import ModelConfig
from model.nets.integers import MAX_CHUNK
from model.precision import PRECISIONS

PRESETS = Path(__file__).parent / "presets"
PROTOCOLS = ("auto", "loo", "time", "basket")
LARGEST = 1_000_000
"""No size or count of a configuration is meant to be larger."""


class ConfigError(TrainerError, ValueError):
    """The configuration cannot be used; the message names the file and the key."""


@dataclass(frozen=True)
class DataSettings:
    """How the data set is cut. Meanings and units: presets/small.toml."""

    protocol: str = "auto"
    test_quantile: float = 0.9
    valid_quantile: float = 0.85
    min_item_events: int = 1
    text_encoder: str = ""
    items_only: bool = False
    platform: str = ""


@dataclass(frozen=True)
class TrainSettings:
    """How the net is trained. Meanings and units: presets/small.toml."""

    epochs: int = 5
    lanes: int = 64
    chunk: int = 64
    least_steps: int = 800
    learning_rate: float = 1e-3
    direct_learning_rate: float = 1e-2
    weight_decay: float = 0.1
    warmup_steps: int = 100
    clip: float = 1.0
    average: float = 0.0
    smoothing: float = 0.0
    negatives: int = 0
    foreign: float = 0.0
    mask_seen: bool = False
    unseen_items: float = 0.0
    content_weight: float = 0.0
    teacher: str = ""
    distil: float = 0.5
    patience: int = 2
    valid_queries: int = 2000
    seed: int = 0
    threads: int = 0
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False


@dataclass(frozen=True)
class Gru4recSettings:
    """The neural baseline GRU4Rec. Meanings and units: presets/small.toml."""

    width: int = 64
    layers: int = 1
    length: int = 200
    dropout: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    batch_tokens: int = 8192
    epochs: int = 0


@dataclass(frozen=True)
class SasrecSettings:
    """The neural baseline SASRec. Meanings and units: presets/small.toml."""

    width: int = 64
    layers: int = 2
    heads: int = 2
    length: int = 200
    dropout: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    batch_tokens: int = 8192
    epochs: int = 0


@dataclass(frozen=True)
class UpdateSettings:
    """How `longwave-train update` refreshes a model. Meanings and units: presets/small.toml."""

    refresh: str = "items"
    passes: int = 2
    learning_rate: float = 3e-4
    direct_learning_rate: float = 1e-3
    warmup_steps: int = 5
    replay: float = 1.0
    history: int = 1024
    holdout: float = 0.3
    margin: float = 0.0


REFRESHED = ("items", "heads", "items+heads", "all")
FROM_DATA = {f.name for f in dataclasses.fields(ModelConfig)[: [f.name for f in dataclasses.fields(ModelConfig)].index("width")]}
"""Fields of the model that the data set decides; a configuration file may not set them."""


@dataclass(frozen=True)
class Allowed:
    """Which values of a key can be used, and how that is said: `<key> must be <words>`."""

    words: str
    holds: Callable[[Any], bool]


def _whole(least: int, most: int = LARGEST) -> Allowed:
    return Allowed(f"a whole number in {least}..{most}", lambda value: least <= value <= most)


POSITIVE = Allowed("finite and above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Allowed("finite and not below 0", lambda value: 0 <= value < math.inf)
BELOW_ONE = Allowed("at least 0 and below 1", lambda value: 0 <= value < 1)
SHARE = Allowed("in 0..1", lambda value: 0 <= value <= 1)
QUANTILE = Allowed("above 0 and below 1", lambda value: 0 < value < 1)
HALF_LIVES = Allowed("one or more numbers in 0.001..1e12", lambda value: len(value) > 0 and all(1e-3 <= x <= 1e12 for x in value))
EDGES = Allowed(  # the net has them in whole milliseconds
    "one or more numbers in 0.001..1e12, ascending by 0.001 or more",
    lambda value: HALF_LIVES.holds(value) and all(int(low * 1000) < int(high * 1000) for low, high in pairwise(value)),
)


def _decays(values: tuple[float, ...]) -> bool:
    """Whether float32, which the net has them in, tells them from each other, from 0 and from 1."""
    return all(1e-6 <= x <= 1 - 1e-6 for x in values) and len(set(np.asarray(values, np.float32).tolist())) == len(values)


ALLOWED: dict[str, dict[str, Allowed]] = {
    "data": {
        "protocol": Allowed("one of " + ", ".join(PROTOCOLS), lambda value: value in PROTOCOLS),
        "test_quantile": QUANTILE,
        "valid_quantile": QUANTILE,
        "min_item_events": _whole(1),
    },
    "train": {
        "epochs": _whole(1),
        "least_steps": _whole(0),
        "lanes": _whole(1),
        "chunk": _whole(2, MAX_CHUNK),  # cuts fall anywhere in the upper half of it
        "learning_rate": POSITIVE,
        "direct_learning_rate": POSITIVE,
        "weight_decay": NOT_NEGATIVE,
        "warmup_steps": _whole(0),
        "clip": POSITIVE,
        "average": BELOW_ONE,
        "smoothing": BELOW_ONE,
        "negatives": _whole(0),
        "foreign": SHARE,
        "unseen_items": BELOW_ONE,
        "content_weight": NOT_NEGATIVE,
        "distil": SHARE,
        "patience": _whole(1),
        "valid_queries": _whole(1),
        "seed": _whole(0, 2**32 - 1),
        "threads": _whole(0),
        "precision": Allowed("one of " + ", ".join(PRECISIONS), lambda value: value in PRECISIONS),
        "device": Allowed("one of " + ", ".join(DEVICES), lambda value: value in DEVICES),
    },
    "update": {
        "refresh": Allowed("one of " + ", ".join(REFRESHED), lambda value: value in REFRESHED),
        "passes": _whole(1),
        "learning_rate": POSITIVE,
        "direct_learning_rate": POSITIVE,
        "warmup_steps": _whole(0),
        "replay": NOT_NEGATIVE,
        "history": _whole(1),
        "holdout": QUANTILE,
        "margin": BELOW_ONE,
    },
    "model": {
        "width": _whole(4),
        "layers": _whole(1),
        "heads": _whole(1),
        "ring": _whole(1),
        "ring_width": _whole(1),
        "event_half_lives": HALF_LIVES,
        "time_half_lives_s": HALF_LIVES,
        "accumulator_width": _whole(1),
        "repeats": _whole(0),
        "repeat_half_lives_s": HALF_LIVES,
        "repeat_hidden": _whole(1),
        "popularity_half_lives_s": HALF_LIVES,
        "interests": _whole(1),
        "transition": _whole(0),
        "transition_decays": Allowed(
            "one or more different numbers in 0.000001..0.999999",
            lambda value: len(value) > 0 and _decays(value),
        ),
        "kinship_decays": Allowed("different numbers in 0.000001..0.999999, or none", _decays),
        "dropout": BELOW_ONE,
        "item_dropout": BELOW_ONE,
        "id_dropout": SHARE,
        "gap_edges_s": EDGES,
    },
}
_ENCODER = {
    "width": _whole(4),
    "layers": _whole(1),
    "length": _whole(2),
    "dropout": BELOW_ONE,
    "learning_rate": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "batch_tokens": _whole(1),
    "epochs": _whole(0),
}
ALLOWED |= {"gru4rec": _ENCODER, "sasrec": _ENCODER | {"heads": _whole(1)}}


@dataclass(frozen=True)
class Settings:
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    model: dict[str, Any] = field(default_factory=dict)
    sasrec: SasrecSettings = field(default_factory=SasrecSettings)
    gru4rec: Gru4recSettings = field(default_factory=Gru4recSettings)
    update: UpdateSettings = field(default_factory=UpdateSettings)

    def as_dict(self) -> dict[str, Any]:
        """What a run of our own net depends on."""
        return {"data": dataclasses.asdict(self.data), "train": dataclasses.asdict(self.train), "model": dict(self.model)}


BASELINES = {"sasrec": SasrecSettings, "gru4rec": Gru4recSettings}


def load_settings(source: str | Path) -> Settings:
    """Settings from a TOML file, or from a preset by name; what is not set keeps its default.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a value of the wrong type, or one that is not allowed.
    """
    return to_settings(read_toml(source), config_file(source))


def config_file(source: str | Path) -> Path:
    """The file of a preset by name, or the file itself."""
    path = Path(source)
    preset = PRESETS / f"{source}.toml"
    return preset if not path.suffix and preset.exists() else path


def read_toml(source: str | Path) -> dict[str, Any]:
    """The tables of a TOML file, or of a preset by name, as they stand there. Raises ConfigError."""
    path = config_file(source)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
        raise ConfigError(f"{source}: neither a readable TOML file nor a preset ({known}): {error.strerror}") from None
    except ValueError as error:  # no text, no TOML, or a path that cannot be one
        raise ConfigError(f"{path}: not TOML: {error}") from None


def to_settings(tables: dict[str, Any], path: Path) -> Settings:
    """Checked settings from tables; `path` is what a message names. Raises ConfigError as `load_settings` does."""
    unknown = set(tables) - set(ALLOWED)
    if unknown:
        raise ConfigError(f"{path}: unknown table [{sorted(unknown)[0]}]; known are {', '.join(f'[{name}]' for name in ALLOWED)}")
    settings = Settings(
        DataSettings(**_checked(path, "data", tables.get("data", {}), _defaults(DataSettings))),
        TrainSettings(**_checked(path, "train", tables.get("train", {}), _defaults(TrainSettings))),
        _checked(path, "model", tables.get("model", {}), model_defaults()),
        SasrecSettings(**_checked(path, "sasrec", tables.get("sasrec", {}), _defaults(SasrecSettings))),
        Gru4recSettings(**_checked(path, "gru4rec", tables.get("gru4rec", {}), _defaults(Gru4recSettings))),
        UpdateSettings(**_checked(path, "update", tables.get("update", {}), _defaults(UpdateSettings))),
    )
    check_together(path, settings)
    return settings


def with_refresh(settings: UpdateSettings, refresh: str | None) -> UpdateSettings:
    """The settings with another choice of what is refreshed, if there is one. Raises ConfigError for an unknown one."""
    if refresh is None:
        return settings
    if refresh not in REFRESHED:
        raise ConfigError(f"--refresh must be one of {', '.join(REFRESHED)}, got {refresh!r}")
    return dataclasses.replace(settings, refresh=refresh)


def model_defaults() -> dict[str, Any]:
    """The fields of `ModelConfig` that a configuration may set, with their defaults."""
    return {name: value for name, value in _defaults(ModelConfig).items() if name not in FROM_DATA}


WHERE = ("threads", "device", "compile")
"""Keys of [train] that say where and how fast a run is computed, and not what."""


BEFORE = {"least_steps": 0}
"""Of [train], where a run of an older version did otherwise than the default says."""


def that_decide(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a run's settings, as a checkpoint keeps them, what decides its result: two runs with equal ones are the same run.

    A key that a run of an older version does not have has its default, or the value that means what was done before there was
    such a key; where and on how many threads it ran decides nothing.
    """
    net = settings.get("architecture", "longwave")
    known = {"data": _defaults(DataSettings), "train": _defaults(TrainSettings), "model": model_defaults()}
    if net in BASELINES:
        known["model"] = _defaults(BASELINES[net])
    known["train"] |= BEFORE
    whole = {table: defaults | settings[table] for table, defaults in known.items()}
    return {**settings, **whole, "train": {key: value for key, value in whole["train"].items() if key not in WHERE}}


def that_differ(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What decides the result and is not the same in two runs' settings, as "table.key"."""
    first, second = that_decide(one), that_decide(other)
    found = []
    for name in sorted(first.keys() | second.keys()):
        a, b = first.get(name), second.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{name}.{key}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
        elif a != b:
            found.append(name)
    return found


def _defaults(kind: type) -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(kind)}


def _checked(path: Path, table: str, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: {table} must be a table, got {given!r}")
    out = {}
    for key, value in given.items():
        if key not in defaults:
            raise ConfigError(f"{path}: unknown key {table}.{key}; known are {', '.join(sorted(defaults))}")
        default = defaults[key]
        if isinstance(default, tuple):
            if not isinstance(value, list) or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in value):
                raise ConfigError(f"{path}: {table}.{key} must be a list of numbers, got {value!r}")
            value = tuple(_float(x) for x in value)
        elif isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = _float(value)
        elif type(value) is not type(default):
            raise ConfigError(f"{path}: {table}.{key} must be of type {type(default).__name__}, got {value!r}")
        allowed = ALLOWED[table].get(key)
        if allowed is not None and not allowed.holds(value):
            shown = list(value) if isinstance(value, tuple) else value
            raise ConfigError(f"{path}: {table}.{key} must be {allowed.words}, got {shown!r}")
        out[key] = value
    return out


def check_together(path: Path, settings: Settings) -> None:
    """Refuse keys that do not go with each other; `path` is what the message names. Raises ConfigError."""
    early, late = settings.data.valid_quantile, settings.data.test_quantile
    if early >= late:
        raise ConfigError(f"{path}: data.valid_quantile must be below data.test_quantile ({late}), got {early}")
    if settings.data.items_only and settings.data.text_encoder:
        raise ConfigError(
            f'{path}: data.text_encoder must be "" where data.items_only is true, got {settings.data.text_encoder!r}'
        )
    model = model_defaults() | settings.model
    for key in ("width", "ring_width"):
        if model[key] % model["heads"]:
            raise ConfigError(f"{path}: model.{key} must be divisible by model.heads ({model['heads']}), got {model[key]}")
    if settings.train.negatives and model["interests"] > 1:
        raise ConfigError(f"{path}: train.negatives must be 0 where model.interests is above 1, got {settings.train.negatives}")
    if settings.train.mask_seen and (settings.train.negatives or model["interests"] > 1):
        raise ConfigError(f"{path}: train.mask_seen must be false with train.negatives, and where model.interests is above 1")
    for key in ("unseen_items", "content_weight"):
        if getattr(settings.train, key) and (settings.train.negatives or model["interests"] > 1):
            raise ConfigError(f"{path}: train.{key} must be 0 with train.negatives, and where model.interests is above 1")
    if settings.train.teacher and settings.train.negatives:
        raise ConfigError(f'{path}: train.teacher must be "" where train.negatives is above 0: teachers speak of all items')
    groups = len(model["transition_decays"])
    if model["transition"] % groups:
        raise ConfigError(
            f"{path}: model.transition must be divisible by the number of transition_decays ({groups}), got {model['transition']}"
        )
    width, heads = settings.sasrec.width, settings.sasrec.heads
    if width % heads:
        raise ConfigError(f"{path}: sasrec.width must be divisible by sasrec.heads ({heads}), got {width}")


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf
