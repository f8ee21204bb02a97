"""Training of the fusion model: lanes of chunks that carry each user's state, full softmax over the catalogue."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.begin import begun
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, names_of, save_checkpoint
from model.content import FirstTimes, content_loss
from model.data.sequences import Queries
from model.data.splits import select
from model.files import write_whole
from model.foreign import Foreign
from model.lanes import LaneBatch, lane_batches
from model.loop import Loop, Report
from model.losses import BLOCK, Additions, Popularity, Soft, basket_cross_entropy, basket_softmax
from model.memory import Memories, fold_memories
from model.metrics import ndcg
from model.nets import Longwave, Readout
from model.nets.readout import RARE
from model.nets.slots import RepeatState
from model.popularity import popularity_of
from model.precision import mixed
from model.predict import Carried, block_of, logits_beside, rank, read_out, repeats_at
from model.pretrain import info_nce, interest_of_view, windows
from model.replay import seen_items
from model.sampling import Candidates, CandidateSampler
from model.settings import Settings, check_together, model_defaults
from model.task import Task
from model.teacher import Teacher
from model.update.origin import Origin

DIRECT = ("repeats.", "item.bias", "readout.popularity.")
"""Parameters that score without a learned representation: few, well determined, and slow to move at the net's own rate."""


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

        described = settings.as_dict()
        if origin is not None:
            described |= {"model": origin.checkpoint.settings["model"], "init_from": origin.model_id}
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
        self._plan()

    def run(self, report: Report | None = None) -> Checkpoint:
        """As of `Loop`, after `train.pretrain` passes without answers; their losses go to `pretrain.json` in the folder."""
        if self.train.pretrain and not self.history:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "pretrain.json", json.dumps(self.pretrain()) + "\n")
        return super().run(report)

    def pretrain(self, most: int | None = None) -> list[float]:
        """The mean loss of each pass (model/pretrain.py); with an optimizer of its own, so that training's course is what it was.

        `most`: steps of a pass, for trying it out.
        """
        task, net, rng = self.task, self.net, np.random.default_rng((self.train.seed, 2))
        optimizer = torch.optim.AdamW(net.parameters(), self.train.learning_rate, weight_decay=self.train.weight_decay)
        net.train()
        losses = []
        for _ in range(self.train.pretrain):
            found = []
            for window in islice(windows(task.seq.offsets[:-1], task.split.train_end, rng), most):
                matrix, _ = net.item(self.inputs.item_text, self.inputs.item_features)
                with mixed(self.factor, self.device):
                    one, other = (interest_of_view(net, self.inputs, matrix, window, rng) for _ in range(2))
                loss = info_nce(one, other)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(net.parameters(), self.train.clip)
                optimizer.step()
                found.append(float(loss.detach()))
            losses.append(float(np.mean(found)))
        optimizer.zero_grad()
        return losses

    def batches(self, rng: np.random.Generator) -> Iterator[LaneBatch]:
        task = self.task
        return lane_batches(
            task.seq.offsets[:-1], task.split.train_end, self.queries, self.train.lanes, self.train.chunk, rng, self.train.offsets
        )

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
            return self._blocks(readout, questions, item_matrix, item_bias, soft)
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

    def _blocks(
        self, readout: Readout, questions: Questions, item_matrix: Tensor, item_bias: Tensor, soft: Soft | None
    ) -> Tensor:
        """The loss of several interests, block by block: scores are made again on the way back, and are never all there."""
        ends = torch.cumsum(torch.bincount(questions.owner, minlength=len(questions.asked)), 0).tolist()
        seen, total = self._seen(questions.queries), item_bias.new_zeros(())

        def of(begin: int, part: Readout, matrix: Tensor, bias: Tensor) -> Tensor:
            block = slice(begin, begin + len(part.context))
            own = slice(ends[begin - 1] if begin else 0, ends[block.stop - 1])
            asked, as_of = questions.asked[block], questions.as_of[block]
            logs = self.logs[self.table.slot(as_of)]
            with mixed(self.factor, self.device):
                scores = logits_beside(self.net, part, matrix, bias, logs, as_of, self.memories, asked).float()
            said = None if soft is None else Soft(soft.rows[block], soft.share[block], soft.weight)
            answers = questions.owner[own] - begin, questions.target[own]
            mask = None if seen is None else seen.mask(block)
            return basket_cross_entropy(scores, *answers, self.train.smoothing, said, mask) * len(part.context)

        for begin in range(0, len(questions.asked), BLOCK):
            part = Readout(*(field[begin : begin + BLOCK] for field in readout))
            total = total + checkpoint(of, begin, part, item_matrix, item_bias, use_reentrant=False)
        return total / len(questions.asked)

    def _unseen(self) -> Tensor | None:
        """(N) bool: the items that this step takes for new ones, of which nothing but their content is known; None for none."""
        if not self.train.unseen_items or self.net.item.gate is None:
            return None
        return torch.rand(self.task.seq.items, device=self.device) < self.train.unseen_items

    def _validate(self) -> npt.NDArray[np.floating]:
        """As of `Loop`."""
        task, k = self.task, self.task.split.k
        predictions = read_out(self.net, self.inputs, task.seq, self.valid)
        lists, block = [], block_of(*self.table.table.shape[1:])
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
