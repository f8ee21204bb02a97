"""What results must have to be put on a page; what else they have is nobody's business here.

Fields with a default are of later versions, or of some benchmarks alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Numbers are numbers: "0" is none."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Commit(Shape):
    id: str | None
    dirty: bool | None


class Machine(Shape):
    cpu: str
    cores: int
    threads: int
    torch: str
    gpu: str | None = None


class Headed(Shape):
    """Of every kind."""

    name: str
    preset: str
    date: str
    commit: Commit
    machine: Machine
    seed: int = 0


class Figure(Shape):
    mean: float | None
    standard_error: float | None = None
    per_user: float | None = None


class Known(Shape):
    """A figure that there is."""

    mean: float


class Against(Shape):
    ratio: float | None
    p: float


class Model(Shape):
    metrics: dict[str, Figure] = Field(min_length=1)
    by_history: dict[str, Figure]


class Report(Shape):
    ours: str | None
    state: str
    refit: str
    filter_seen: bool
    queries: int
    users: int
    items: int
    mean_targets: float
    models: dict[str, Model] = Field(min_length=1)
    comparisons: dict[str, dict[str, Against]]
    history_queries: dict[str, int]


class Trained(Shape):
    parameters: int
    seconds: float
    epochs: int
    # Results of before do not say them.
    commit: Commit = Commit(id=None, dirty=None)
    machine: Machine = Machine(cpu="", cores=0, threads=0, torch="")


class After(Shape):
    models: dict[str, dict[str, Figure]]


class ColdUsers(Shape):
    queries: int
    users: int
    after: dict[str, After] = Field(min_length=1)


class Interests(Shape):
    labels: int
    queries: int
    net: dict[str, Known]
    recent: dict[str, Known]
    difference: dict[str, Against]


class Told(Shape):
    auc: Figure
    spearman: Figure
    stayed: float
    turned: float


class Drift(Shape):
    users: int
    turned: int
    by_events: dict[str, dict[str, Told]] = Field(min_length=1)


class Endurance(Shape):
    users: int
    queries: int | None = None
    whole: float | None
    last: float | None
    difference: Against | None
    norm_early: float
    norm_late: float


class Part(Shape):
    """What a benchmark says of one protocol."""

    report: Report
    trained: dict[str, Trained]
    headline: str | None = None
    cold_users: ColdUsers | None = None
    interests: dict[str, Interests | None] = {}
    endurance: dict[str, Endurance | None] = {}
    drift: dict[str, Drift | None] = {}
    shelf: Report | None = None


class Data(Shape):
    fingerprint: str


class Benchmark(Headed):
    seed: int
    data: Data
    protocols: dict[Literal["loo", "time", "basket"], Part] = Field(min_length=1)
