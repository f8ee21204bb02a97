"""The bench's arithmetic, on samples whose figures are known."""

import json
import os
import re

import pytest

from loadtests.machine import ROOT, cpu_seconds
from loadtests.report import LIMITS, Load, Round, Samples, Timed, figures, missed, parse_server_timing, percentile, write

LATEST = ROOT / "loadtests/results/latest.json"


def timed(client_ms, service_ms):
    stages = {"load": 0.5, "fold": 0.1, "interest": 0.2, "score": service_ms - 0.8, "service": service_ms}
    return Timed(client_ms / 1e3, stages)


@pytest.fixture
def samples():
    # p50 of the client over both rounds: 1..100 ms; the floor's is 2 ms
    rounds = [
        Round([timed(n, n / 2) for n in range(1, 51)], [0.002] * 50, [0.003] * 9, [timed(4.0, 2.0)] * 9),
        Round([timed(n, n / 2) for n in range(51, 101)], [0.002] * 50, [0.005] * 10, [timed(6.0, 3.0)] * 10),
    ]
    return Samples(rounds, Load(1_000, 4.0, 3.9, 1.0), Load(8_000, 4.0, 4.0, 2.0), 9_000)


@pytest.mark.parametrize(("q", "expected"), [(50, 50), (99, 99), (100, 100), (1, 1), (99.5, 100)])
def test_a_percentile_is_the_value_at_its_nearest_rank(q, expected):
    assert percentile(list(range(100, 0, -1)), q) == expected


def test_a_percentile_of_one_value_is_that_value():
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


def test_latencies_are_taken_over_all_rounds(samples):
    found = figures(samples)
    assert (found["get_client_p50_ms"], found["get_client_p99_ms"]) == (50.0, 99.0)
    assert (found["get_service_p50_ms"], found["get_service_p99_ms"]) == (25.0, 49.5)
    assert found["get_after_post_p50_ms"] == 3.0
    assert found["get_score_p50_ms"] == 24.2


def test_ratios_are_to_the_floor_of_the_same_run_and_their_spread_to_that_of_the_same_round(samples):
    found = figures(samples)
    assert found["floor_client_p50_ms"] == 2.0
    assert found["get_floor_ratio"] == 25.0
    assert found["post_floor_ratio"] == 2.5
    assert (found["get_floor_ratio_min"], found["get_floor_ratio_max"]) == (12.5, 37.5)


def test_a_throughput_counts_only_with_the_service_busy_and_the_generator_not(samples):
    found = figures(samples)
    assert (found["throughput_get_rps"], found["throughput_floor_rps"]) == (250.0, 2_000.0)
    assert found["throughput_counts"] is True
    samples.get_load.server_s = 3.7  # 92.5% of the core
    assert figures(samples)["throughput_counts"] is False
    samples.get_load.server_s, samples.floor_load.generator_s = 3.9, 3.9
    assert figures(samples)["throughput_counts"] is False


def test_a_limit_is_missed_just_above_it_and_not_at_it():
    at = dict(LIMITS)
    assert missed(at) == []
    assert missed(at | {"state_bytes": 16_385}) == ["state_bytes"]
    assert missed(at | {"get_service_p50_ms": 5.001}) == ["get_service_p50_ms"]


def test_the_header_that_the_service_writes_is_read_back():
    from app.telemetry import Stages

    stages = Stages()
    stages.mark("load")
    stages.mark("score")
    found = parse_server_timing(stages.server_timing())
    assert list(found) == ["load", "score", "service"]
    assert found["load"] == pytest.approx(stages.seconds["load"] * 1e3, abs=1e-3)


def test_processor_time_of_a_process_grows_as_it_works():
    before = cpu_seconds(os.getpid())
    while cpu_seconds(os.getpid()) < before + 0.05:
        sum(range(10_000))
    assert cpu_seconds(os.getpid()) < before + 1


def test_the_file_is_replaced_whole(tmp_path):
    write({"a": 1}, tmp_path / "new" / "latest.json")
    write({"a": 2}, tmp_path / "new" / "latest.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["latest.json"]
    assert json.loads((tmp_path / "new" / "latest.json").read_text()) == {"a": 2}


def test_the_kept_results_have_every_figure_and_say_where_they_are_from(samples):
    kept = json.loads(LATEST.read_text(encoding="utf-8"))
    assert kept.keys() >= figures(samples).keys()
    assert kept.keys() >= {"date", "commit", "machine", "load_average", "model_id", "bundle", "data", "items", "rounds"}
    assert kept["machine"].keys() >= {"cpu", "cores", "memory_gib", "kernel", "python", "onnxruntime"}
    assert re.fullmatch("[0-9a-f]{40}", kept["commit"]["id"])
    assert 3_500 <= kept["items"] <= 5_000
    assert missed(kept) == []
    assert kept["get_floor_ratio"] == pytest.approx(kept["get_client_p50_ms"] / kept["floor_client_p50_ms"], abs=0.01)
