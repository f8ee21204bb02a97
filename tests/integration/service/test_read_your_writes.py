"""Read your writes (invariant I3), by content: the load test of that name, shortened. By hand it takes 36,000 pairs."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_list_is_the_offline_fold_of_what_its_client_had_sent(tiny_bundle, tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "loadtests.read_your_writes", "--bundle", tiny_bundle, "--pairs", "300", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert [(one["background_fold"], one["services"]) for one in found["runs"]] == [(True, 1), (False, 1), (True, 2)]
    assert (found["pairs"], found["stale"], found["wrong"]) == (900, 0, 0)
    # both services were at work
    assert len(found["runs"][2]["processor_seconds_by_process"]) > len(found["runs"][0]["processor_seconds_by_process"])
    # what proves something: nearly every list would have been another one without the last event
    assert sum(one["same_without_the_last_event"] for one in found["runs"]) < 45
