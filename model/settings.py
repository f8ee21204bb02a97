"""The trainer's configuration: a TOML file of three tables; presets/small.toml has every key, its default and its meaning."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.errors import TrainerError
from model.nets import ModelConfig

PRESETS = Path(__file__).parent / "presets"


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


@dataclass(frozen=True)
class TrainSettings:
    """How the net is trained. Meanings and units: presets/small.toml."""

    epochs: int = 5
    lanes: int = 64
    chunk: int = 64
    learning_rate: float = 1e-3
    direct_learning_rate: float = 1e-2
    weight_decay: float = 0.1
    warmup_steps: int = 100
    clip: float = 1.0
    smoothing: float = 0.0
    patience: int = 2
    valid_queries: int = 2000
    seed: int = 0
    threads: int = 0


FROM_DATA = {f.name for f in dataclasses.fields(ModelConfig)[: [f.name for f in dataclasses.fields(ModelConfig)].index("width")]}
"""Fields of the model that the data set decides; a configuration file may not set them."""


@dataclass(frozen=True)
class Settings:
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    model: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"data": dataclasses.asdict(self.data), "train": dataclasses.asdict(self.train), "model": dict(self.model)}


def load_settings(source: str | Path) -> Settings:
    """Settings from a TOML file, or from a preset by name; what is not set keeps its default.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, or a value of the wrong type.
    """
    path = Path(source)
    if not path.suffix and (PRESETS / f"{source}.toml").exists():
        path = PRESETS / f"{source}.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
        raise ConfigError(f"{source}: neither a readable TOML file nor a preset ({known}): {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    unknown = set(tables) - {"data", "train", "model"}
    if unknown:
        raise ConfigError(f"{path}: unknown table [{sorted(unknown)[0]}]; known are [data], [train] and [model]")
    return Settings(
        DataSettings(**_checked(path, "data", tables.get("data", {}), _defaults(DataSettings))),
        TrainSettings(**_checked(path, "train", tables.get("train", {}), _defaults(TrainSettings))),
        _checked(path, "model", tables.get("model", {}), model_defaults()),
    )


def model_defaults() -> dict[str, Any]:
    """The fields of `ModelConfig` that a configuration may set, with their defaults."""
    return {name: value for name, value in _defaults(ModelConfig).items() if name not in FROM_DATA}


def _defaults(kind: type) -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(kind)}


def _checked(path: Path, table: str, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for key, value in given.items():
        if key not in defaults:
            raise ConfigError(f"{path}: unknown key {table}.{key}; known are {', '.join(sorted(defaults))}")
        default = defaults[key]
        if isinstance(default, tuple):
            if not isinstance(value, list) or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in value):
                raise ConfigError(f"{path}: {table}.{key} must be a list of numbers, got {value!r}")
            value = tuple(float(x) for x in value)
        elif isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif type(value) is not type(default):
            raise ConfigError(f"{path}: {table}.{key} must be of type {type(default).__name__}, got {value!r}")
        out[key] = value
    return out
