"""A query parameter that a route does not have is refused by name: a misspelt filter must not be no filter."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import event

from app.main import create_app
from app.settings import load_settings

ROUTES = [
    (method, path)
    for path, methods in create_app(load_settings()).openapi()["paths"].items()
    for method in methods
    if path.startswith("/v1/")
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_route_refuses_a_parameter_that_it_does_not_have(client: Any, method: str, path: str):
    answer = await client.request(method, path.replace("{", "").replace("}", ""), params={"fliter": "x", "k ": "1"}, json={})
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == ["query.fliter", "query.k "]
    assert answer.json()["errors"][0]["message"].startswith("is not a parameter: this route has ")


async def test_the_words_name_the_parameters_that_there_are(client: Any):
    answer = await client.get("/v1/trending", params={"windows": "1d"})
    assert answer.json()["detail"] == "query.windows: is not a parameter: this route has window, category, k, as_of"
    answer = await client.post("/v1/events", params={"sync": "1"}, json=event("u", 1))
    assert answer.json()["detail"] == "query.sync: is not a parameter: this route has none"
    assert (await client.get("/v1/users/u")).status_code == 404  # nothing of a refused request is kept


@pytest.mark.parametrize("path", ["/v1/trending", "/v1/users/u/recommendations"])
async def test_of_an_address_full_of_them_the_first_are_named(client: Any, path: str):
    answer = await client.get(f"{path}?" + "&".join(f"n{n}" for n in range(10_000)))
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [f"query.n{n}" for n in range(20)]


async def test_probes_and_scrapes_may_have_parameters_of_their_own(client: Any):
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await client.get(path, params={"format": "x"})).status_code == 200
