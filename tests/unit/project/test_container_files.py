"""Dockerfile and compose file agree with the service they carry, and with each other."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from app.settings import PREFIX, Settings, variable

ROOT = Path(__file__).parents[3]
DOCKERFILE = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]


def stages():
    """Each stage's instructions as (name, words) pairs; a nameless stage is ""."""
    found = {}
    for line in DOCKERFILE.splitlines():
        if line and not line.startswith("#"):
            instruction, _, rest = line.strip().partition(" ")
            if instruction == "FROM":
                base, _, name = rest.partition(" AS ")
                found[name] = [("FROM", base)]
            else:
                found[name].append((instruction, rest.strip()))
    return found


def instructions(stage, instruction):
    return [rest for name, rest in stages()[stage] if name == instruction]


def environment(stage):
    return dict(word.split("=", 1) for rest in instructions(stage, "ENV") for word in shlex.split(rest))


def test_the_serving_image_installs_no_part_of_the_trainer():
    for stage in ("dependencies", "service", "serve"):
        for command in instructions(stage, "RUN"):
            assert re.findall(r"\.\[(.*?)\]", command) in ([], ["cpu"])
        assert not any("model" in copied.split() for copied in instructions(stage, "COPY"))


@pytest.mark.parametrize("stage", ["serve", "train"])
def test_an_image_runs_as_nobody_in_particular_and_reports_to_nobody(stage):
    assert instructions(stage, "USER") == ["10001"]
    assert environment(stage)["ORT_DISABLE_TELEMETRY"] == "1"


def test_a_build_without_a_target_is_the_service():
    assert list(stages().values())[-1] == [("FROM", "serve")]


def test_the_image_sets_only_settings_that_exist_to_values_they_take(monkeypatch):
    values = {name: value for name, value in environment("serve").items() if name.startswith(PREFIX)}
    assert values.keys() <= {variable(name) for name in Settings.model_fields}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert instructions("serve", "EXPOSE") == [str(settings.port)]
    assert settings.host == "0.0.0.0"


def test_everything_that_is_copied_passes_the_ignore_file():
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    copied = {word for stage in stages() for rest in instructions(stage, "COPY") for word in rest.split()[:-1]}
    assert {path for path in copied if not path.startswith(("-", "/"))} == admitted


def test_compose_builds_a_stage_that_exists_and_mounts_the_bundle_where_it_looks():
    service = COMPOSE["longwave"]
    assert service["build"]["target"] in stages()
    (mount,) = service["volumes"]
    assert mount["target"] == environment("serve")["LONGWAVE_BUNDLE_DIR"]
    assert mount["read_only"] is True


def test_compose_passes_only_settings_that_exist():
    assert COMPOSE["longwave"]["environment"].keys() <= {variable(name) for name in Settings.model_fields}


def test_the_service_waits_for_a_healthy_redis_and_says_when_it_can_recommend():
    assert COMPOSE["longwave"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert COMPOSE["redis"]["healthcheck"]["test"] == ["CMD", "redis-cli", "ping"]
    assert "/readyz" in COMPOSE["longwave"]["healthcheck"]["test"][-1]


def test_redis_writes_every_event_to_a_volume():
    assert shlex.join(COMPOSE["redis"]["command"]) == "--appendonly yes --appendfsync everysec --list-compress-depth 1"
    assert COMPOSE["redis"]["volumes"] == ["redis:/data"]


def test_nothing_listens_beyond_loopback_while_there_are_no_keys():
    ports = [port for service in COMPOSE.values() for port in service.get("ports", [])]
    container_port = environment("serve")["LONGWAVE_PORT"]
    assert [(port.split(":")[0], port.split(":")[-1]) for port in ports] == [("127.0.0.1", container_port)]
