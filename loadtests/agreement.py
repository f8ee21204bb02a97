"""How well the quick account of a list agrees with the exact one, on a bundle and the users of the data that it learned from.

`python -m loadtests.agreement --bundle bundles/current --data data` asks for the list of each of some users at a random moment of
their history and lets both accounts explain it. An item counts if some event moves its score by a hundredth of a logit at least.
`agreement` is the quick account's; `latest_event` and `attention` are what one gets by naming the last event, or the one that
attention weighs most. The quick account's numbers were chosen on users of `--half 0`; the others, `--half 1`, are to be reported.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import polars as pl
import typer

from app.catalogue.popularity import LivePopularity
from app.fold import Fold, Unfolded
from app.fold.tensors import EventTensors
from app.models.served import catalogue_of, text_of
from app.recommend.quick import Quick
from app.recommend.refold import Refold
from app.recommend.score import Question, Read, Scorer
from app.recommend.some import SomeScores
from app.runtime.bundle import read_bundle
from app.runtime.session import Array, open_runtime
from app.settings import load_settings
from app.state.codec import StateCodec
from app.state.events import StoredEvent
from loadtests.machine import describe_commit, describe_machine
from loadtests.report import write

RESULTS: Final = Path(__file__).parent / "results" / "explain_agreement.json"

_FEWEST, _MOST = 8, 1_000  # events of a user
_K: Final = 20
_LEAST_DROP: Final = 0.01
_TIE: Final = 1e-4  # of drops
_HOUR_MS: Final = 3_600_000


@dataclass
class Tally:
    """What one way of weighing events found, an entry for each item.

    Attributes:
        first: whether its strongest event is the one without which the score falls most. among_three: whether that one is among
            its strongest three.
        captured: what the score falls by without its strongest event, as a share of the largest fall. ranks: Spearman's rank
            correlation over the events.
    """

    first: list[bool] = field(default_factory=list)
    among_three: list[bool] = field(default_factory=list)
    captured: list[float] = field(default_factory=list)
    ranks: list[float] = field(default_factory=list)

    def add(self, weights: Array, drops: Array) -> None:
        """Weights and drops of the same events, oldest first; of two equal weights the later one is the stronger."""
        order = len(weights) - 1 - np.argsort(-weights[::-1], kind="stable")
        best = float(drops.max())
        self.first.append(bool(drops[order[0]] >= best - _TIE))
        self.among_three.append(bool(drops[order[:3]].max() >= best - _TIE))
        self.captured.append(max(0.0, float(drops[order[0]])) / best)
        if len(weights) > 2 and np.ptp(weights) > 0 and np.ptp(drops) > 0:
            self.ranks.append(float(np.corrcoef(_ranks(weights), _ranks(drops))[0, 1]))

    def means(self) -> dict[str, float]:
        named = {"top_1": self.first, "top_1_in_3": self.among_three, "captured": self.captured, "rank_correlation": self.ranks}
        return {name: round(float(np.mean(values)), 4) for name, values in named.items() if values}


def _ranks(values: Array) -> Array:
    """Ranks from 0, those of equal values their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = (ends - (counts + 1) / 2)[inverse]
    return ranks


def measure(bundle: Path, data: Path, users: int, half: int) -> dict[str, Any]:
    """The agreement over so many users of a half."""
    runtime = open_runtime(read_bundle(bundle.resolve()), "cpu", 1)
    manifest, catalogue = runtime.bundle.manifest, catalogue_of(runtime.bundle)
    about = manifest.popularity
    popularity = LivePopularity(catalogue, about.half_lives_s, runtime.bundle.popularity, about.as_of_ms, 0.0)
    tensors = EventTensors(manifest, catalogue, text_of(runtime, load_settings()))
    fold = Fold(runtime, catalogue, StateCodec(manifest.state), tensors)
    scores, scorer = SomeScores(runtime, catalogue, popularity, fold), Scorer(runtime, catalogue, popularity, fold)
    quick, refold = Quick(manifest, catalogue, tensors), Refold(fold, tensors, scores)
    ways = {"agreement": Tally(), "had_before": Tally(), "not_had_before": Tally(), "latest_event": Tally(), "attention": Tally()}
    chance, asked, without = random.Random(0), 0, 0
    for events in _histories(data, users, half):
        events = events[: chance.randint(_FEWEST // 2, len(events))]
        told, as_of_ms = Unfolded(b"epoch-01", {}, None, events, 0), max(event.time_ms for event in events) + _HOUR_MS
        ((_, blob),) = fold([told])
        rows = [row for event in events if event.item_id is not None and (row := catalogue.row(event.item_id)) is not None]
        forbidden = rows if manifest.seen_items == "exclude" else []
        (ranked,) = asyncio.run(scorer.rank([Question(blob, _K, as_of_ms, 0, forbidden, keeps=True)]))
        assert ranked.read is not None
        exact = refold(told, scores.take(ranked.rows, as_of_ms, 0))
        weights = quick(events, ranked.read, ranked.rows).weights
        known = min(len(exact.events), weights.shape[1])
        had = {event.item_id for event in exact.events}
        attention = _attention(ranked.read, known)
        asked += 1
        for place, row in enumerate(ranked.rows):
            drops = exact.drops[place, -known:]
            if drops.max() < _LEAST_DROP:
                without += 1
                continue
            for name in ("agreement", "had_before" if catalogue.ids[row] in had else "not_had_before"):
                ways[name].add(weights[place, -known:], drops)
            ways["latest_event"].add(np.arange(known, dtype=np.float64), drops)
            ways["attention"].add(attention, drops)
    return {
        "data": manifest.data_name,
        "model_id": manifest.model_id,
        "users": asked,
        "items": len(ways["agreement"].first),
        "items_that_no_event_moves": without,
        **{name: {"items": len(way.first), **way.means()} for name, way in ways.items()},
    }


def _attention(read: Read, known: int) -> Array:
    attention: Array = read.interest["attention"][0, -known:]
    return attention


def _histories(data: Path, users: int, half: int) -> list[list[StoredEvent]]:
    frame = pl.read_parquet(data / "events.parquet")
    counted = frame.group_by("user_id", maintain_order=True).len().filter(pl.col("len").is_between(_FEWEST, _MOST))
    ids = [user for user in counted.get_column("user_id").to_list() if zlib.crc32(user.encode()) % 2 == half]
    chosen = random.Random(1).sample(ids, min(users, len(ids)))
    parts = frame.filter(pl.col("user_id").is_in(chosen)).partition_by("user_id", maintain_order=True)
    return [[_event(row) for row in part.iter_rows(named=True)] for part in parts]


def _event(row: dict[str, Any]) -> StoredEvent:
    names = ("item_id", "value", "quantity", "price", "platform", "text")
    return StoredEvent(row["type"], row["timestamp"], **{name: row.get(name) for name in names})


def main(
    bundle: Annotated[list[Path], typer.Option(help="A bundle; may be given again.")],
    data: Annotated[list[Path], typer.Option(help="The prepared data set of each bundle, in the same order.")],
    users: Annotated[int, typer.Option(min=1)] = 200,
    half: Annotated[int, typer.Option(min=0, max=1, help="Which half of the users.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULTS,
) -> None:
    """Measure how well the two accounts agree."""
    found = [measure(one, beside, users, half) for one, beside in zip(bundle, data, strict=True)]
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "half": half,
    }
    write(about | {"models": found}, out)
    for one in found:
        typer.echo(f"{one['data']}: {one['agreement']}")


if __name__ == "__main__":
    typer.run(main)
