"""Whether the model of users with few events is better with the fallback in it: measured on the validation part alone.

Each validation question of a user with a longer past is asked as if that user had come 1, 2, 3, 5, 7 or 10 events ago (as in
`cold_users`), and one of two things is added to the model's scores, with a weight for each number of events:

    popularity   score = model + weight * log p, the item's share of recent popularity (one event is given to every item)
    context      score = model + weight * log lift, what the user's context makes of the item (`ContextCounts`)

The weights are chosen by ndcg on the earlier half of the questions, and what they do on the later half is reported; without a
common time, on two halves of the users. The weights of the context that are above 0 by the interval there can go with the model:
`write_cold` puts them beside its checkpoint, where `export` finds them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.baselines.context_popularity import ContextCounts
from model.benchmark.context import CONTEXT, HALF_LIVES_DAYS, SERVED_CATEGORY_M, SERVED_M, facet_values, most_frequent
from model.benchmark.heading import heading
from model.benchmark.names import find
from model.benchmark.run import to_text
from model.checkpoint import Checkpoint
from model.compare import load_best
from model.data.newcomers import last_events
from model.data.sequences import Int32, Queries
from model.data.splits import select
from model.errors import TrainerError
from model.files import check_folder, write_whole
from model.intervals import UserBootstrap
from model.loop import COLD
from model.memory import fold_memories
from model.metrics import ndcg, recall
from model.nets import Readout
from model.popularity import known_popularity
from model.predict import logits, read_out, top_k
from model.replay import live_schedule, seen_items
from model.settings import DataSettings
from model.task import Task, make_task

FORMAT = 1
EVENTS = (1, 2, 3, 5, 7, 10)
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
"""A whole lift at most: more of it would count the same events twice."""
SERVED_FACETS = ("platform", "country", "category")
"""Those that a service knows."""
POPULARITY, IN_CONTEXT = "popularity", "context"
BLOCK = 64
K = 20

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Tried = dict[float, npt.NDArray[np.int32]]
"""(Q, K) lists by weight."""


def measure_blend(
    name: str,
    run: Path,
    facets: Sequence[str],
    out: Path,
    data: Path | None = None,
    most: int = 2000,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Try all weights with a run, finished or not, on its validation part; writes `out/context/NAME-blend.json`.

    Args:
        facets: as of `measure_context`; none: popularity alone is tried.
        most: queries at most, drawn with seed 0.

    Raises:
        TrainerError: bad input; nothing is written.
    """
    called, dataset, _ = find(name, data, offline)
    checkpoint = load_best(run)
    if not isinstance(checkpoint, Checkpoint):
        raise TrainerError(f"{run}: is a run of a baseline")
    text = None if checkpoint.item_text is None else checkpoint.item_text.numpy()
    task = make_task(dataset, DataSettings(**checkpoint.settings["data"]), text)
    if task.data["fingerprint"] != checkpoint.data["fingerprint"]:
        raise TrainerError(f"{run}: was trained on other data than {called}")
    check_folder(out / CONTEXT)
    queries = asked_of(task, most)
    late = later_half(task, queries)
    values = [facet_values(dataset, task.seq, facet) for facet in facets]
    say(f"{called}: {len(queries)} validation questions")
    tables, lifts = known_then(task, checkpoint, queries, values, facets)
    elsewhere = np.zeros(len(queries), bool)
    if facets:
        of_user = values[0][queries.position]
        elsewhere = (of_user > 0) & (of_user != most_frequent(task.seq, values[0], int(queries.as_of.min())))
    after = {
        str(events): {
            name: decided(tried, task, queries, late, elsewhere)
            for name, tried in blended(checkpoint, task, queries, tables, lifts, events).items()
        }
        for events in EVENTS
    }
    result = {
        **heading(FORMAT, called),
        "data": {"name": dataset.manifest.name, "fingerprint": dataset.manifest.fingerprint},
        "protocol": task.split.protocol,
        "part": "valid",
        "model": {"epochs": len(checkpoint.history), "seed": checkpoint.settings["train"]["seed"]},
        "facets": list(facets),
        "questions": {"choosing": int((~late).sum()), "reporting": int(late.sum()), "elsewhere": int((late & elsewhere).sum())},
        "after": after,
        "cold": cold_of(after, facets, task.split.k),
    }
    path = out / CONTEXT / f"{called}-blend.json"
    write_whole(path, to_text(result))
    return path


