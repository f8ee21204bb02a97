"""The service's side of the text encoder, on a small graph: row i of a table for token i, masked mean, normalised."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from app.errors import BundleError
from app.runtime.device import CPU, Device
from app.runtime.manifest import Text
from app.runtime.text import TextEncoder

TABLE = np.asarray([[9, 9], [3, 0], [0, 4], [1, 1]], np.float32)  # padding, red, shoes, unknown
ONE = np.asarray([1])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "red": 1, "shoes": 2, "[UNK]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = ["B", "T"]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["hidden"]),
            helper.make_node("Cast", ["mask"], ["weight"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["weight", "axis_2"], ["weights"]),
            helper.make_node("Mul", ["hidden", "weights"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axis_1"], ["sum"], keepdims=0),
            helper.make_node("LpNormalization", ["sum"], ["embedding"], p=2, axis=-1),
        ],
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", 2])],
        [numpy_helper.from_array(value, name) for name, value in {"table": TABLE, "axis_1": ONE, "axis_2": ONE + 1}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "encoder.onnx")
    text = Text(encoder="encoder.onnx", tokenizer="tokenizer.json", width=2, max_tokens=3)
    return SimpleNamespace(path=folder, file=lambda name: folder / name, manifest=SimpleNamespace(text=text))


@pytest.fixture
def encoder(bundle):
    return TextEncoder(bundle, Device("cpu", "", (CPU,)), 1)


def test_a_text_is_the_normalised_mean_of_its_tokens_without_the_padding(encoder):
    # The short text shares a batch with the long one and is padded there.
    vectors = encoder.embed(["red", "red shoes", "red red shoes"])
    expected = np.asarray([[1, 0], [0.6, 0.8], [6 / 52**0.5, 4 / 52**0.5]])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_no_text_is_zeros(encoder):
    assert not encoder.embed([None, ""]).any()
    assert encoder.embed([]).shape == (0, 2)


def test_a_text_is_cut_at_the_models_length(encoder):
    np.testing.assert_allclose(encoder.embed(["red red red shoes shoes"]), [[1, 0]], atol=1e-6)


def test_a_repeated_text_is_encoded_once_and_lands_on_every_row(encoder, monkeypatch):
    calls = []
    encode = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda texts: calls.append(list(texts)) or encode(texts))
    first = encoder.embed(["shoes", "red", "shoes"])
    again = encoder.embed(["red", None, "shoes"])
    assert sorted(text for call in calls for text in call) == ["red", "shoes"]
    np.testing.assert_array_equal(first[[1, 0]], again[[0, 2]])


def test_a_damaged_tokenizer_is_named(bundle, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    broken = SimpleNamespace(path=tmp_path, file=lambda name: tmp_path / name, manifest=bundle.manifest)
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be opened"):
        TextEncoder(broken, Device("cpu", "", (CPU,)), 1)


def test_a_device_that_fails_leaves_texts_to_the_cpu(bundle, encoder, monkeypatch):
    away = TextEncoder(bundle, Device("cuda", "a test says so", (CPU,)), 1)

    class Broken:
        def run(self, *_):
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    away._session = Broken()
    assert np.array_equal(away.embed(["red shoes"]), encoder.embed(["red shoes"]))
    away._session = Broken()
    with pytest.raises(RuntimeError, match="illegal"):  # the CPU has nobody behind it
        away.embed(["shoes"])
