"""Item fusion: what an item is (text, features) and how it has been used (its ID), gated into one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.nets.numbers import NumberScales


class ItemFusion(nn.Module):
    """U = g * W2 B + (1 - g) * W1 F: behaviour B is the ID embedding, F the projected text and dense features, g a learned gate.

    The ID of a random share of items is hidden in training, so that content alone gives a usable vector: an item added
    online has no ID. The same vector is the event's input and the score's weight, so that embeddings exist once.
    """

    def __init__(
        self,
        items: int,
        width: int,
        text_width: int,
        feature_width: int,
        id_dropout: float,
        beside: int = 0,
        feature_scales: Sequence[tuple[float, float]] = (),
    ) -> None:
        super().__init__()
        self.id_dropout = id_dropout
        self.id = nn.Embedding(items, width)
        self.no_id = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(items))
        self.no_bias = nn.Parameter(torch.zeros(1))
        self.text = nn.Linear(text_width, width) if text_width else None
        self.features = nn.Linear(feature_width, width) if feature_width else None
        self.scaled = NumberScales(feature_scales) if feature_scales else None
        self.gate = nn.Linear(2 * width, width) if text_width or feature_width else None
        nn.init.normal_(self.id.weight, std=0.05)
        # What an item has beside its vector is its own, and not to be had from content: zeros for an unseen one.
        self.beside = nn.Embedding(items, beside) if beside else None
        if self.beside is not None:
            nn.init.normal_(self.beside.weight, std=0.05)

    def content(self, text: Tensor | None, features: Tensor | None) -> Tensor | None:
        """(n, text_width), (n, feature_width) -> (n, D); None where the model knows items by ID only."""
        parts = []
        if self.text is not None and text is not None:
            parts.append(self.text(text))
        if self.features is not None and features is not None:
            parts.append(self.features(features if self.scaled is None else self.scaled(features)))
        return torch.stack(parts).sum(0) if parts else None

    def fuse(self, behaviour: Tensor, content: Tensor | None) -> Tensor:
        if content is None or self.gate is None:
            return behaviour
        gate = torch.sigmoid(self.gate(torch.cat([behaviour, content], -1)))
        return gate * behaviour + (1 - gate) * content

    def forward(
        self, text: Tensor | None, features: Tensor | None, rows: Tensor | None = None, unseen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """All N items of the vocabulary, or some `rows` (n) of it: vectors (N or n, D) and biases (N or n).

        Rows of text and features beyond the vocabulary are items that the trainer never saw; of all items they are the last.

        Args:
            unseen: (N or n) bool, items to be taken for new ones; in training some are anyway, at random.
        """
        behaviour: Tensor = self.id.weight
        bias: Tensor = self.bias
        beside: Tensor | None = None if self.beside is None else self.beside.weight
        new_text, new_features = (None if rows is not None else _rest(part, len(behaviour)) for part in (text, features))
        if rows is not None:
            behaviour, bias = nn.functional.embedding(rows, behaviour), bias[rows]
            beside = None if beside is None else nn.functional.embedding(rows, beside)
        known = slice(len(behaviour)) if rows is None else rows
        text, features = (None if part is None else part[known] for part in (text, features))
        hidden = unseen
        if self.training and self.id_dropout > 0 and self.gate is not None:
            drawn = torch.rand(behaviour.shape[0], device=behaviour.device) < self.id_dropout
            hidden = drawn if unseen is None else drawn | unseen
        if hidden is not None:
            behaviour = torch.where(hidden[:, None], self.no_id, behaviour)
            bias = torch.where(hidden, self.no_bias, bias)
            beside = beside if beside is None else torch.where(hidden[:, None], 0.0, beside)
        vectors = self.fuse(behaviour, self.content(text, features))
        vectors = vectors if beside is None else torch.cat([vectors, beside], 1)
        if new_text is None and new_features is None:
            return vectors, bias
        new_vectors, new_bias = self.unseen(new_text, new_features)
        return torch.cat([vectors, new_vectors]), torch.cat([bias, new_bias])

    def unseen(self, text: Tensor | None, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Items that the trainer never saw, by content alone: vectors (n, D) and biases (n)."""
        content = self.content(text, features)
        if content is None:
            raise ValueError("a model without text and features knows items by ID only")
        behaviour = self.no_id.expand(content.shape[0], -1)
        vectors = self.fuse(behaviour, content)
        if self.beside is not None:
            vectors = nn.functional.pad(vectors, (0, self.beside.embedding_dim))
        return vectors, self.no_bias.expand(content.shape[0])


def _rest(table: Tensor | None, first: int) -> Tensor | None:
    """The rows from `first` on; None if there are none."""
    return None if table is None or len(table) <= first else table[first:]
