"""The text encoder as ONNX, with its tokenizer, so that the service understands a new item's words without torch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from model.export.graphs import to_onnx
from model.export.verify import ExportError
from model.text import TextEncoder

EXAMPLES = ["a red mug", "", "SET OF 6 PAPER LANTERNS, with white dots and a very long description that goes on and on", "ü"]


def export_text(encoder: TextEncoder) -> dict[str, bytes]:
    """`text/encoder.onnx` (ids, mask int64 (B, tokens) -> embedding (B, W)) and `text/tokenizer.json`.

    Raises:
        ExportError: ONNX and torch give different embeddings.
    """
    tokens = encoder.tokenizer(EXAMPLES, padding=True, truncation=True, max_length=encoder.max_tokens, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    axes = {0: "B", 1: "tokens"}
    # Traced on another shape than it is checked on, which shows that both dimensions are free.
    example = {"ids": ids[:2, :5], "mask": mask[:2, :5]}
    proto = to_onnx(encoder, example, ["embedding"], {"ids": axes, "mask": axes, "embedding": {0: "B"}})
    with torch.no_grad():
        want = encoder(ids, mask).numpy()
    session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
    have = session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0]
    worst = float(np.abs(want - have).max())
    if worst > 1e-4:
        raise ExportError(f"text/encoder.onnx: torch and ONNX differ by {worst:.2e}, allowed are 1e-04")
    with tempfile.TemporaryDirectory() as folder:
        encoder.tokenizer.backend_tokenizer.save(str(Path(folder) / "tokenizer.json"))
        tokenizer = (Path(folder) / "tokenizer.json").read_bytes()
    return {"text/encoder.onnx": proto, "text/tokenizer.json": tokenizer}
