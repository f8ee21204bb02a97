"""Training of the fusion model: lanes of chunks that carry each user's state, full softmax over the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import Checkpoint, load_checkpoint, names_of, save_checkpoint
from model.data.sequences import Queries
from model.data.splits import select
from model.lanes import LaneBatch, lane_batches
from model.loop import Loop
from model.losses import Additions, Popularity, basket_cross_entropy, basket_softmax
from model.memory import Memories, fold_memories
from model.metrics import ndcg
from model.nets import Longwave, Readout
from model.nets.readout import RARE
from model.popularity import PopularityTable
from model.precision import mixed
from model.predict import Carried, logits, rank, read_out, repeats_at
from model.replay import seen_items
from model.settings import Settings
from model.task import Task

DIRECT = ("repeats.", "item.bias", "readout.popularity.")
"""Parameters that score without a learned representation: few, well determined, and slow to move at the net's own rate."""


class Trainer(Loop[Longwave, Checkpoint]):
    """A run of the fusion model."""

    def __init__(self, task: Task, settings: Settings, folder: Path) -> None:
        """Arguments and errors as of `Loop`."""
        train = settings.train

        def groups(net: Longwave) -> list[dict[str, Any]]:
            direct = [p for name, p in net.named_parameters() if name.startswith(DIRECT)]
            learned = [p for name, p in net.named_parameters() if not name.startswith(DIRECT)]
            return [
                {"params": learned, "lr": train.learning_rate, "weight_decay": train.weight_decay},
                {"params": direct, "lr": train.direct_learning_rate, "weight_decay": train.weight_decay / 10},
            ]

        super().__init__(task, train, settings.as_dict(), folder, lambda: Longwave(task.model_config(settings)), groups)
        half_lives = self.net.config.popularity_half_lives_s
        if task.split.protocol == "loo":
            self.table = PopularityTable.frozen(task.seq, half_lives, task.split.train_end)
        else:
            self.table = PopularityTable.live(task.seq, half_lives)
        self.logs = torch.log(self.table.table + RARE)
        self.memories = self._memories(self.queries)
        self.valid_memories = self._memories(self.valid)
        self.carried = Carried()
        self._plan()

    def batches(self, rng: np.random.Generator) -> Iterator[LaneBatch]:
        task = self.task
        return lane_batches(task.seq.offsets[:-1], task.split.train_end, self.queries, self.train.lanes, self.train.chunk, rng)

    def _memories(self, queries: Queries) -> Memories | None:
        return fold_memories(self.net, self.task.seq, queries) if self.net.repeats is not None else None

    def begin_epoch(self) -> None:
        self.carried = Carried()

    def _loss(self, batch: LaneBatch) -> Tensor | None:
        net, inputs = self.net, self.task.inputs
        item_matrix, item_bias = net.item(inputs.item_text, inputs.item_features)
        state = self.carried.enter(net, inputs, batch)
        query = torch.as_tensor(batch.query)
        asked = query[query >= 0]
        as_of = torch.as_tensor(self.queries.as_of)[asked]
        platform = inputs.platform[torch.as_tensor(self.queries.position)[asked]]
        events = inputs.events(torch.as_tensor(batch.rows), item_matrix)
        with mixed(self.factor):
            readout, state = net(events, torch.as_tensor(batch.valid), state, torch.as_tensor(batch.positions), as_of, platform)
        readout = Readout(*(field.float() for field in readout))
        self.carried.leave(batch, state)
        if not len(asked):
            return None
        chosen = select(self.queries, asked.numpy())
        owner = torch.as_tensor(np.repeat(np.arange(len(chosen)), np.diff(chosen.target_offsets)))
        target = torch.as_tensor(chosen.target, dtype=torch.int64)
        if net.config.interests > 1:
            scores = logits(net, readout, item_matrix, item_bias, self.table.at(as_of), as_of, self.memories, asked)
            return basket_cross_entropy(scores, owner, target, self.train.smoothing)
        popularity = Popularity(readout.popularity_weight, self.logs, self.table.slot(as_of))
        repeats = None
        if self.memories is not None:
            repeats = Additions(*repeats_at(net, readout, item_matrix, as_of, self.memories, asked))
        interest = readout.interests[:, 0]
        return basket_softmax(
            interest, item_matrix, item_bias, owner, target, self.train.smoothing, popularity, repeats, self.factor
        )

    def _validate(self) -> float:
        """As of `Loop`."""
        task, k = self.task, self.task.split.k
        predictions = read_out(self.net, task.inputs, task.seq, self.valid)
        lists = []
        for start in range(0, len(self.valid), 128):
            chosen = torch.arange(start, min(start + 128, len(self.valid)))
            popularity = self.table.at(torch.as_tensor(self.valid.as_of)[chosen])
            forbidden = None
            if task.split.filter_seen:
                forbidden = [seen_items(task.seq, int(self.valid.user[q]), int(self.valid.position[q])) for q in chosen.tolist()]
            lists.append(rank(self.net, predictions, self.valid, popularity, self.valid_memories, k, chosen, forbidden))
        return float(np.nanmean(ndcg(np.concatenate(lists), self.valid, k)))

    def _kept(self, training: dict[str, Any]) -> Checkpoint:
        return Checkpoint(
            self.net,
            self.described,
            self.task.seq.item_ids,
            self.task.data,
            names_of(self.task.seq),
            None if self.task.item_text is None else torch.as_tensor(self.task.item_text),
            self.task.split.cut_ms,
            self.history,
            training,
        )

    def _save(self, kept: Checkpoint, path: Path) -> None:
        save_checkpoint(kept, path)

    def _load(self, path: Path) -> Checkpoint:
        return load_checkpoint(path)
