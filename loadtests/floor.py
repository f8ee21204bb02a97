"""The floor: what any service on this stack costs. One Redis round trip, one constant body, no middleware.

`python -m loadtests.floor REDIS_URL BODY_BYTES PORT` serves it with the options that `longwave serve` gives to uvicorn.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
import uvicorn
from fastapi import FastAPI, Response

PATH = "/floor"
KEY = "floor"


def create_floor(redis_url: str, body_bytes: int) -> FastAPI:
    """An application whose one route reads one small key and answers `body_bytes` bytes of JSON."""
    body = b'"' + b"x" * (body_bytes - 2) + b'"'
    client = redis.asyncio.Redis.from_url(redis_url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await client.set(KEY, b"0123456789abcdef")
        yield
        await client.aclose()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.get(PATH)
    async def floor() -> Response:
        await client.get(KEY)
        return Response(body, media_type="application/json")

    return app


if __name__ == "__main__":
    url, size, port = sys.argv[1:]
    uvicorn.run(
        create_floor(url, int(size)),
        port=int(port),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        server_header=False,
    )
