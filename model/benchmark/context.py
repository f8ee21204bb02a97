"""What it is worth to know where a new user is: popularity lifted by a context, beside popularity, at each user's first visit.

Asked is what every user does first: the first basket, or the first event where there are none, from all that others did before.
Nothing is trained. The events are walked in the order of time, and both rankings know what stands before the question. Only the
time before the .9 quantile is looked at, where the validation part of every benchmark ends: the half-life of the context's counts
and m are chosen on the questions from the .3 to the .6 quantile, and reported is what they do on those from there to the .9.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.baselines.context_popularity import ContextCounts
from model.benchmark.heading import heading
from model.benchmark.names import find
from model.benchmark.run import to_text
from model.data.build import Dataset
from model.data.dataset import to_sequences
from model.data.sequences import Int32, Queries, Sequences
from model.data.splits import every_question, select
from model.errors import TrainerError
from model.files import check_folder, write_whole
from model.intervals import UserBootstrap
from model.metrics import ndcg, recall
from model.replay import live_schedule, top_k

FORMAT = 1
CONTEXT = "context"
"""The folder of these results, within that of all."""
K = 20
QUANTILES = (0.3, 0.6, 0.9)
HALF_LIVES_DAYS = (3.0, 14.0, 60.0)
"""As of preset small. What is popular now is the shortest one's; what a context likes is counted with each of them in turn."""
MS = (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
SERVED_M = 1000.0
SERVED_CATEGORY_M = 1.0
"""What the service works with, whatever the data: app/recommend/contexts.py."""
PLAIN = "popularity"
SERVED = "popularity in context, as served"
CHOSEN = "popularity in context, as chosen on this data"

Lists = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Setting:
    """Which facets are known, the half-life of the counts by them, and m; None: as served."""

    facets: tuple[int, ...]
    days: float
    m: float | None


def measure_context(
    name: str,
    facets: Sequence[str],
    out: Path,
    data: Path | None = None,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Walk through a data set once, choose on one part, report on the other; writes `out/context/NAME.json`.

    Args:
        facets: "platform", "category" (the first one of the item that is looked at, as if its page were open), or an attribute of
            users. Users elsewhere than most (by the first facet) are reported by themselves.

    Raises:
        TrainerError: bad input; nothing is written.
    """
    if not facets:
        raise TrainerError("name at least one facet: platform, category, or an attribute of users")
    called, dataset, protocols = find(name, data, offline)
    protocol = "basket" if dataset.manifest.baskets else "time"
    if protocols == ("loo",) or not dataset.manifest.timed:
        raise TrainerError(f"{called}: has no common time, and so nothing that is popular at a moment")
    check_folder(out / CONTEXT)
    seq = to_sequences(dataset)
    values = [facet_values(dataset, seq, facet) for facet in facets]
    queries, cuts = first_questions(seq, protocol)
    contexts: list[tuple[int, ...]] = [(place,) for place in range(len(facets))]
    if len(facets) > 1:
        contexts.append(tuple(range(len(facets))))
    say(f"{called}: {len(queries)} users who come for the first time")
    lists = walk(seq, queries, values, facets, contexts)
    late = queries.as_of >= cuts[1]
    home = most_frequent(seq, values[0], cuts[0])
    elsewhere = (values[0][queries.position] > 0) & (values[0][queries.position] != home)
    quality = {
        setting: {f"recall@{K}": recall(ranked, queries, K), f"ndcg@{K}": ndcg(ranked, queries, K)}
        for setting, ranked in lists.items()
    }
    found: dict[str, Any] = {}
    for context in contexts:
        of_context = [each for each in quality if each is not None and each.facets == context]
        grid = [each for each in of_context if each.m is not None]
        chosen = max(grid, key=lambda each: float(np.nanmean(quality[each][f"ndcg@{K}"][~late])))
        served = next(each for each in of_context if each.m is None)
        models = {PLAIN: quality[None], SERVED: quality[served], CHOSEN: quality[chosen]}
        found[" and ".join(facets[place] for place in context)] = {
            "chosen": {"half_life_days": chosen.days, "m": chosen.m},
            "choosing": [
                {"half_life_days": each.days, "m": each.m} | {k: float(np.nanmean(v[~late])) for k, v in quality[each].items()}
                for each in grid
            ],
            "reported": {
                "all": described(models, queries, late),
                "elsewhere": described(models, queries, late & elsewhere),
            },
        }
    result = {
        **heading(FORMAT, called),
        "data": {"name": dataset.manifest.name, "fingerprint": dataset.manifest.fingerprint},
        "protocol": protocol,
        "facets": list(facets),
        "half_lives_days": list(HALF_LIVES_DAYS),
        "moments_ms": dict(zip(("choosing_from", "reporting_from", "until"), cuts, strict=True)),
        "served": {"half_life_days": max(HALF_LIVES_DAYS), "m": SERVED_M, "category_m": SERVED_CATEGORY_M},
        "questions": {"choosing": int((~late).sum()), "reporting": int(late.sum())},
        "popularity_choosing": {k: float(np.nanmean(v[~late])) for k, v in quality[None].items()},
        "contexts": found,
    }
    path = out / CONTEXT / f"{called}.json"
    write_whole(path, to_text(result))
    return path


def facet_values(dataset: Dataset, seq: Sequences, facet: str) -> Int32:
    """(E,) number of the value of each event, 0 where it has none. Raises TrainerError: there is no such facet."""
    if facet == "platform":
        return seq.platform
    if facet == "category":
        first = {item: names[0] for item, names in dataset.items.select("item_id", "categories").iter_rows() if names}
        numbers = {name: number for number, name in enumerate(sorted(set(first.values())), 1)}
        of_item = np.asarray([numbers.get(first.get(item, ""), 0) for item in seq.item_ids] + [0], np.int32)
        return of_item[seq.item]  # -1, an item that is not known, is the last one
    if facet not in seq.attribute_names:
        known = ", ".join(["platform", "category", *seq.attribute_names])
        raise TrainerError(f"there is no facet {facet!r}; the data set has {known}")
    of_user: Int32 = seq.attributes[:, seq.attribute_names.index(facet)][seq.user]
    return of_user


def first_questions(seq: Sequences, protocol: str) -> tuple[Queries, tuple[int, int, int]]:
    """The questions before users' first events between the first and the last of the moments, and the moments."""
    first, middle, last = (int(moment) for moment in np.quantile(seq.time[seq.positive], QUANTILES, method="higher"))
    queries = every_question(seq, protocol)
    asked = (queries.position == seq.offsets[queries.user]) & (queries.as_of >= first) & (queries.as_of < last)
    if not (asked & (queries.as_of < middle)).any() or not (asked & (queries.as_of >= middle)).any():
        raise TrainerError("too few users come for the first time after the others")
    return select(queries, asked), (first, middle, last)


def most_frequent(seq: Sequences, values: Int32, until_ms: int) -> int:
    """The value of most positive events before a moment."""
    return int(np.bincount(values[seq.positive & (seq.time < until_ms) & (values > 0)], minlength=2).argmax())


def walk(
    seq: Sequences, queries: Queries, values: Sequence[Int32], facets: Sequence[str], contexts: Sequence[tuple[int, ...]]
) -> dict[Setting | None, Lists]:
    """(Q, K) lists of every setting, and of popularity alone (None)."""
    settings = [Setting(context, days, m) for context in contexts for days, m in product(HALF_LIVES_DAYS, MS)]
    settings += [Setting(context, max(HALF_LIVES_DAYS), None) for context in contexts]
    keys: list[Setting | None] = [None, *settings]
    lists = {key: np.full((len(queries), K), -1, np.int32) for key in keys}
    served = [SERVED_CATEGORY_M if facet == "category" else SERVED_M for facet in facets]
    counts = ContextCounts(seq, values, HALF_LIVES_DAYS)
    for step in live_schedule(seq, queries):
        if step[0] == "events":
            counts.observe(step[1], step[2])
            continue
        q = step[1]
        as_of_ms, position = int(queries.as_of[q]), int(queries.position[q])
        with np.errstate(divide="ignore"):
            popular = np.log(counts.of_all(min(HALF_LIVES_DAYS), as_of_ms))
        for key, ranked in lists.items():
            scores = popular
            if key is not None:
                known = [int(of_facet[position]) if place in key.facets else 0 for place, of_facet in enumerate(values)]
                scores = popular + counts.log_lift(known, key.days, served if key.m is None else [key.m] * len(facets), as_of_ms)
            best = top_k(scores, K)
            ranked[q, : len(best)] = best
    return lists


def described(
    models: dict[str, dict[str, npt.NDArray[np.float64]]], queries: Queries, asked: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Estimates of all models on some questions, and of what the others have before popularity."""
    bootstrap = UserBootstrap(queries.user[asked])
    return {
        "questions": int(asked.sum()),
        "models": {
            name: {k: dataclasses.asdict(bootstrap.estimate(v[asked])) for k, v in values.items()}
            for name, values in models.items()
        },
        "comparisons": {
            name: {k: dataclasses.asdict(bootstrap.difference(v[asked], models[PLAIN][k][asked])) for k, v in values.items()}
            for name, values in models.items()
            if name != PLAIN
        },
    }
