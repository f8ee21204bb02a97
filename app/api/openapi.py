"""The OpenAPI document: answers are described by the structs that encode them, requests by the models that check them.

`python -m app.main` writes schema/openapi.json; a test fails when that file is stale.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from app.api.problems import Problem
from app.ingest.impressions import MOST as MOST_IMPRESSIONS
from app.ingest.impressions import ShownList
from app.ingest.schema import Event

_REF = "#/components/schemas/{name}"
_MEANING = {
    404: "There is no such user, item or model.",
    409: "The request does not fit what is there; `detail` says why.",
    413: "The body has too many bytes or too many events.",
    422: "The request is at fault; `errors` names each field.",
    503: "The service or its storage cannot answer now. Repeat after `Retry-After` seconds; a write where storage did not answer "
    "(`storage-unavailable`) may have been done, so repeat it with the same event ids or `Idempotency-Key`.",
}
_EXAMPLE = {
    "event_id": "536365-85123A",
    "user_id": "17850",
    "item_id": "85123A",
    "type": "purchase",
    "timestamp": "2010-12-01T08:26:00Z",
    "quantity": 6,
    "price": 2.55,
    "basket_id": "536365",
}

_structs: dict[str, type] = {}  # every struct that a route answers with, by name


_models: dict[str, type[BaseModel]] = {}  # every model that checks a body of `model_body`, by name


def answers(success: type, *errors: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: a struct on success, problem documents otherwise."""
    _structs[success.__name__] = success
    described: dict[int | str, dict[str, Any]] = {
        200: {"description": (success.__doc__ or "").strip(), "content": {"application/json": {"schema": _ref(success.__name__)}}}
    }
    for status in errors:
        described[status] = {
            "description": _MEANING[status],
            "content": {"application/problem+json": {"schema": _ref("Problem")}},
        }
    return described


def lines(line: type, failed: type, *errors: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with a struct a line, some of them of the second kind."""
    described = answers(line, *errors)
    _structs[failed.__name__] = failed
    schema = {"oneOf": [_ref(line.__name__), _ref(failed.__name__)]}
    described[200] = {"description": "One JSON document a line.", "content": {"application/x-ndjson": {"schema": schema}}}
    return described


def events_body() -> dict[str, Any]:
    """The request body of POST /v1/events."""
    event, many = _ref("Event"), {"type": "array", "items": _ref("Event"), "maxItems": 1000, "minItems": 1}
    wrapped = {"type": "object", "properties": {"events": many}, "required": ["events"], "additionalProperties": False}
    examples = {
        "one": {"summary": "One event", "value": _EXAMPLE},
        "several": {"summary": "Several events", "value": {"events": [_EXAMPLE, {**_EXAMPLE, "event_id": "536365-71053"}]}},
    }
    return {
        "required": True,
        "content": {"application/json": {"schema": {"oneOf": [event, many, wrapped]}, "examples": examples}},
    }


def impressions_body() -> dict[str, Any]:
    """The request body of POST /v1/impressions."""
    one, many = _ref("ShownList"), {"type": "array", "items": _ref("ShownList"), "maxItems": MOST_IMPRESSIONS, "minItems": 1}
    _models["ShownList"] = ShownList
    wrapped = {"type": "object", "properties": {"impressions": many}, "required": ["impressions"], "additionalProperties": False}
    example = {"recommendation_id": "AQCTNDf8eqVqZlB2cWoxMjM0NTY3ODl1sZ8A", "user_id": "17850", "item_ids": ["85123A", "71053"]}
    schema = {"oneOf": [one, many, wrapped]}
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def attributes_body() -> dict[str, Any]:
    """The request body of PUT /v1/users/{user_id}."""
    schema = {
        "type": "object",
        "properties": {"attributes": {"type": "object", "additionalProperties": {"type": "string"}}},
        "required": ["attributes"],
        "additionalProperties": False,
    }
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "example": {"attributes": {"country": "United Kingdom"}}}},
    }


def merge_body() -> dict[str, Any]:
    """The request body of POST /v1/users/{user_id}/merge."""
    schema = {"type": "object", "properties": {"from": {"type": "string"}}, "required": ["from"], "additionalProperties": False}
    return {"required": True, "content": {"application/json": {"schema": schema, "example": {"from": "anonymous-4711"}}}}


def list_body() -> dict[str, Any]:
    """The request body of POST /v1/recommendations."""
    schema = {
        "type": "object",
        "properties": {
            "user_id": {"type": "string"},
            "events": {
                "type": "array",
                "description": "Events as of POST /v1/events, but without user_id.",
                "items": {"type": "object"},
                "maxItems": 1000,
            },
            "k": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20},
            "as_of": {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
            "platform": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "exclude": {"type": "array", "items": {"type": "string"}, "maxItems": 1000},
            "scenario": {"type": "string", "description": "Rules that are stored under a name."},
            "experiment": {
                "type": "string",
                "description": "The arm that the user is in decides; not together with `scenario`, nor without `user_id`.",
            },
            "rules": _ref("RuleSet"),
            "parameters": {"type": "object", "description": "For `$name` in filters."},
            "context": {"type": "object", "description": "For `context.name` in filters."},
            "seed": {"type": "integer", "minimum": 0, "description": "Of exploration; one is made up if not given."},
            "debug": {
                "type": "array",
                "description": "Items of which the answer says why they are in the list or not.",
                "items": {"type": "string"},
                "maxItems": 100,
            },
            "explain": {
                "description": "Whether, and by which account, the answer says of each item what brought it.",
                "enum": [False, True, "exact"],
                "default": False,
            },
        },
        "additionalProperties": False,
    }
    example = {"events": [{"type": "view", "item_id": "85123A"}, {"type": "purchase", "item_id": "71053"}], "k": 5}
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def ranking_body(most: int) -> dict[str, Any]:
    """The request body of POST /v1/rankings."""
    schema = {
        "type": "object",
        "properties": {
            "user_id": {"type": "string"},
            "items": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": most},
            "as_of": {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
            "platform": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["user_id", "items"],
        "additionalProperties": False,
    }
    example = {"user_id": "17850", "items": ["85123A", "71053", "84406B"]}
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def model_body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """A request body that a model checks."""
    _models[model.__name__] = model
    return {"required": True, "content": {"application/json": {"schema": _ref(model.__name__), "example": example}}}


def install(app: FastAPI) -> None:
    """Have the application describe itself with this document, made on first use."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, structs = msgspec.json.schema_components([*_structs.values(), Problem], ref_template=_REF)
    event = Event.model_json_schema(ref_template=_REF.replace("{name}", "{model}"))
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(event.pop("$defs", {}))
    schemas.update(structs, Event=event)
    for name, model in _models.items():
        schema = model.model_json_schema(ref_template=_REF.replace("{name}", "{model}"))
        schemas.update(schema.pop("$defs", {}))
        schemas[name] = schema
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own error form, which is never sent
        schemas.pop(name, None)
    return document


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}
