"""Training and asking a neural baseline: the loop, the loss, the queries and the choice of the best epoch are our own net's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.baselines.nets.checkpoint import EncoderCheckpoint, build, described, load_encoder, save_encoder, training_of
from model.baselines.nets.encoder import Encoder
from model.baselines.nets.streams import Streams, TokenBatch
from model.data.sequences import Queries, Sequences
from model.data.splits import select
from model.loop import Loop
from model.losses import basket_softmax
from model.metrics import ndcg
from model.precision import mixed
from model.predict import leave_out, most_at_once, top_k
from model.replay import seen_items
from model.settings import Settings
from model.task import Task

MOST_TOKENS = 20_000
"""Of windows that are asked together, with padding."""
FEWEST_TOKENS = 1024
"""Of a batch, where events are few; see `Loop._plan`."""


class EncoderTrainer(Loop[Encoder, EncoderCheckpoint]):
    """A run of a neural baseline."""

    def __init__(self, architecture: str, task: Task, settings: Settings, folder: Path) -> None:
        """Arguments and errors as of `Loop`; `architecture` is one of `ARCHITECTURES`."""
        chosen = getattr(settings, architecture)
        said = described(architecture, settings)
        self.length = chosen.length

        def groups(net: Encoder) -> list[dict[str, Any]]:
            return [{"params": list(net.parameters()), "lr": chosen.learning_rate, "weight_decay": chosen.weight_decay}]

        super().__init__(task, training_of(architecture, settings), said, folder, lambda: build(task.seq.items, said), groups)
        self.streams = Streams(task.seq)
        self._plan(chosen.batch_tokens, FEWEST_TOKENS)

    def batches(self, rng: np.random.Generator) -> Iterator[TokenBatch]:
        windows = self.streams.training_windows(self.queries, self.length, rng)
        return self.streams.batches(windows, self.queries, self.batch, rng)

    def _loss(self, batch: TokenBatch) -> Tensor | None:
        if not batch.asked:
            return None
        with mixed(self.factor, self.device):
            known = self.forward(self.there(batch.tokens))[self.there(batch.lane), self.there(batch.column)]
        chosen = select(self.queries, batch.query)
        owner = np.repeat(np.arange(len(chosen)), np.diff(chosen.target_offsets))
        target = self.there(chosen.target.astype(np.int64))
        items, bias, smoothing = self.net.items(), self.net.bias, self.train.smoothing
        return basket_softmax(
            known.float(), items, bias, self.there(owner), target, smoothing, None, None, self.factor, self._seen(chosen)
        )

    def _validate(self) -> npt.NDArray[np.floating]:
        split = self.task.split
        lists = encoder_lists(self.net, self.task.seq, self.valid, self.length, split.k, split.filter_seen, self.streams)
        return ndcg(lists, self.valid, split.k)

    def _kept(self, training: dict[str, Any]) -> EncoderCheckpoint:
        return EncoderCheckpoint(self.net, self.described, self.task.seq.items, self.task.data, self.history, training)

    def _save(self, kept: EncoderCheckpoint, path: Path) -> None:
        save_encoder(kept, path)

    def _load(self, path: Path) -> EncoderCheckpoint:
        return load_encoder(path)


@torch.no_grad()
def encoder_scores(
    net: Encoder,
    seq: Sequences,
    queries: Queries,
    length: int,
    streams: Streams | None = None,
    most_tokens: int = MOST_TOKENS,
) -> Iterator[Tensor]:
    """Scores (n, N) of all items, `BLOCK` queries at a time, in order; each sees the user's last `length` tokens before it."""
    net.eval()
    streams = streams or Streams(seq)
    on = partial(torch.as_tensor, device=net.device)
    known = torch.zeros(len(queries), net.item.embedding_dim, device=net.device)
    windows = streams.asking_windows(queries, length)
    for batch in streams.batches(windows, queries, most_tokens, None, ends_alone=True):
        after = net(on(batch.tokens))
        known[on(batch.query)] = after[on(batch.lane), on(batch.column)]
    block = most_at_once(net.device)
    for start in range(0, len(queries), block):
        yield net.item_scores(known[start : start + block])


def encoder_lists(
    net: Encoder,
    seq: Sequences,
    queries: Queries,
    length: int,
    k: int,
    filter_seen: bool,
    streams: Streams | None = None,
    most_tokens: int = MOST_TOKENS,
) -> npt.NDArray[np.int32]:
    """Ranked lists (Q, k), -1 from where a list ends."""
    lists = np.full((len(queries), k), -1, np.int32)
    blocks = encoder_scores(net, seq, queries, length, streams, most_tokens)
    start = 0
    for scores in blocks:
        if filter_seen:
            asked = range(start, start + len(scores))
            leave_out(scores, [seen_items(seq, int(queries.user[q]), int(queries.position[q])) for q in asked])
        best = top_k(scores, k)
        lists[start : start + len(best), : best.shape[1]] = best
        start += len(best)
    return lists
