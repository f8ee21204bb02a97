"""An exported bundle, opened and asked as the service does it: its own graphs in ONNX Runtime, its own item vectors."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from model.data.sequences import Int64, Queries, item_key
from model.export.bundle import MANIFEST, SCALES, VECTORS
from model.nets import EventBatch
from model.nets.integers import MAX_CHUNK
from model.popularity import popularity_of
from model.replay import seen_items
from model.task import Task

Arrays = dict[str, npt.NDArray[Any]]

USERS = 32
"""Who is folded and asked in one call: about what the service gathers."""


class Opened:
    """The graphs of a bundle of N items, some of them perhaps replaced by others, on one thread."""

    def __init__(self, folder: Path, replaced: Mapping[str, Path] | None = None) -> None:
        """`replaced`: a graph's name -> the file that is opened instead."""
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        self._tensors = {
            name: ([t["name"] for t in graph["inputs"]], [t["name"] for t in graph["outputs"]])
            for name, graph in manifest["graphs"].items()
        }
        self.half_lives_s: list[float] = manifest["popularity"]["half_lives_s"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._sessions = {
            name: ort.InferenceSession((replaced or {}).get(name, folder / graph["file"]), options, ["CPUExecutionProvider"])
            for name, graph in manifest["graphs"].items()
        }
        vectors = np.load(folder / VECTORS)
        if manifest["items"].get("scales"):
            vectors = np.multiply(vectors, np.load(folder / SCALES)[:, None], dtype=np.float32)
        self.vectors = torch.as_tensor(vectors)
        self.bias = np.load(folder / "items" / "bias.npy")
        # Bytes: a text would be split at more than the ends of lines, and a title can have U+2028 or U+0085.
        ids = [json.loads(line)["id"] for line in (folder / "items" / "items.jsonl").read_bytes().splitlines()]
        keys = np.array([item_key(item) for item in ids])
        self._order = np.argsort(keys)
        self._keys = keys[self._order]

    def run(self, name: str, feeds: Arrays) -> Arrays:
        """One call of a graph; state tensors come back by the names that they go in with."""
        inputs, outputs = self._tensors[name]
        results = self._sessions[name].run(outputs, {tensor: feeds[tensor] for tensor in inputs})
        return dict(zip((tensor.removesuffix("_out") for tensor in outputs), results, strict=True))

    def lists(self, task: Task, queries: Queries) -> npt.NDArray[np.int32]:
        """The lists (Q, k) of some queries, k being the split's: every user folded from the first event on by encode.onnx."""
        seq, split = task.seq, task.split
        table = popularity_of(seq, split, self.half_lives_s)
        order = np.lexsort((queries.position, queries.user))
        users, first, counts = np.unique(queries.user[order], return_index=True, return_counts=True)
        by_length = np.argsort(queries.position[order][first + counts - 1] - seq.offsets[users], kind="stable")
        lists = np.full((len(queries), split.k), -1, np.int32)
        for start in range(0, len(users), USERS):
            some = by_length[start : start + USERS]
            state = self.run("initial", {"attributes": task.inputs.attributes[torch.as_tensor(users[some])].numpy()})
            at = seq.offsets[users[some]]
            for nth in range(int(counts[some].max())):
                asked = order[first[some] + np.minimum(nth, counts[some] - 1)]
                state = self.folded(task, state, at, queries.position[asked])
                at = queries.position[asked]
                asked, live = asked[counts[some] > nth], counts[some] > nth
                feeds = self.question(task, {name: tensor[live] for name, tensor in state.items()}, queries, asked)
                slots = table.slot(torch.as_tensor(queries.as_of[asked])).numpy()
                for slot in np.unique(slots):
                    among = np.flatnonzero(slots == slot)
                    lists[asked[among]] = self._ranked(task, feeds, table.table[slot].numpy(), queries, asked, among)
        return lists

    def question(self, task: Task, state: Arrays, queries: Queries, asked: Int64) -> Arrays:
        """What interest.onnx is given for some queries (n) at the states of their users (n)."""
        platform = task.inputs.platform[torch.as_tensor(queries.position[asked])].numpy()
        return state | {"as_of": queries.as_of[asked], "platform": platform}

    def scoring(self, interest: Arrays, popularity: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], k: int) -> Arrays:
        """What score.onnx is given for what interest.onnx has said."""
        items = {"item_matrix": self.vectors.numpy(), "item_bias": self.bias, "bias": bias}
        counts = {"popularity": popularity}
        recent = self.run("recent", counts) if "recent" in self._sessions else counts  # a bundle of before takes the counts
        feeds = interest | items | recent | {"k": np.array([k])}
        if "repeat_keys" in interest:
            keys = interest["repeat_keys"]
            place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            feeds["repeat_rows"] = np.where(self._keys[place] == keys, self._order[place], -1)
        return feeds

    def folded(self, task: Task, state: Arrays, start: Int64, stop: Int64) -> Arrays:
        """The states (n) after each user's rows `start:stop`, in padded chunks."""
        for begin in range(0, int((stop - start).max()), MAX_CHUNK):
            width = min(MAX_CHUNK, int((stop - start).max()) - begin)
            rows = start[:, None] + begin + np.arange(width)
            valid = rows < stop[:, None]
            events = task.inputs.events(torch.as_tensor(np.where(valid, rows, 0)), self.vectors)
            state = self.run("encode", state | _arrays(events) | {"valid": valid})
        return state

    def _ranked(
        self,
        task: Task,
        feeds: Arrays,
        popularity: npt.NDArray[np.float32],
        queries: Queries,
        asked: Int64,
        among: Int64,
    ) -> npt.NDArray[np.int32]:
        bias = np.zeros((len(among), len(self.bias)), np.float32)
        for index, query in enumerate(asked[among].tolist() if task.split.filter_seen else ()):
            bias[index, seen_items(task.seq, int(queries.user[query]), int(queries.position[query]))] = -np.inf
        interest = self.run("interest", {name: tensor[among] for name, tensor in feeds.items()})
        k = min(task.split.k, len(self.bias))
        best = self.run("score", self.scoring(interest, popularity, bias, k))
        out = np.full((len(among), task.split.k), -1, np.int32)
        out[:, :k] = np.where(np.isfinite(best["scores"]), best["rows"], -1)
        return out


