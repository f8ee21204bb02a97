"""What many items take while training: no more than a few times their table."""

import json
import os
import subprocess
import sys
from pathlib import Path

ITEMS, WIDTH = 200_000, 64
"""A fifth of the million that docs/guide.md speaks of, which takes minutes and five gibibytes."""
TABLE_GIB = ITEMS * WIDTH * 4 / 2**30


def test_steps_validation_and_checkpoint_of_a_large_catalogue_take_a_few_times_its_table(tmp_path):
    script = Path(__file__).parents[2] / "large_catalogue.py"
    kept = tmp_path / "kept.json"
    command = [sys.executable, str(script), str(ITEMS), str(tmp_path), str(kept)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    stages = [json.loads(line) for line in done.stdout.splitlines()]
    peak = {each["stage"]: each["peak_gib"] for each in stages}
    # Gradient, AdamW's two averages and its arithmetic, and the scores of a block of questions; what folding the own repeats
    # took is room that is free by then. With popularity tables for 128 questions at a time it was 21 tables.
    assert peak["checkpoint"] - peak["trainer"] < 16 * TABLE_GIB
    assert peak["trainer"] - peak["data"] < 3
    whole = json.loads(kept.read_bytes())
    assert (whole["items"], whole["peak_gib"]) == (ITEMS, peak["checkpoint"])
    assert [each["stage"] for each in whole["stages"]] == [each["stage"] for each in stages]
    assert whole["events_per_second"] > 0
