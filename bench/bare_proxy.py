"""The yardstick of the proxy: aiohttp, streaming both ways, and as little else as is correct.

Arguments: the API's port, and the token to send. What anybody would write: one catch-all route, no
token to look up, no list of hosts, no check of address or path, no retry.
"""

from __future__ import annotations

import asyncio
import logging
import sys

import aiohttp
import uvloop
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from bench.processes import answer_lines

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "host"})


async def _main(port: int, token: str) -> None:
    # Each round ends with callers that leave; aiohttp writes a traceback for each.
    logging.disable()
    session = aiohttp.ClientSession(
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=5, sock_read=60),
        connector=aiohttp.TCPConnector(limit=0),
    )

    async def handle(request: web.Request) -> web.StreamResponse:
        headers = CIMultiDict(
            (name, value) for name, value in request.headers.items() if name.lower() not in _HOP
        )
        headers["Authorization"] = f"Bearer {token}"
        async with session.request(
            request.method,
            URL(f"http://127.0.0.1:{port}{request.raw_path}", encoded=True),
            headers=headers,
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        ) as upstream:
            response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
            for name, value in upstream.headers.items():
                if name.lower() not in _HOP:
                    response.headers.add(name, value)
            await response.prepare(request)
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    async def pong(_: object) -> object:
        return {}

    await answer_lines(pong, first={"port": runner.addresses[0][1]})
    await runner.cleanup()
    await session.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_main(int(sys.argv[1]), sys.argv[2]))