class Timed:
    """One fold step and one read of `USERS` users by a bundle, to be timed by turns with others."""

    def __init__(self, opened: Opened, task: Task, queries: Queries) -> None:
        """The users are those of the first queries, each at the state before the query's last event."""
        self._opened, seq = opened, task.seq
        asked = np.flatnonzero(queries.position > seq.offsets[queries.user])[:USERS]
        users, stop = queries.user[asked], queries.position[asked]
        state = opened.run("initial", {"attributes": task.inputs.attributes[torch.as_tensor(users)].numpy()})
        state = opened.folded(task, state, np.maximum(seq.offsets[users], stop - 1 - MAX_CHUNK), stop - 1)
        self._step = state | _arrays(task.inputs.events(torch.as_tensor(stop - 1), opened.vectors))
        state = opened.run("step", self._step)
        self._interest = opened.question(task, state, queries, asked)
        self._score = opened.scoring(
            opened.run("interest", self._interest),
            popularity_of(seq, task.split, opened.half_lives_s).table[-1].numpy(),
            np.zeros((1, len(opened.bias)), np.float32),
            min(task.split.k, len(opened.bias)),
        )
        self._users = len(asked)
        self.seconds: dict[str, list[float]] = {"step": [], "interest": [], "score": []}

    def once(self) -> None:
        """Time each graph once."""
        for name, feeds in (("step", self._step), ("interest", self._interest), ("score", self._score)):
            began = time.perf_counter()
            self._opened.run(name, feeds)
            self.seconds[name].append((time.perf_counter() - began) / self._users)


def _arrays(events: EventBatch) -> Arrays:
    return {name: tensor.numpy() for name, tensor in events._asdict().items() if tensor is not None}
