"""Logs, metrics and the per-stage clock of a request."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Hashable
from pathlib import Path
from time import perf_counter
from typing import Generic, TypeVar

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest, multiprocess

_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LAG_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.5, 1.0, 5.0)
_STAGE_BUCKETS_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)

_MOST_MODELS = 50
_MOST_SCENARIOS = 100
_MOST_ARMS = 100  # of all experiments
_MOST_ORIGINS = 2_000  # what all of these make together

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def configure_logs(level: str, log_format: str) -> None:
    """Send structlog's events to stderr, as lines for people or as one JSON object each; uvicorn's own lines follow the level."""
    renderer: structlog.types.Processor = structlog.processors.JSONRenderer()
    if log_format == "console":
        # The default formatter draws every local variable: seconds per traceback, and what users sent in it.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if log_format == "json" else structlog.processors.StackInfoRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


Label = TypeVar("Label", bound=Hashable)
Origin = tuple[str, str, str, str]
"""Where a list comes from: model id, scenario, experiment and arm, "" for none."""


class Stages:
    """The clock of one request: `mark(name)` books the time since the last mark under a stage. Not for sharing."""

    __slots__ = ("_last", "_start", "seconds")

    def __init__(self) -> None:
        self._start = self._last = perf_counter()
        self.seconds: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def book(self, rest: str, **seconds: float) -> None:
        """Book known parts of the time since the last mark under their stages, and what remains of it under `rest`."""
        self.mark(rest)
        for stage, part in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + part
            self.seconds[rest] -= part
        self.seconds[rest] = max(self.seconds[rest], 0.0)

    def server_timing(self) -> str:
        """Value of a `Server-Timing` header: the stages and their sum `service`, in milliseconds."""
        parts = [f"{stage};dur={seconds * 1e3:.3f}" for stage, seconds in self.seconds.items()]
        return ", ".join([*parts, f"service;dur={(self._last - self._start) * 1e3:.3f}"])


class _Few(Generic[Label]):
    """Label values: the first so many beside `none`; all that come later are `other`, since clients may invent them."""

    def __init__(self, most: int, none: Label, other: Label) -> None:
        self._most = most
        self._known = {none}
        self._other = other

    def __call__(self, value: Label) -> Label:
        if value not in self._known:
            if len(self._known) > self._most:
                return self._other
            self._known.add(value)
        return value


class Metrics:
    """What /metrics shows. One per application; with several workers each process writes its part to a shared folder."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter that nobody reads
        self._registry = r = CollectorRegistry()
        self._of_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._of_stage: dict[str, Histogram] = {}
        self.requests = Counter(
            "longwave_requests_total", "Requests by route and status.", ["method", "route", "status"], registry=r
        )
        self.request_seconds = Histogram(
            "longwave_request_seconds", "From the request's arrival to its last byte.", ["route"], buckets=_BUCKETS_S, registry=r
        )
        self.stage_seconds = Histogram(
            "longwave_stage_seconds", "Time per stage of a recommendation.", ["stage"], buckets=_STAGE_BUCKETS_S, registry=r
        )
        self.events = Counter("longwave_events_total", "Events by what became of them.", ["result"], registry=r)
        self.folded = Counter("longwave_folded_events_total", "Events folded into states, by who did it.", ["by"], registry=r)
        self.unfolded_users = Gauge(
            "longwave_unfolded_users",
            "Users with events that wait for the background fold.",
            registry=r,
            multiprocess_mode="livesum",
        )
        self.rebuilt = Counter("longwave_rebuilt_states_total", "States folded from the start again.", ["reason"], registry=r)
        self.commits = Counter("longwave_commits_total", "State commits by result.", ["result"], registry=r)
        self.fold_lag_seconds = Histogram(
            "longwave_fold_lag_seconds",
            "From the acknowledgement of a user's first unfolded event to the folded state, background folds.",
            buckets=_LAG_BUCKETS_S,
            registry=r,
        )
        self.fallbacks = Counter("longwave_fallbacks_total", "Recommendations not made by the model.", ["reason"], registry=r)
        labels = ["model_id", "scenario", "experiment", "arm"]
        self.lists = Counter("longwave_lists_total", "Lists made, by where they come from.", [*labels, "source"], registry=r)
        self.lists_shown = Counter("longwave_lists_shown_total", "Lists that were reported as shown.", labels, registry=r)
        self.items_shown = Counter("longwave_items_shown_total", "Items of them.", labels, registry=r)
        self.list_events = Counter(
            "longwave_list_events_total", "Events that carry the id of a list, by type.", [*labels, "type"], registry=r
        )
        self.experiment_unserved = Counter(
            "longwave_experiment_unserved_total",
            "Lists of the active model, which are no experiment's, for users of an arm whose model is not open in their worker.",
            ["experiment", "arm"],
            registry=r,
        )
        self.delta_rows = Gauge(
            "longwave_device_delta_rows",
            "Items that came or changed since all were laid out on the device, which every list looks at beside.",
            registry=r,
            multiprocess_mode="livemax",
        )
        self.device_failed = Gauge(
            "longwave_device_failed",
            "Models whose device failed in a worker, where the CPU goes on with them until they are not served any more.",
            registry=r,
            multiprocess_mode="livesum",
        )
        self._models, self._scenarios = _Few(_MOST_MODELS, "", "other"), _Few(_MOST_SCENARIOS, "", "other")
        self._arms = _Few(_MOST_ARMS, ("", ""), ("other", "other"))
        self._origins: _Few[Origin] = _Few(_MOST_ORIGINS, ("", "", "", ""), ("other", "other", "other", "other"))
        self._of_list: dict[tuple[str, str, bool, tuple[str, str]], Counter] = {}
        self.model = Gauge(
            "longwave_model_info",
            "1 for each model that answers here: the active one, and those that stand beside it for experiments.",
            ["model_id", "data", "device"],
            registry=r,
            multiprocess_mode="livemax",
        )
        self._active = Gauge(
            "longwave_model_active",
            "1 for the model that serves, 0 for those that did; of several at once while the workers change.",
            ["model_id"],
            registry=r,
            multiprocess_mode="livemax",
        )
        self.generation = Gauge(
            "longwave_model_generation",
            "Generation of the active model that the workers follow; grows with each change.",
            registry=r,
            multiprocess_mode="livemax",
        )
        self.catalogue_version = Gauge(
            "longwave_catalogue_version",
            "Version of the live items that a worker has taken over; the smallest of all workers.",
            registry=r,
            multiprocess_mode="livemin",
        )
        self.catalogue_waiting = Gauge(
            "longwave_catalogue_waiting",
            "New items that wait for their vectors, in the worker that has most of them.",
            registry=r,
            multiprocess_mode="livemax",
        )
        self.activations = Counter(
            "longwave_activations_total",
            "Activations, and bundles that cannot even be read, by how it ended.",
            ["result"],
            registry=r,
        )
        self.backfilled_users = Counter("longwave_backfilled_users_total", "Users that backfills have been through.", registry=r)
        self.backfilled_events = Counter("longwave_backfilled_events_total", "Events that backfills have folded.", registry=r)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count and time a request."""
        key = (method, route, status)
        of_request = self._of_request.get(key)
        if of_request is None:  # labels() looks things up under a lock; few different ones come again and again
            of_request = (self.requests.labels(method, route, status), self.request_seconds.labels(route))
            self._of_request[key] = of_request
        of_request[0].inc()
        of_request[1].observe(seconds)

    def serves(self, model_id: str, before: str | None = None) -> None:
        """Say which model serves from now on, in the place of which."""
        if before is not None:
            self._active.labels(before).set(0)
        self._active.labels(model_id).set(1)

    def made(self, model_id: str, scenario: str, fallback: bool, experiment: str = "", arm: str = "") -> None:
        """Count a list that was made."""
        key = (model_id, self._scenarios(scenario), fallback, self._arms((experiment, arm)))
        of_list = self._of_list.get(key)
        if of_list is None:
            source = "fallback" if fallback else "model"
            labels = self._labels((model_id, scenario, experiment, arm))
            of_list = self._of_list[key] = self.lists.labels(*labels, source)
        of_list.inc()

    def shown(self, origin: Origin, items: int) -> None:
        """Count a list that was shown, and so many items of it."""
        labels = self._labels(origin)
        self.lists_shown.labels(*labels).inc()
        self.items_shown.labels(*labels).inc(items)

    def led_to(self, origin: Origin, event_type: str) -> None:
        """Count an event that a list has led to."""
        self.list_events.labels(*self._labels(origin), event_type).inc()

    def unserved(self, experiment: str, arm: str) -> None:
        """Count a list that the model of an arm should have made and did not."""
        self.experiment_unserved.labels(*self._arms((experiment, arm))).inc()

    def _labels(self, origin: Origin) -> Origin:
        model_id, scenario, experiment, arm = origin
        return self._origins((self._models(model_id), self._scenarios(scenario), *self._arms((experiment, arm))))

    def stages(self, stages: Stages) -> None:
        """Time the stages of a recommendation."""
        for stage, seconds in stages.seconds.items():
            of_stage = self._of_stage.get(stage)
            if of_stage is None:
                of_stage = self._of_stage[stage] = self.stage_seconds.labels(stage)
            of_stage.observe(seconds)

    def render(self) -> bytes:
        """The text format of Prometheus; over all workers where they share a folder."""
        if MULTIPROCESS_DIR not in os.environ:
            return generate_latest(self._registry)
        _forget_dead_workers(Path(os.environ[MULTIPROCESS_DIR]))
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _forget_dead_workers(folder: Path) -> None:
    """Take what dead workers said of their moment out of the folder; what they counted stays."""
    for file in folder.glob("gauge_live*_*.db"):
        worker = int(file.stem.rpartition("_")[2])
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            file.unlink(missing_ok=True)  # `multiprocess.mark_process_dead` fails where another worker does the same
        except PermissionError:
            pass  # the number was given out anew, to somebody else
