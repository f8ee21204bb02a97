"""The two routes that are asked all the time, answered without FastAPI's machinery around them.

FastAPI documents these routes and would answer them just so (a test compares); what it does for every request (dependency
solving, exit stacks, a chain of middleware) takes longer than the answer. The endpoints are the same functions: here their
parameters are read by the same types, and their errors rendered by the same place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import signature
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import problems
from app.api.parameters import refuse_unknown
from app.telemetry import Metrics

Endpoint = Callable[..., Awaitable[Response]]


@dataclass(frozen=True)
class _Parameter:
    place: str  # path or query
    adapter: TypeAdapter[Any]
    many: bool  # whether it may be given several times


class HotRoute:
    """One route: a method, and a path that is fixed or holds one parameter, which may contain slashes."""

    def __init__(self, route: APIRoute) -> None:
        """Raises ValueError if the route takes what cannot be read here (headers, a body model, dependencies)."""
        (self.method,) = route.methods or {"GET"}
        self.template = route.path_format
        self.endpoint: Endpoint = route.endpoint
        self.head, brace, rest = self.template.partition("{")
        self.name, _, self.tail = rest.partition("}") if brace else ("", "", "")
        self._parameters: dict[str, _Parameter] = {}
        for name, parameter in signature(route.endpoint, eval_str=True).parameters.items():
            if parameter.annotation is not Request:
                place = "path" if name == self.name else "query"
                adapter = TypeAdapter(parameter.annotation)
                self._parameters[name] = _Parameter(place, adapter, adapter.json_schema().get("type") == "array")
        known = {field.name for fields in (route.dependant.path_params, route.dependant.query_params) for field in fields}
        if known != self._parameters.keys():
            raise ValueError(f"{self.template}: cannot read {sorted(known ^ self._parameters.keys())} here")
        self._query = [name for name, parameter in self._parameters.items() if parameter.place == "query"]

    def match(self, path: str) -> str | None:
        """The value of the path's parameter ("" without one), or None if the path is another one."""
        if not self.name:
            return "" if path == self.head else None
        if len(path) >= len(self.head) + len(self.tail) and path.startswith(self.head) and path.endswith(self.tail):
            return path[len(self.head) : len(path) - len(self.tail)]
        return None

    def values(self, path_value: str, query: bytes) -> dict[str, Any]:
        """The endpoint's arguments. Raises RequestValidationError like FastAPI."""
        given: dict[str, Any] = {self.name: path_value} if self.name else {}
        if query:
            pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
            given = dict(pairs)
            refuse_unknown(given, self._query)
            if self.name:
                given[self.name] = path_value
            for name, parameter in self._parameters.items():
                if parameter.many and name in given:
                    given[name] = [value for key, value in pairs if key == name]
        values = {}
        errors: list[Any] = []
        for name, parameter in self._parameters.items():  # the path first, then as they are declared: so FastAPI names errors
            if name not in given:
                continue
            try:
                values[name] = parameter.adapter.validate_python(given[name])
            except ValidationError as error:
                for found in error.errors(include_url=False):
                    within = found["loc"] if parameter.many else ()
                    errors.append(found | {"loc": (parameter.place, name, *within)})
        if errors:
            raise RequestValidationError(errors)
        return values


class HotPaths:
    """Answers the hot routes itself, counts and times them, and passes everything else on."""

    def __init__(self, app: ASGIApp, routes: list[HotRoute], metrics: Metrics) -> None:
        self._app = app
        self._routes = routes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, method = scope["path"], scope["method"]
            for route in self._routes:
                if method == route.method and (value := route.match(path)) is not None:
                    await self._answer(route, value, scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _answer(self, route: HotRoute, value: str, scope: Scope, receive: Receive, send: Send) -> None:
        began = perf_counter()
        request = Request(scope, receive)
        status = 500
        try:
            try:
                response = await route.endpoint(request, **route.values(value, scope["query_string"]))
            except Exception as error:
                response = await problems.render(request, error)
            status = response.status_code
            await response(scope, receive, send)
        finally:
            self._metrics.request(route.method, route.template, status, perf_counter() - began)


class Application(FastAPI):
    """FastAPI, but for the hot routes, which are answered before it looks at a request."""

    hot: HotPaths | None = None

    def answer_early(self, routes: list[HotRoute], metrics: Metrics) -> None:
        """Answer these routes without FastAPI from now on."""
        self.hot = HotPaths(super().__call__, routes, metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.hot is None or scope["type"] != "http":
            await super().__call__(scope, receive, send)
        else:
            scope["app"] = self
            await self.hot(scope, receive, send)
