"""A data set as tensors: the events that the net reads, gathered by row, and what is known of the items."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from model.data.sequences import Sequences
from model.nets import EventBatch


@dataclass(frozen=True)
class Inputs:
    """E events and N items on one device.

    Attributes:
        item, item_key, kind, platform, time, numbers: (E, ...) as in `Sequences`.
        text: (distinct texts, W) embeddings of event texts; text_row: (E,) int64 row in `text`, 0 is "no text" (zeros).
        item_text: (N, W) or None; item_features: (N, F) or None.
        attributes: (U, A) int64.
    """

    item: Tensor
    item_key: Tensor
    kind: Tensor
    platform: Tensor
    time: Tensor
    numbers: Tensor
    text: Tensor | None
    text_row: Tensor | None
    item_text: Tensor | None
    item_features: Tensor | None
    attributes: Tensor

    @classmethod
    def of(
        cls,
        seq: Sequences,
        item_text: np.ndarray | None = None,
        event_text: tuple[np.ndarray, np.ndarray] | None = None,
        item_features: np.ndarray | None = None,
        device: str = "cpu",
    ) -> Inputs:
        """item_text (N, W); event_text: (texts, W) embeddings and (E,) row of each event's text, -1 without; features (N, F)."""

        def tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array)).to(device=device, dtype=dtype)

        text = text_row = None
        if item_text is not None:
            width = item_text.shape[1]
            table, rows = event_text or (np.zeros((0, width), np.float32), np.full(len(seq.item), -1))
            text = tensor(np.concatenate([np.zeros((1, width), np.float32), table]), torch.float32)
            text_row = tensor(rows + 1, torch.int64)
        return cls(
            tensor(seq.item, torch.int64),
            tensor(seq.item_key, torch.int64),
            tensor(seq.type, torch.int64),
            tensor(seq.platform, torch.int64),
            tensor(seq.time, torch.int64),
            tensor(seq.numbers, torch.float32),
            text,
            text_row,
            None if item_text is None else tensor(item_text, torch.float32),
            None if item_features is None else tensor(item_features, torch.float32),
            tensor(seq.attributes, torch.int64),
        )

    def of_rows(self, rows: np.ndarray, users: np.ndarray) -> Inputs:
        """The events of other sequences: of the E at `rows`, by the U at `users`; any may be there more than once."""
        at, of = torch.as_tensor(rows), torch.as_tensor(users)
        return replace(
            self,
            item=self.item[at],
            item_key=self.item_key[at],
            kind=self.kind[at],
            platform=self.platform[at],
            time=self.time[at],
            numbers=self.numbers[at],
            text_row=None if self.text_row is None else self.text_row[at],
            attributes=self.attributes[of],
        )

    def on(self, device: torch.device) -> Inputs:
        """The same on a device; nothing is copied where it is there already."""
        if self.item.device == device:
            return self
        return replace(self, **{f.name: tensor.to(device) for f in fields(self) if (tensor := getattr(self, f.name)) is not None})

    def events(self, rows: Tensor, item_matrix: Tensor, place: Tensor | None = None) -> EventBatch:
        """The events at `rows` (...) with item vectors from `item_matrix` (N, D), where item i has row i, or `place[i]`."""
        item = self.item[rows]
        known = item >= 0
        item = item.clamp(min=0)
        vectors = torch.nn.functional.embedding(item if place is None else place[item], item_matrix) * known[..., None]
        text = None if self.text is None or self.text_row is None else self.text[self.text_row[rows]]
        return EventBatch(
            vectors, known, self.item_key[rows], self.kind[rows], self.platform[rows], self.numbers[rows], self.time[rows], text
        )