def cold_of(after: dict[str, Any], facets: Sequence[str], k: int) -> dict[str, Any] | None:
    """Facets, numbers of events and weights of the context, 0 where the interval reaches to 0; None where that is everywhere.

    In between, weights are interpolated, and beyond the last number there is none: the last one is 0, whatever was measured.
    """
    if not served(facets):
        return None
    of_context = {int(events): found[IN_CONTEXT] for events, found in after.items()}
    weights = {
        events: found["chosen"] if (found["all"][f"ndcg@{k}"]["difference"]["low"] or 0.0) > 0 else 0.0
        for events, found in of_context.items()
    }
    if not any(weights.values()):
        return None
    last = max(events for events, weight in weights.items() if weight)
    numbers = [events for events in weights if events <= last]
    end = min((events for events in weights if events > last), default=2 * last)
    return {"facets": list(facets), "events": [*numbers, end], "weights": [*(weights[events] for events in numbers), 0.0]}


def served(facets: Sequence[str]) -> bool:
    """Whether a measurement with these facets says what blend a bundle may have: there are some, and a service knows all."""
    return bool(facets) and set(facets) <= set(SERVED_FACETS)


def write_cold(run: Path, result: Path) -> Path | None:
    """Put the weights of a measurement beside the run's checkpoint, or take away what is there if nothing is gained.

    What an earlier measurement left stays where this one was not about what a service knows.
    """
    found = json.loads(result.read_text(encoding="utf-8"))
    path = run / COLD
    if found["cold"] is not None:
        write_whole(path, json.dumps(found["cold"]) + "\n")
        return path
    if served(found["facets"]):
        path.unlink(missing_ok=True)
    return None


def asked_of(task: Task, most: int) -> Queries:
    """Validation questions with at least 10 events before them."""
    queries = task.split.valid
    enough = np.flatnonzero(queries.position - task.seq.offsets[queries.user] >= max(EVENTS))
    if len(enough) < 2:
        raise TrainerError(f"the validation part has no two questions of users with {max(EVENTS)} events")
    if len(enough) > most:
        enough = np.sort(np.random.default_rng(0).choice(enough, most, replace=False))
    return select(queries, enough)


def later_half(task: Task, queries: Queries) -> Bool:
    """(Q,) which questions are reported: the later ones, or those of half of the users where there is no common time."""
    if task.split.protocol == "loo":
        half: Bool = np.random.default_rng(0).permutation(task.seq.users)[queries.user] % 2 == 1
        return half
    late: Bool = queries.as_of >= np.median(queries.as_of)
    return late


def known_then(
    task: Task, checkpoint: Checkpoint, queries: Queries, values: Sequence[Int32], facets: Sequence[str]
) -> tuple[Float32, Float32]:
    """Popularity (Q, N, P) and log lift (Q, N) at each question, from what stands before it."""
    seq, known, live = task.seq, task.split.train_end, task.split.protocol != "loo"
    popularity = known_popularity(seq, checkpoint.net.config.popularity_half_lives_s, known)
    counts = ContextCounts(seq, values, HALF_LIVES_DAYS[-1:])
    for user in range(seq.users if facets else 0):
        counts.observe(int(seq.offsets[user]), int(known[user]))
    m = [SERVED_CATEGORY_M if facet == "category" else SERVED_M for facet in facets]
    tables = np.zeros((len(queries), *popularity.counts.shape), np.float32)
    lifts = np.zeros((len(queries), seq.items), np.float32)
    weight, positive = seq.weight[seq.type], seq.positive
    for step in live_schedule(seq, queries, known) if live else [("query", q) for q in range(len(queries))]:
        if step[0] == "query":
            q, as_of_ms = step[1], int(queries.as_of[step[1]])
            tables[q] = popularity.at(as_of_ms if live else 0)
            if facets:
                of_user = [int(facet[queries.position[q]]) for facet in values]
                lifts[q] = counts.log_lift(of_user, HALF_LIVES_DAYS[-1], m, as_of_ms)
        else:
            start, end = step[1:]
            rows = np.arange(start, end)
            rows = rows[positive[rows]]
            popularity.observe(seq.item[rows], weight[rows], seq.time[rows])
            if facets:
                counts.observe(start, end)
    return tables, lifts


