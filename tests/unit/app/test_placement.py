"""A device that fails, in every place where it can: the CPU goes on, and says so. Played on the CPU, which is told to be one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from app.runtime import session
from app.runtime.bundle import read_bundle
from app.runtime.device import CPU, CUDA, Device, choose_device
from app.runtime.golden import replay_golden
from app.runtime.session import DeviceSession, Resident, open_runtime

PLAYED = Device("cuda", "a test says so", (CPU,))


@pytest.fixture
def runtime(tiny_bundle, monkeypatch):
    monkeypatch.setattr(session, "choose_device", lambda *_: PLAYED)
    return open_runtime(read_bundle(tiny_bundle), "cuda", 1)


@pytest.fixture
def feeds(runtime):
    """Of score.onnx, everything of the catalogue on the device."""
    vectors, bias = runtime.bundle.vectors, runtime.bundle.bias
    rng = np.random.default_rng(0)
    users, width = 2, vectors.shape[1]
    return {
        "interests": rng.normal(size=(users, 1, width)).astype(np.float32),
        "popularity_weight": rng.uniform(size=(users, 2)).astype(np.float32),
        "item_matrix": runtime.resident(vectors),
        "item_bias": runtime.resident(bias),
        **runtime.kept_popularity(runtime.bundle.popularity.astype(np.float32)),
        "bias": np.zeros((1, len(bias)), np.float32),
        "k": np.asarray([5]),
        "repeat_rows": np.full((users, 16), -1),
        "repeat_scores": np.zeros((users, 16), np.float32),
        "repeat_interest": np.zeros((users, width), np.float32),
    }


def break_calls(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUDA failure 2: out of memory; GPU=0")

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", fails)


def test_graphs_on_a_device_go_through_io_binding_and_give_what_the_cpu_gives(runtime, feeds, monkeypatch, tiny_bundle):
    assert replay_golden(runtime) > 0
    assert isinstance(runtime.score, DeviceSession)
    assert all(isinstance(feeds[name], Resident) for name in ("item_matrix", "item_bias", "recent"))
    bound, run = [], ort.InferenceSession.run_with_iobinding
    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", lambda *args: (bound.append(1), run(*args))[1])
    found = runtime.score(feeds)
    assert bound
    monkeypatch.setattr(session, "choose_device", lambda *_: Device("cpu", "", (CPU,)))
    plain = open_runtime(read_bundle(tiny_bundle), "cpu", 1)
    there = {name: feed.again() if isinstance(feed, Resident) else feed for name, feed in feeds.items()}
    for name, values in plain.score(there).items():
        assert np.array_equal(found[name], values)
    assert runtime.device is PLAYED


def test_a_call_that_fails_on_the_device_is_answered_by_the_cpu_from_then_on(runtime, feeds, monkeypatch):
    right = runtime.score(feeds)
    with monkeypatch.context() as patch:
        break_calls(patch)
        found = runtime.score(feeds)
        assert np.array_equal(found["rows"], right["rows"])
        assert runtime.device.name == "cpu"
        assert runtime.device.why == "cuda failed (score.onnx: CUDA failure 2: out of memory; GPU=0)"
        # Other graphs do not even try, and what is made resident is where the CPU has it.
        assert not isinstance(runtime.kept_popularity(runtime.bundle.popularity.astype(np.float32))["recent"], Resident)
        assert not isinstance(runtime.resident(np.zeros(3, np.float32)), Resident)
    assert np.array_equal(runtime.score(feeds)["rows"], right["rows"])
    assert runtime.device.name == "cpu"  # for good
    assert runtime.placement.failures == 1


def test_outputs_that_were_to_stay_on_the_device_are_made_by_the_cpu(runtime, monkeypatch):
    break_calls(monkeypatch)
    counts = runtime.bundle.popularity.astype(np.float32)
    recent = runtime.kept_popularity(counts)["recent"]
    assert np.allclose(recent.numpy(), np.log(counts + 0.05), atol=1e-6)
    assert runtime.device.name == "cpu"


def test_a_device_without_room_for_the_items_leaves_them_to_the_cpu(runtime, feeds, monkeypatch):
    right, there = runtime.score(feeds), ort.OrtValue.ortvalue_from_numpy

    def full(array, *where):
        if where:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 3840")
        return there(array)

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", staticmethod(full))
    matrix = runtime.resident(runtime.bundle.vectors)
    assert runtime.device.name == "cpu"
    assert runtime.device.why.startswith("cuda failed (putting 3,840 bytes there: Failed to allocate")
    assert np.array_equal(runtime.score(feeds | {"item_matrix": matrix})["rows"], right["rows"])


def test_what_is_wrong_with_the_question_is_not_the_devices_fault(runtime, feeds):
    with pytest.raises(Exception, match=r"(?i)invalid|shape|dimension"):
        runtime.score(feeds | {"repeat_scores": np.zeros((7, 3), np.float32)})
    assert runtime.device is PLAYED


def test_cuda_is_opened_without_tf32_which_keeps_ten_bits_of_a_factor(monkeypatch, tiny_bundle):
    opened = []
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda *_, providers: (opened.append(providers), SimpleNamespace(get_providers=lambda: [CUDA, CPU]))[1],
    )
    device = choose_device("auto", tiny_bundle / "score.onnx")
    assert device.memory == "cuda"
    assert opened == [list(device.providers)]
    name, options = device.providers[0]
    assert (name, options["use_tf32"]) == (CUDA, "0")
