"""Training of the fusion model: lanes of chunks that carry each user's state, full softmax over the catalogue."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.begin import as_begun, begun
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, names_of, save_checkpoint
from model.content import FirstTimes, content_loss
from model.data.sequences import Queries
from model.data.splits import select
from model.foreign import Foreign
from model.lanes import LaneBatch, lane_batches
from model.loop import Loop
from model.losses import Additions, Popularity, basket_cross_entropy, basket_softmax
from model.memory import Memories, fold_memories
from model.metrics import ndcg
from model.nets import Longwave, Readout
from model.nets.readout import RARE
from model.nets.slots import RepeatState
from model.popularity import popularity_of
from model.precision import mixed
from model.predict import Carried, block_of, logits, rank, read_out, repeats_at
from model.replay import seen_items
from model.sampling import Candidates, CandidateSampler
from model.settings import Settings, check_together, model_defaults
from model.task import Task
from model.teacher import Teacher
from model.update.origin import Origin

DIRECT = ("repeats.", "item.bias", "readout.popularity.")
"""Parameters that score without a learned representation: few, well determined, and slow to move at the net's own rate."""

FEWEST_LANES = 8
"""Of a batch, where events are few; see `Loop._plan`."""


class Questions(NamedTuple):
    """The n queries of a step and their t targets.

    Attributes:
        queries: they. asked: (n) int64 which of all queries they are. as_of: (n) int64 ms. platform: (n) int64.
        owner: (t) int64 query of each target, ascending. target: (t) int64 item rows.
    """

    queries: Queries
    asked: Tensor
    as_of: Tensor
    platform: Tensor
    owner: Tensor
    target: Tensor