@torch.no_grad()
def blended(
    checkpoint: Checkpoint, task: Task, queries: Queries, tables: Float32, lifts: Float32, events: int
) -> dict[str, Tried]:
    """The lists of users with so many events, by what is added."""
    net = checkpoint.net
    own, asked, rows = last_events(task.seq, queries, events)
    predictions = read_out(net, task.inputs.of_rows(rows, queries.user), own, asked)
    memories = fold_memories(net, own, asked) if net.repeats is not None else None
    names = (POPULARITY, IN_CONTEXT) if lifts.any() else (POPULARITY,)
    lists = {name: {weight: np.full((len(queries), K), -1, np.int32) for weight in WEIGHTS} for name in names}
    as_of = torch.as_tensor(queries.as_of)
    for start in range(0, len(queries), BLOCK):
        chosen = torch.arange(start, min(start + BLOCK, len(queries)))
        table = torch.as_tensor(tables[start : start + BLOCK])
        readout = Readout(*(field[chosen] for field in predictions.readout))
        scores = logits(net, readout, predictions.item_matrix, predictions.item_bias, table, as_of[chosen], memories, chosen)
        if task.split.filter_seen:
            for place, q in enumerate(chosen.tolist()):
                scores[place, torch.as_tensor(seen_items(own, q, int(asked.position[q])), dtype=torch.int64)] = -torch.inf
        added = {POPULARITY: log_shares(table), IN_CONTEXT: torch.as_tensor(lifts[start : start + BLOCK])}
        for name, tried in lists.items():
            for weight, ranked in tried.items():
                best = top_k(scores + weight * added[name], K)
                ranked[start : start + len(chosen), : best.shape[1]] = best
    return lists


def log_shares(table: Tensor) -> Tensor:
    """(n, N) logarithms of shares of popularity at the shortest half-life (n, N, P), one event more of every item."""
    counts = table[:, :, 0].double() + 1
    return torch.log(counts / counts.sum(1, keepdim=True)).float()


def decided(tried: Tried, task: Task, queries: Queries, late: Bool, elsewhere: Bool) -> dict[str, Any]:
    """The weight that is best on the earlier half, and what it does on the later one, also to users elsewhere than most."""
    k = task.split.k
    quality = {
        weight: {f"ndcg@{k}": ndcg(ranked, queries, k), f"recall@{K}": recall(ranked, queries, K)}
        for weight, ranked in tried.items()
    }
    chosen = max(quality, key=lambda weight: float(quality[weight][f"ndcg@{k}"][~late].mean()))
    found: dict[str, Any] = {
        "chosen": chosen,
        "choosing": [
            {"weight": weight} | {name: float(values[~late].mean()) for name, values in each.items()}
            for weight, each in quality.items()
        ],
    }
    for name, asked in (("all", late), ("elsewhere", late & elsewhere)):
        if not asked.any():
            continue
        bootstrap, alone = UserBootstrap(queries.user[asked]), quality[0.0]
        found[name] = {
            metric: {
                "model": dataclasses.asdict(bootstrap.estimate(alone[metric][asked])),
                "blended": dataclasses.asdict(bootstrap.estimate(values[asked])),
                "difference": dataclasses.asdict(bootstrap.difference(values[asked], alone[metric][asked])),
            }
            for metric, values in quality[chosen].items()
        }
    return found
