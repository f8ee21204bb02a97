"""Dockerfile and compose file agree with the service they carry, and with each other."""

import re
import shlex
import tomllib
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


def test_the_archive_image_is_the_serving_image_and_the_extra_archive():
    assert instructions("archive", "FROM") == ["serve"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (install,) = instructions("parquet", "RUN")
    assert extras["archive"] == [re.search(r"-c requirements\.lock (\w+) ", install)[1]]


@pytest.mark.parametrize("stage", ["serve", "archive", "train"])
def test_an_image_runs_as_nobody_in_particular_and_reports_to_nobody(stage):
    assert instructions(stage, "USER")[-1] == "10001"
    assert (environment("serve") | environment(stage))["ORT_DISABLE_TELEMETRY"] == "1"


def test_a_build_without_a_target_is_the_service():
    assert list(stages().values())[-1] == [("FROM", "serve")]


def test_the_images_set_only_settings_that_exist_to_values_they_take(monkeypatch):
    set_there = environment("serve") | environment("archive")
    values = {name: value for name, value in set_there.items() if name.startswith(PREFIX)}
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


@pytest.mark.parametrize("name", ["longwave", "archiver"])
def test_compose_builds_a_stage_that_exists_and_mounts_the_bundles_where_it_looks(name):
    service = COMPOSE[name]
    assert service["image"] == f"longwave:{service['build']['target']}"
    assert service["build"]["target"] in stages()
    (mount,) = [volume for volume in service["volumes"] if not isinstance(volume, str)]
    # The whole folder: where the link is followed there, and not by whoever mounts it, a new bundle can be activated.
    assert service["environment"]["LONGWAVE_BUNDLE_DIR"] == f"{mount['target']}/current"
    assert mount["read_only"] is True
    assert service["read_only"] is True


@pytest.mark.parametrize("name", ["longwave", "archiver"])
def test_compose_passes_only_settings_that_exist(name):
    assert COMPOSE[name]["environment"].keys() <= {variable(name) for name in Settings.model_fields}


def test_the_archive_lies_on_a_volume_and_the_service_leaves_the_log_to_the_archiver():
    (folder,) = instructions("archive", "VOLUME")
    assert environment("archive")["LONGWAVE_ARCHIVE_DIR"] == folder
    assert f"archive:{folder}" in COMPOSE["archiver"]["volumes"]
    assert COMPOSE["longwave"]["environment"]["LONGWAVE_ARCHIVE"] == "elsewhere"
    assert COMPOSE["longwave"]["environment"]["LONGWAVE_REDIS_URL"] == COMPOSE["archiver"]["environment"]["LONGWAVE_REDIS_URL"]
    assert COMPOSE["archiver"]["restart"] == "unless-stopped"


def test_the_service_waits_for_a_healthy_redis_and_says_when_it_can_recommend():
    for name in ("longwave", "archiver"):
        assert COMPOSE[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert COMPOSE["redis"]["healthcheck"]["test"] == ["CMD", "redis-cli", "ping"]
    assert "/readyz" in COMPOSE["longwave"]["healthcheck"]["test"][-1]


def test_redis_writes_every_event_to_a_volume_before_it_answers():
    assert shlex.join(COMPOSE["redis"]["command"]) == "--appendonly yes --appendfsync always --list-compress-depth 1"
    assert COMPOSE["redis"]["volumes"] == ["redis:/data"]


def test_nothing_listens_beyond_loopback_while_there_are_no_keys():
    ports = [port for service in COMPOSE.values() for port in service.get("ports", [])]
    container_port = environment("serve")["LONGWAVE_PORT"]
    assert [(port.split(":")[0], port.split(":")[-1]) for port in ports] == [("127.0.0.1", container_port)]
