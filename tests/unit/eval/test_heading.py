"""What every result of a benchmark begins with."""

import re
from datetime import UTC, datetime

from model.benchmark.heading import heading


def test_a_result_begins_with_its_format_and_name_and_with_when_of_what_and_where_it_was_measured():
    found = heading(3, "ml-1m", preset="small", seed=4)
    assert list(found) == ["format", "name", "preset", "seed", "date", "commit", "machine"]
    assert (found["format"], found["name"], found["preset"], found["seed"]) == (3, "ml-1m", "small", 4)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["date"])
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["date"])).total_seconds()) < 60
    assert {"id", "dirty"} == set(found["commit"])
    assert {"cpu", "cores", "torch"} <= set(found["machine"])
