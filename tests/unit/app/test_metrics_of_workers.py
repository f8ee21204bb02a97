"""What several processes make of /metrics together, when one of them is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from app.telemetry import MULTIPROCESS_DIR

WORKER = """
import os, signal, sys
from app.telemetry import Metrics
metrics = Metrics()
metrics.device_failed.set(1)
metrics.serves(sys.argv[1])
metrics.folded.labels("read").inc(2)
if len(sys.argv) > 2:
    os.kill(os.getpid(), signal.SIGKILL)
print(metrics.render().decode())
"""


def worker(folder: Path, *arguments: str) -> str:
    environment = os.environ | {MULTIPROCESS_DIR: str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == (-9 if len(arguments) > 1 else 0), done.stderr
    return done.stdout


def test_what_a_killed_worker_counted_stays_and_what_it_was_does_not(tmp_path: Path):
    worker(tmp_path, "before", "killed")
    lines = worker(tmp_path, "now").splitlines()
    assert 'longwave_folded_events_total{by="read"} 4.0' in lines
    assert "longwave_device_failed 1.0" in lines
    assert 'longwave_model_active{model_id="now"} 1.0' in lines
    assert not any('model_id="before"' in line for line in lines if line.startswith("longwave_model_active"))
