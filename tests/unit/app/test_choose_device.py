import onnxruntime as ort
import pytest

from app.errors import DeviceError
from app.runtime.device import CPU, CUDA, choose_device

without_cuda = pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this ONNX Runtime offers CUDA")


@without_cuda
def test_auto_takes_the_cpu_where_there_is_no_cuda_and_says_why(tiny_bundle):
    device = choose_device("auto", tiny_bundle / "score.onnx")
    assert (device.name, device.providers) == ("cpu", (CPU,))
    assert "no CUDA" in device.why


@without_cuda
def test_cuda_demanded_but_absent_is_an_error_that_names_the_variable(tiny_bundle):
    with pytest.raises(DeviceError, match="LONGWAVE_DEVICE=cuda, but this ONNX Runtime has no CUDA"):
        choose_device("cuda", tiny_bundle / "score.onnx")


class _Session:
    def __init__(self, providers):
        self._providers = providers

    def get_providers(self):
        return self._providers


@pytest.mark.parametrize(("started", "name"), [([CUDA, CPU], "cuda"), ([CPU], "cpu")])
def test_a_build_with_cuda_is_believed_only_when_a_session_really_starts_on_it(monkeypatch, tiny_bundle, started, name):
    # Without a card ONNX Runtime opens the session on the CPU and merely logs; asking for the providers tells.
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: _Session(started))
    assert choose_device("auto", tiny_bundle / "score.onnx").name == name


def test_cpu_does_not_even_try_cuda(monkeypatch, tiny_bundle):
    monkeypatch.setattr(ort, "InferenceSession", None)
    assert choose_device("cpu", tiny_bundle / "score.onnx").name == "cpu"