class Trainer(Loop[Longwave, Checkpoint]):
    """A run of the fusion model."""

    def __init__(self, task: Task, settings: Settings, folder: Path, origin: Origin | None = None) -> None:
        """Arguments and errors as of `Loop`.

        Args:
            origin: begin with the weights of this bundle, in its shape, instead of random ones.

        Raises:
            OriginError: the bundle's model does not fit the data.
            ConfigError: it does not go with the settings.
        """
        train = settings.train

        def groups(net: Longwave) -> list[dict[str, Any]]:
            direct = [p for name, p in net.named_parameters() if name.startswith(DIRECT)]
            learned = [p for name, p in net.named_parameters() if not name.startswith(DIRECT)]
            return [
                {"params": learned, "lr": train.learning_rate, "weight_decay": train.weight_decay},
                {"params": direct, "lr": train.direct_learning_rate, "weight_decay": train.weight_decay / 10},
            ]

        def build() -> Longwave:
            return Longwave(task.model_config(settings)) if origin is None else begun(origin, task, settings.data.text_encoder)

        described = as_begun(settings, origin)
        if origin is not None:
            shape = {name: getattr(origin.checkpoint.net.config, name) for name in model_defaults()}
            check_together(origin.folder, replace(settings, model=shape))
        super().__init__(task, train, described, folder, build, groups)
        self.inputs = task.inputs.on(self.device)
        self.table = popularity_of(task.seq, task.split, self.net.config.popularity_half_lives_s).on(self.device)
        self.logs = (self.table.table + RARE).log_()
        self.memories = self._memories(self.queries)
        self.valid_memories = self._memories(self.valid)
        self.begin_epoch()
        self.sampler = None
        if train.negatives:
            counts = np.bincount(self.queries.target, minlength=task.seq.items)
            self.sampler = CandidateSampler(counts.astype(np.float64), train.negatives, self.device)
        self.first = FirstTimes(task.seq) if train.content_weight and self.net.item.gate is not None else None
        self.teacher = Teacher(Path(train.teacher), task) if train.teacher else None
        self._plan(train.lanes, FEWEST_LANES)

    def batches(self, rng: np.random.Generator) -> Iterator[LaneBatch]:
        task = self.task
        return lane_batches(task.seq.offsets[:-1], task.split.train_end, self.queries, self.batch, self.train.chunk, rng)

    def _memories(self, queries: Queries) -> Memories | None:
        return fold_memories(self.net, self.task.seq, queries) if self.net.repeats is not None else None

    def begin_epoch(self) -> None:
        late = 4 * self.epoch >= 3 * self.train.epochs
        apart = np.random.default_rng((self.train.seed, self.epoch, self.group.rank, 1))
        self.carried = Foreign(self.train.foreign, apart) if late and self.train.foreign else Carried()
        self.drawing = np.random.default_rng((self.train.seed, self.epoch, self.group.rank))

    def _loss(self, batch: LaneBatch) -> Tensor | None:
        if not len(batch.user):
            return None
        net, inputs = self.net, self.inputs
        questions = self._questions(batch.query[batch.query >= 0])
        asked, rows = questions.asked, self.there(batch.rows)
        candidates, remembered = None, None
        if self.sampler:
            remembered = None if self.memories is None else self.memories.at(asked)
            needed = torch.cat([inputs.item[rows].flatten(), *([] if remembered is None else [remembered[1].flatten()])])
            candidates = self.sampler.draw(questions.target, needed, self.drawing)
        unseen = self._unseen()
        needed_rows = candidates.needed if candidates else None
        item_matrix, item_bias = net.item(inputs.item_text, inputs.item_features, needed_rows, unseen)
        state = self.carried.enter(net, inputs, batch)
        events = inputs.events(rows, item_matrix, candidates.place if candidates else None)
        moments = self.there(batch.valid), state, self.there(batch.positions), questions.as_of, questions.platform
        with mixed(self.factor, self.device):
            readout, state = self.forward(events, *moments)
        readout = Readout(*(field.float() for field in readout))
        self.carried.leave(batch, state)
        if not len(asked):
            return None
        return self._softmax(readout, questions, item_matrix, item_bias, candidates, unseen, remembered)

    def _questions(self, asked: npt.NDArray[np.int64]) -> Questions:
        chosen = select(self.queries, asked)
        return Questions(
            chosen,
            self.there(asked),
            self.there(chosen.as_of),
            self.inputs.platform[self.there(chosen.position)],
            self.there(np.repeat(np.arange(len(chosen)), np.diff(chosen.target_offsets))),
            self.there(chosen.target.astype(np.int64)),
        )

    def _softmax(
        self,
        readout: Readout,
        questions: Questions,
        item_matrix: Tensor,
        item_bias: Tensor,
        candidates: Candidates | None,
        unseen: Tensor | None,
        remembered: tuple[RepeatState, Tensor] | None = None,
    ) -> Tensor:
        """The loss of a step over all items, or over the candidates (matrix and bias are then of the items that it needs).

        Items that are taken for new ones, `unseen` (N), have neither popularity nor own repeats. `remembered` is what the queries
        find in their memories, if that is known already.
        """
        net, asked, as_of, owner, target = self.net, questions.asked, questions.as_of, questions.owner, questions.target
        smoothing = self.train.smoothing
        soft = self.teacher.at(asked, self.train.distil) if self.teacher else None
        if net.config.interests > 1:
            scores = logits(net, readout, item_matrix, item_bias, self.table.at(as_of), as_of, self.memories, asked)
            return basket_cross_entropy(scores, owner, target, smoothing, soft)
        logs, slot = self.logs, self.table.slot(as_of)
        if unseen is not None:
            slots, slot = torch.unique(slot, return_inverse=True)
            logs = logs[slots].masked_fill(unseen[:, None], math.log(RARE))
        popularity = Popularity(readout.popularity_weight, logs, slot)
        repeats = None
        if self.memories is not None:
            place = candidates.place if candidates else None
            repeats = Additions(*repeats_at(net, readout, item_matrix, as_of, self.memories, asked, place, remembered))
            if unseen is not None:
                repeats = Additions(repeats.rows, torch.where(unseen[repeats.rows], 0.0, repeats.amount))
        if candidates:
            popularity = candidates.popularity(*popularity)
            own = candidates.own(owner, target, len(asked))
            others = [] if repeats is None else [candidates.repeated(*repeats)]
            repeats = Additions(*(torch.cat(parts, 1) for parts in zip(own, *others, strict=True)))
            target, _ = candidates.among(target)
            item_matrix = nn.functional.embedding(candidates.chosen, item_matrix)
            item_bias = item_bias[candidates.chosen] - candidates.log_chance
        # Of an item's own transition only q is matched: p meets zeros, which no product need be made with.
        scored = net.config.width + net.config.transition
        interest = readout.interests[:, 0, :scored]
        known = interest, item_matrix[:, :scored], item_bias
        seen = self._seen(questions.queries)
        loss = basket_softmax(*known, owner, target, smoothing, popularity, repeats, self.factor, seen, soft)
        if self.first is None:
            return loss
        content, _ = net.item.unseen(self.inputs.item_text, self.inputs.item_features)
        beside = content_loss(interest, content[:, :scored], questions.queries, self.first, smoothing, self.factor)
        return loss + self.train.content_weight * beside

    def _unseen(self) -> Tensor | None:
        """(N) bool: the items that this step takes for new ones, of which nothing but their content is known; None for none."""
        if not self.train.unseen_items or self.net.item.gate is None:
            return None
        return torch.rand(self.task.seq.items, device=self.device) < self.train.unseen_items

    def _validate(self) -> npt.NDArray[np.floating]:
        """As of `Loop`."""
        task, k = self.task, self.task.split.k
        predictions = read_out(self.net, self.inputs, task.seq, self.valid)
        lists, block = [], block_of(self.device, *self.table.table.shape[1:])
        for start in range(0, len(self.valid), block):
            chosen = torch.arange(start, min(start + block, len(self.valid)), device=self.device)
            popularity = self.table.at(self.there(self.valid.as_of)[chosen])
            forbidden = None
            if task.split.filter_seen:
                forbidden = [seen_items(task.seq, int(self.valid.user[q]), int(self.valid.position[q])) for q in chosen.tolist()]
            lists.append(rank(self.net, predictions, self.valid, popularity, self.valid_memories, k, chosen, forbidden))
        return ndcg(np.concatenate(lists), self.valid, k) if lists else np.empty(0)

    def _kept(self, training: dict[str, Any]) -> Checkpoint:
        return Checkpoint(
            self.net,
            self.described,
            self.task.seq.item_ids,
            self.task.data | ({"teacher": self.teacher.fingerprint} if self.teacher else {}),
            names_of(self.task.seq),
            None if self.task.item_text is None else torch.as_tensor(self.task.item_text),
            self.task.split.cut_ms,
            self.history,
            training,
            None if self.task.item_features is None else torch.as_tensor(self.task.item_features),
        )

    def _check(self, stored: Checkpoint, path: Path) -> None:
        if stored.training and stored.net.config.feature_scales != self.net.config.feature_scales:
            raise CheckpointError(
                f"{path}: begun by an older version, which read numbers of items as they are; "
                "train into another folder, or give --overwrite"
            )
        # A run of before does not say what it was taught.
        if self.teacher and stored.data.get("teacher", self.teacher.fingerprint) != self.teacher.fingerprint:
            raise CheckpointError(
                f"{path}: learned from another teaching than {self.train.teacher} has now (`longwave-train teach` ran again); "
                "train into another folder, or give --overwrite"
            )

    def _save(self, kept: Checkpoint, path: Path) -> None:
        save_checkpoint(kept, path)

    def _load(self, path: Path) -> Checkpoint:
        return load_checkpoint(path)
