"""Counts and times every request, by the route's template, so that ids never become labels."""

from __future__ import annotations

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.telemetry import Metrics


class Measure:
    """ASGI middleware in its bare form: wrapping requests and responses would cost more than many a route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        status = 500  # what an exception that comes through here will be answered with

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path_format", "none")
            method = scope["method"] if route != "none" else "any"  # methods are the client's to invent
            self._metrics.request(method, route, status, perf_counter() - began)
