"""Who lives in the synthetic world and what is for sale there: drawn before anything happens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from model.data.clean import DAY_MS
from model.data.sequences import Int32, Int64
from model.data.words import COLOURS, TOPICS

COUNTRIES = ("Netherlands", "Germany", "France", "Spain", "Italy")
AGE_BANDS = ("18-24", "25-34", "35-49", "50-64", "65+")

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WorldSize:
    """How large a world is. `events` is met within a tenth; a user with a planted interest has `planted_events` of them."""

    users: int
    items: int
    events: int
    topics: int = 8
    days: int = 180
    segments: int = 12
    planted_users: int = 3
    planted_events: int = 300


@dataclass(frozen=True)
class Catalogue:
    """N items in the order of topics, and how likely each is within its topic, per stretch of time."""

    ids: list[str]
    titles: list[str]
    topic: Int32
    price: Float64
    cumulative: Float64  # (S, N) running sum of the weights, over all items
    first: Int64  # (T + 1,) first item of each topic

    @classmethod
    def draw(cls, rng: np.random.Generator, size: WorldSize) -> Catalogue:
        n = size.items
        topic = np.sort(np.concatenate([np.arange(size.topics), rng.integers(0, size.topics, n - size.topics)])).astype(np.int32)
        first = np.searchsorted(topic, np.arange(size.topics + 1))
        within = np.arange(n) - first[topic]
        base = 1.0 / (1.0 + rng.permutation(n) % 37)  # a long tail
        peak = rng.uniform(-0.2, 1.2, n)
        moments = (np.arange(size.segments) + 0.5) / size.segments
        drift = 0.15 + np.exp(-(((moments[:, None] - peak) / 0.25) ** 2))
        return cls(
            ids=[f"p{i:05d}" for i in range(n)],
            titles=[_title(list(TOPICS)[t], int(k)) for t, k in zip(topic, within, strict=True)],
            topic=topic,
            price=np.exp(rng.normal(2.5, 0.8, n)).round(2),
            cumulative=np.cumsum(base * drift, axis=1),
            first=first.astype(np.int64),
        )

    def sample(self, rng: np.random.Generator, topic: Int64, segment: Int64) -> Int64:
        """One item for each (topic, stretch of time), by inverse distribution function over the topic's slice."""
        padded = np.concatenate([np.zeros((len(self.cumulative), 1)), self.cumulative], axis=1)
        low, high = padded[segment, self.first[topic]], padded[segment, self.first[topic + 1]]
        # All stretches in one ascending array, each shifted past the one before: one search for all events.
        shift = np.concatenate([[0.0], np.cumsum(self.cumulative[:, -1])[:-1]])
        flat = (self.cumulative + shift[:, None]).ravel()
        wanted = low + rng.random(len(topic)) * (high - low) + shift[segment]
        rows = np.searchsorted(flat, wanted, side="right") - segment * len(self.ids)
        inside: Int64 = np.clip(rows, self.first[topic], self.first[topic + 1] - 1)
        return inside

    def frame(self) -> pl.DataFrame:
        names = list(TOPICS)
        categories = [[names[t]] for t in self.topic]
        return pl.DataFrame({"item_id": self.ids, "title": self.titles, "categories": categories})


@dataclass(frozen=True)
class Users:
    """U users: slow interests, at most one burst each, and for some a planted early interest. Times from the origin, in ms."""

    ids: list[str]
    events: Int64
    interest: Float64
    burst_topic: Int64
    burst_start: Int64
    burst_end: Int64
    planted_topic: Int64
    planted_until: int
    planted_return: int

    @classmethod
    def draw(cls, rng: np.random.Generator, size: WorldSize) -> Users:
        u, span = size.users, size.days * DAY_MS
        planted = np.full(u, -1, dtype=np.int64)
        planted_rows = np.arange(u)[:: max(1, u // max(1, size.planted_users))][: size.planted_users]
        planted[planted_rows] = rng.integers(0, size.topics, len(planted_rows))
        start, end = rng.dirichlet(np.full(size.topics, 0.25), (2, u))
        share = np.linspace(0, 1, size.segments)[None, :, None]
        interest = (1 - share) * start[:, None] + share * end[:, None] + 1e-3
        interest[planted_rows, :, planted[planted_rows]] = 0.0  # the planted topic is never touched in between
        interest /= interest.sum(axis=2, keepdims=True)
        begins = rng.integers(0, span, u)
        lasts = np.where((rng.random(u) < 0.6) & (planted < 0), rng.integers(2, 8, u) * DAY_MS, 0)
        activity = np.exp(rng.normal(0, 0.9, u))
        activity[planted >= 0] = 0
        rest = max(0, size.events - size.planted_events * len(planted_rows))
        events = np.maximum(6, np.round(activity / max(activity.sum(), 1e-9) * rest)).astype(np.int64)
        events[planted >= 0] = size.planted_events
        return cls(
            ids=[f"u{i:05d}" for i in range(u)],
            events=events,
            interest=interest,
            burst_topic=rng.integers(0, size.topics, u),
            burst_start=begins,
            burst_end=np.minimum(begins + lasts, span),
            planted_topic=planted,
            planted_until=span // 10,
            planted_return=span - max(2 * DAY_MS, span // 40),
        )

    def frame(self, rng: np.random.Generator) -> pl.DataFrame:
        # The country follows the first interest, noisily, so that an attribute is worth something for a new user.
        leaning = self.interest[:, 0].argmax(axis=1) % len(COUNTRIES)
        anywhere = rng.integers(0, len(COUNTRIES), len(self.ids))
        country = np.where(rng.random(len(self.ids)) < 0.7, leaning, anywhere)
        age = rng.integers(0, len(AGE_BANDS), len(self.ids))
        unknown = rng.random((2, len(self.ids))) < 0.05
        return pl.DataFrame(
            {
                "user_id": self.ids,
                "country": [None if gone else COUNTRIES[i] for i, gone in zip(country, unknown[0], strict=True)],
                "age_band": [None if gone else AGE_BANDS[i] for i, gone in zip(age, unknown[1], strict=True)],
            }
        )


def _title(topic: str, number: int) -> str:
    """Every word but the colour belongs to the topic; number counts through noun, adjective and colour, then models."""
    adjectives, nouns = TOPICS[topic]
    noun, rest = number % len(nouns), number // len(nouns)
    adjective, rest = (rest + noun) % len(adjectives), rest // len(adjectives)
    colour, model = (rest + noun) % len(COLOURS), rest // len(COLOURS)
    words = f"{COLOURS[colour]} {adjectives[adjective]} {nouns[noun]}"
    return words if model == 0 else f"{words} mark {model + 1}"
