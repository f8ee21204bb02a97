"""What `longwave serve` does before a worker starts."""

import gc
import weakref

import uvicorn
from typer.testing import CliRunner

import app.runtime.bundle as module
from app.cli import cli


def test_the_command_lets_go_of_the_bundle_that_it_has_looked_at(tiny_bundle, tmp_path, monkeypatch):
    """With one worker this process serves: it would have every item twice."""
    read, seen, left = module.read_bundle, [], []

    def remembered(path):
        bundle = read(path)
        seen.append(weakref.ref(bundle))
        return bundle

    def serve(*_, **__):
        gc.collect()
        left.extend(one() for one in seen)

    monkeypatch.setattr(module, "read_bundle", remembered)
    monkeypatch.setattr(uvicorn, "run", serve)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("os.environ", {"LONGWAVE_REDIS_URL": "redis://127.0.0.1:1"})
    words = ["serve", "--bundle", str(tiny_bundle), "--storage-dir", str(tmp_path)]
    result = CliRunner().invoke(cli, words)
    assert (result.exit_code, left) == (0, [None]), result.output
