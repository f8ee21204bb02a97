"""The offline twin of the live service: the trainer's own `forward()` answers every query of a live schedule.

Popularity follows the schedule event by event, as the service's does; a user without events gets the service's fallback,
recent popularity. A replay over HTTP must give the same lists.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from model.checkpoint import Checkpoint
from model.data.newcomers import last_events
from model.data.sequences import Queries, Sequences
from model.inputs import Inputs
from model.memory import Memories, fold_memories
from model.popularity import known_popularity
from model.predict import block_of, rank, read_out
from model.replay import live_schedule, seen_items


def live_lists(
    checkpoint: Checkpoint,
    seq: Sequences,
    inputs: Inputs,
    queries: Queries,
    k: int,
    known: npt.NDArray[np.int64],
    filter_seen: bool = False,
    live: bool = True,
    memories: Memories | None = None,
    item_vectors: str = "float32",
    last: int | None = None,
) -> npt.NDArray[np.int32]:
    """The net's lists (Q, k), -1 from where a list ends.

    Args:
        known: (U,) row after each user's last event that is known before the replay starts.
        live: whether popularity goes on with the replay; False keeps it as known, at every moment the same (leave-one-out).
        memories: of the queries, where they have been folded already.
        item_vectors: how the bundle stores them, "float32" or "int8".
        last: fold only so many events before each query, as if its user had come then; None is all. Popularity knows everyone's.
    """
    net = checkpoint.net
    own, asked = seq, queries
    if last is not None:
        own, asked, rows = last_events(seq, queries, last)
        inputs = inputs.of_rows(rows, queries.user)
    predictions = read_out(net, inputs, own, asked, item_vectors=item_vectors)
    if net.repeats is not None and memories is None:
        memories = fold_memories(net, own, asked)
    popularity = known_popularity(seq, net.config.popularity_half_lives_s, known)
    out = np.full((len(queries), k), -1, np.int32)
    block = min(64, block_of(net.device, *popularity.counts.shape))
    weight = seq.weight[seq.type]
    positive = seq.positive
    waiting: list[int] = []
    tables: list[npt.NDArray[np.float32]] = []

    def answer() -> None:
        if not waiting:
            return
        forbidden = None
        if filter_seen:
            forbidden = [seen_items(own, int(asked.user[q]), int(asked.position[q])) for q in waiting]
        table = torch.as_tensor(np.stack(tables), device=net.device)
        lists = rank(net, predictions, queries, table, memories, k, torch.as_tensor(waiting, device=net.device), forbidden)
        for q, ranked in zip(waiting, lists, strict=True):
            out[q, : len(ranked)] = ranked
        waiting.clear()
        tables.clear()

    for step in live_schedule(seq, queries, known):
        if step[0] == "query" and asked.position[step[1]] == own.offsets[asked.user[step[1]]]:
            best = popularity.top(k)
            out[step[1], : len(best)] = best
        elif step[0] == "query":
            waiting.append(step[1])
            tables.append(popularity.at(int(queries.as_of[step[1]]) if live else 0))
            if len(waiting) == block:
                answer()
        elif live:
            rows = np.arange(step[1], step[2])
            rows = rows[positive[rows]]
            popularity.observe(seq.item[rows], weight[rows], seq.time[rows])
    answer()
    return out
