"""The floor: what any service on this stack costs. One Redis round trip, one constant body, no middleware.

`python -m loadtests.floor REDIS_URL GET_BYTES POST_BYTES PORT` serves it with the options that `longwave serve` gives to uvicorn.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
import uvicorn
from fastapi import FastAPI, Request, Response

PATH = "/floor"
KEY = "floor"
LIST = "floor:list"
"""What POST appends to; whoever measures cuts it, outside of the measurement."""


def create_floor(redis_url: str, get_bytes: int, post_bytes: int) -> FastAPI:
    """An application that answers so many bytes of JSON: to a GET after one GET of 16 bytes, to a POST after one RPUSH."""
    got, posted = (b'"' + b"x" * (size - 2) + b'"' for size in (get_bytes, post_bytes))
    client = redis.asyncio.Redis.from_url(redis_url, max_connections=1000)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await client.set(KEY, b"0123456789abcdef")
        yield
        await client.aclose()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.get(PATH)
    async def read() -> Response:
        await client.get(KEY)
        return Response(got, media_type="application/json")

    @app.post(PATH)
    async def write(request: Request) -> Response:
        await client.rpush(LIST, await request.body())
        return Response(posted, media_type="application/json")

    return app


if __name__ == "__main__":
    url, get_size, post_size, port = sys.argv[1:]
    uvicorn.run(
        create_floor(url, int(get_size), int(post_size)),
        port=int(port),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        server_header=False,
    )
