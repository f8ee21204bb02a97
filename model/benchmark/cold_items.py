"""Cold items: how well items that the trainer never saw are ranked by their text alone, beside a content kNN.

A contestant ranks all items, the cold ones among them, by nothing but text, the items of the user's past included: the net by its
interests and the vector that text alone gives to an item, and by how alike the text is to what the own-repeat memory has, without
bias, popularity and scores of own repeats, none of which a cold item has. The content kNN does as it always does. What a user has
before a query is all of the other items, the validation part included. A second figure ranks the cold items among themselves, as
a shelf of new arrivals would; a third is the list that is served: there every other item has all that is known of it, and a cold
one its text.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import nn

from model.assess import OURS, K
from model.baselines.content_knn import ContentKnn
from model.data.cold import HeldOut, cold_split, with_cold_items
from model.data.dense import dense_matrix
from model.data.sequences import Queries, Sequences, Split
from model.evaluate import evaluate
from model.inputs import Inputs
from model.likeness import blended, likeness
from model.memory import fold_memories
from model.metrics import recall
from model.nets import Longwave
from model.predict import read_out, top_k
from model.replay import replay_each
from model.replay import top_k as best_of
from model.settings import ConfigError
from model.task import Task
from model.text import TextEncoder

HALF_LIVES = (math.inf, 8, 2, 0.5)
NEAREST = (0, 1, 5)
BLOCK = 16  # with a full memory, 300 MB of cosines of 4,500 items
LAST = 1e3  # far beyond any sum of standard scores
HEADLINE = f"recall@{K}"
SERVED = f"{OURS}, as served"

Lists = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ColdTask:
    """A task asked for cold items.

    Attributes:
        task: the warm one with the C cold items behind its N, and with queries whose targets are cold.
        first: N, row of the first cold item.
        text: (N + C, W).
    """

    task: Task
    first: int
    text: npt.NDArray[np.float32]


def cold_task(held_out: HeldOut, warm: Task, encoder: str, new_text: npt.NDArray[np.float32] | None = None) -> ColdTask:
    """The task that follows from the one that the warm data set was trained for.

    Args:
        encoder: what the warm items' texts were embedded with; `new_text` (C, W) saves embedding the cold ones.

    Raises:
        ConfigError: the items have no text, or the split is not one of baskets.
    """
    if warm.item_text is None or warm.split.protocol != "basket":
        raise ConfigError("cold items are ranked by text, for the next basket: set data.text_encoder, and take data with baskets")
    if new_text is None:
        items = held_out.whole.items
        title = dict(zip(items.get_column("item_id"), items.get_column("title"), strict=True))
        new_text = TextEncoder(encoder).embed([title[item] for item in held_out.cold])
    text = np.concatenate([warm.item_text, new_text])
    features = warm.item_features
    if features is not None:
        new = pl.DataFrame({"item_id": held_out.cold}).join(held_out.whole.items, on="item_id", how="left", maintain_order="left")
        features = np.concatenate([features, dense_matrix(new, warm.feature_names, warm.vectors)])
    task = replace(
        warm,
        seq=with_cold_items(warm.seq, held_out.cold),
        split=cold_split(held_out, warm.seq, warm.split),
        inputs=replace(
            warm.inputs,
            item_text=torch.as_tensor(text),
            item_features=None if features is None else torch.as_tensor(features),
        ),
        item_text=text,
        item_features=features,
    )
    return ColdTask(task, warm.seq.items, text)


@torch.no_grad()
def by_text(net: Longwave, inputs: Inputs, seq: Sequences, queries: Queries, first: int = 0) -> Lists:
    """(Q, K) the best items from row `first` on by content alone: by the net's interests, and alike to what the user had.

    What the own-repeat memory still has comes last: it is no news. A net without such a memory goes by the interests alone.

    Raises:
        ValueError: the items have no texts.
    """
    if inputs.item_text is None:
        raise ValueError("items without texts cannot be ranked by them")
    predictions = read_out(net, inputs, seq, queries)
    memories = fold_memories(net, seq, queries) if net.repeats is not None else None
    matrix, _ = net.item.unseen(inputs.item_text, inputs.item_features)
    text = nn.functional.normalize(inputs.item_text, dim=1)
    lists = []
    for start in range(0, len(queries), BLOCK):
        chosen = torch.arange(start, min(start + BLOCK, len(queries)))
        scores = torch.matmul(predictions.readout.interests[chosen], matrix.t()).amax(1)
        if memories is not None:
            scores = blended(scores, likeness(memories, chosen, text))
            had = memories.at(chosen)[1]
            scores.scatter_add_(1, had.clamp(min=0), torch.where(had >= 0, -LAST, 0.0))
        scores[:, :first] = -torch.inf
        lists.append(top_k(scores, K))
    return np.concatenate(lists)


class Shelf(ContentKnn):
    """The content kNN of the items from row `first` on."""

    def __init__(self, text: npt.NDArray[np.float32], half_life_baskets: float, nearest: int, first: int) -> None:
        super().__init__(text, half_life_baskets, nearest=nearest)
        self.first = first

    def score(self, user: int, position: int, as_of_ms: int) -> npt.NDArray[np.float64]:
        """As of `ContentKnn`."""
        scores = super().score(user, position, as_of_ms)
        scores[: self.first] = -np.inf
        return scores


def measure_cold_items(cold: ColdTask, ours: Lists | None, net: Longwave | None) -> dict[str, Any]:
    """The three figures on the test queries; the content kNN of each view is the best on validation.

    Args:
        ours: the net's lists as they are served. net: None (both) where only the baseline is measured.

    Returns:
        report: of all items, ranked by text and as served; shelf: of the cold items alone; tuned: validation figures.
    """
    task, found = cold.task, {}
    tuned: dict[str, float] = {}
    best = best_content_knns(task.seq, task.split, cold.text, cold.first)
    for view, first in (("report", 0), ("shelf", cold.first)):
        knn, tuned[view] = best[view]
        (ranked,) = replay_each(task.seq, task.split.test, [knn], known=task.split.train_end, k=K)
        lists = {knn.name: ranked}
        if net is not None and ours is not None:
            lists = {OURS: by_text(net, task.inputs, task.seq, task.split.test, first)} | lists
            if view == "report":
                lists[SERVED] = ours
        found[view] = evaluate(
            task.seq,
            task.split,
            lists,
            dataset=task.data["name"],
            fingerprint=task.data["fingerprint"],
            ours=OURS if OURS in lists else None,
            settings={knn.name: knn.parameters()},
        )
    return found | {"tuned": tuned}


def best_content_knns(
    seq: Sequences, split: Split, text: npt.NDArray[np.float32], first: int
) -> dict[str, tuple[ContentKnn, float]]:
    """For each view (report, shelf) the content kNN that has the best mean recall over the validation queries; and that."""
    queries = split.valid
    best: dict[str, tuple[ContentKnn, float]] = {}
    for half_life, nearest in itertools.product(HALF_LIVES, NEAREST):
        plain = ContentKnn(text, half_life, nearest=nearest)
        plain.fit(seq, split.train_end)
        # All that differ in what they leave out, from scores that are worked out once.
        asked: list[tuple[str, ContentKnn]] = [
            ("report", plain),
            ("report", ContentKnn(text, half_life, novel=True, nearest=nearest)),
            ("shelf", Shelf(text, half_life, nearest, first)),
        ]
        lists = np.full((len(asked), len(queries), K), -1, np.int32)
        for q in range(len(queries)):
            user, position = int(queries.user[q]), int(queries.position[q])
            scores = plain.score(user, position, int(queries.as_of[q]))
            rests: list[slice | npt.NDArray[np.int32]] = [slice(0), plain.bought(user, position), slice(first)]
            for which, left_out in enumerate(rests):
                scores[left_out] = -np.inf
                ranked = best_of(scores, K)
                lists[which, q, : len(ranked)] = ranked
        for (view, knn), found in zip(asked, lists, strict=True):
            mean = float(np.nanmean(recall(found, queries, K)))
            if view not in best or mean > best[view][1]:
                best[view] = knn, mean
    return best
