"""What the document says, the service does: every reference resolves, every example is accepted."""

import json

import pytest
from pydantic import TypeAdapter

from app.ingest.schema import Event
from app.main import create_app
from app.settings import load_settings


@pytest.fixture(scope="module")
def document():
    return create_app(load_settings()).openapi()


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_resolves(document):
    for reference in set(references(document)):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_every_operation_is_described_and_answers_with_problems(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            for status, response in operation["responses"].items():
                if status != "200":
                    assert list(response["content"]) == ["application/problem+json"], (method, path, status)


def test_the_example_events_are_good(document):
    examples = document["paths"]["/v1/events"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    one, several = examples["one"]["value"], examples["several"]["value"]["events"]
    TypeAdapter(list[Event]).validate_json(json.dumps([one, *several]))
