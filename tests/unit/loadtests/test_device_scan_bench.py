import onnxruntime as ort
import pytest
import typer
from typer.testing import CliRunner

from app.runtime import session
from app.runtime.bundle import read_bundle
from app.runtime.device import CPU, CUDA, Device
from loadtests import catalogue, device_scan
from loadtests.large_bundle import write_large_bundle


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this machine may have CUDA")
def test_without_a_device_nothing_is_measured_and_nothing_written(tiny_bundle, tmp_path):
    app, out = typer.Typer(), tmp_path / "figures.json"
    app.command()(catalogue.bench)
    asked = ["--bundle", str(tiny_bundle), "--part", "device", "--items", "1000", "--out", str(out)]
    result = CliRunner().invoke(app, asked)
    assert (result.exit_code, result.stdout.strip()) == (0, device_scan.NOT_MEASURED)
    assert not out.exists()


def test_what_is_run_on_a_device_runs(tiny_bundle, tmp_path, monkeypatch):
    # On the CPU, which is told to be one: the figures say nothing, but that they can be taken.
    monkeypatch.setattr(session, "choose_device", lambda *_: Device("cuda", "a test says so", (CPU,)))
    monkeypatch.setattr(device_scan, "_ROUNDS", 2)
    bundle, said = read_bundle(write_large_bundle(tiny_bundle, 300, tmp_path / "large")), []
    runtime = device_scan.open_on_device(bundle)
    assert runtime is not None
    found = device_scan.measure_device(runtime, bundle, 1_000, said.append, copied=1 << 10, rows=256)
    assert found["segments"] == 4
    assert set(found["batches"]) == {"1", "8", "32"}
    assert all(one["share_of_copy"] > 0 for one in found["batches"].values())
    assert len(said) == 4
