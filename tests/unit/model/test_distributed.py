"""Processes that train together."""

import torch.distributed as dist

from model.distributed import joined


def test_who_waits_for_one_that_measures_waits_for_hours(monkeypatch):
    # gloo gives up after half an hour, and the baselines of a large data set take longer.
    given = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: given.update(options))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with joined():
        pass
    assert given["timeout"].total_seconds() >= 24 * 3600
