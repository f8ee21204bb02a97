"""The shape of a model: everything needed to build it again, kept in every checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

DAY = 86_400.0
LN_2 = math.log(2)  # exp(-LN_2 * x), since ONNX has no exp2


@dataclass(frozen=True)
class ModelConfig:
    """Sizes in units of vectors, events or seconds.

    The first block comes from the data set, the second from the trainer's configuration file.
    """

    # From the data.
    items: int
    event_types: int
    platforms: int = 0
    text_width: int = 0
    feature_width: int = 0
    attribute_sizes: tuple[int, ...] = ()
    type_weights: tuple[float, ...] = (1.0,)
    """What one event of each type adds to the own-repeat memory: positive, or negative for a cancellation."""
    number_edges: tuple[tuple[float, ...], ...] = ((), (), ())
    """Bucket edges of value, quantity and price: quantiles of the training data, ascending."""
    feature_scales: tuple[tuple[float, float], ...] = ()
    """Of each number among an item's features, its mean and what its distance from that is multiplied with. A checkpoint of
    before there were any has none: its weights are of the numbers as they are."""

    # From the configuration.
    width: int = 64
    """D: width of item vectors, interests and the recurrence."""
    layers: int = 2
    """L: residual LSTM blocks."""
    heads: int = 4
    ring: int = 32
    """K: how many of the last events attention sees exactly."""
    ring_width: int = 32
    event_half_lives: tuple[float, ...] = (64.0, 1024.0)
    time_half_lives_s: tuple[float, ...] = (30 * DAY, 365 * DAY)
    accumulator_width: int = 32
    repeats: int = 256
    """R: slots of the own-repeat memory; 0 where nobody consumes an item twice."""
    repeat_half_lives_s: tuple[float, ...] = (30 * DAY, 120 * DAY, 730 * DAY)
    repeat_hidden: int = 64
    popularity_half_lives_s: tuple[float, ...] = (3 * DAY, 14 * DAY, 60 * DAY)
    interests: int = 1
    """J: interest vectors per user; an item's score is its best match."""
    query_time: bool = True
    """Whether the readout sees the time since the last event. Off for protocols where that time would leak."""
    transition: int = 0
    """W: channels of the direct transition from the last few items; 0 for none."""
    transition_decays: tuple[float, ...] = (0.05, 0.5, 0.8, 0.95)
    """What is left of an item after each further event, by group of channels."""
    kinship_decays: tuple[float, ...] = ()
    """What is left, after each further event, of the sums of items' own vectors that the interest gets; empty for none."""
    dropout: float = 0.5
    item_dropout: float = 0.0
    """Share of the numbers of an event's item vector that are hidden in a training step; not where the item is an answer."""
    id_dropout: float = 0.1
    """Share of items whose ID is hidden in a training step, so that text alone learns to give a usable vector."""
    gap_edges_s: tuple[float, ...] = field(
        default=(1, 60, 600, 3600, 6 * 3600, DAY, 3 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 60 * DAY, 120 * DAY, 365 * DAY)
    )

    @property
    def item_width(self) -> int:
        """Numbers of an item's vector, and of an interest: D, and what the transition needs."""
        return self.width + 2 * self.transition

    @property
    def accumulators(self) -> int:
        return len(self.event_half_lives) + len(self.time_half_lives_s)

    @property
    def repeat_channels(self) -> int:
        """Positive weight at each half-life, then negative weight at the longest."""
        return len(self.repeat_half_lives_s) + 1
