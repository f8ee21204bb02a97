"""The text encoder as ONNX, with its tokenizer, so that the service understands a new item's words without torch."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from model.export.verify import ExportError
from model.text import TextEncoder

EXAMPLES = ["a red mug", "", "SET OF 6 PAPER LANTERNS, with white dots and a very long description that goes on and on", "ü"]


def export_text(encoder: TextEncoder) -> dict[str, bytes]:
    """`text/encoder.onnx` (ids, mask int64 (B, tokens) -> embedding (B, W)) and `text/tokenizer.json`.

    Raises:
        ExportError: ONNX and torch give different embeddings.
    """
    from model.export.graphs import OPSET

    buffer = io.BytesIO()
    ids = torch.tensor([[101, 2417, 102], [101, 102, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    axes = {0: "B", 1: "tokens"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            (ids, mask),
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=["ids", "mask"],
            output_names=["embedding"],
            dynamic_axes={"ids": axes, "mask": axes, "embedding": {0: "B"}},
        )
    proto = buffer.getvalue()
    tokens = encoder.tokenizer(EXAMPLES, padding=True, truncation=True, max_length=encoder.max_tokens, return_tensors="pt")
    with torch.no_grad():
        want = encoder(tokens["input_ids"], tokens["attention_mask"]).numpy()
    session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
    feeds = {"ids": tokens["input_ids"].numpy(), "mask": tokens["attention_mask"].numpy()}
    have = session.run(None, feeds)[0]
    worst = float(np.abs(want - have).max())
    if worst > 1e-4:
        raise ExportError(f"text/encoder.onnx: torch and ONNX differ by {worst:.2e}, allowed are 1e-04")
    with tempfile.TemporaryDirectory() as folder:
        encoder.tokenizer.backend_tokenizer.save(str(Path(folder) / "tokenizer.json"))
        tokenizer = (Path(folder) / "tokenizer.json").read_bytes()
    return {"text/encoder.onnx": proto, "text/tokenizer.json": tokenizer}
