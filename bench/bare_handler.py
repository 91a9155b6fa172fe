"""The yardstick of the token read: aiohttp, answering prepared bytes and doing nothing else.

Two of them, one line of JSON each: ``app``, an application with one route, which is what anybody
would write; and ``server``, the ``web.Server`` below it, without router.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from bench.processes import answer_lines

PATH = "/v1/connections/bench/token"


async def _main(kind: str, body: bytes, unix_socket: Path) -> None:
    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(
            body=body,
            headers={"Cache-Control": "no-store"},
            content_type="application/json",
            charset="utf-8",
        )

    runner: web.BaseRunner
    if kind == "app":
        app = web.Application()
        app.router.add_get(PATH, handle)
        runner = web.AppRunner(app, access_log=None)
    else:
        runner = web.ServerRunner(web.Server(handle, access_log=None))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    await web.UnixSite(runner, str(unix_socket)).start()

    async def pong(_: object) -> object:
        return {}

    await answer_lines(pong, first={"port": runner.addresses[0][1]})
    await runner.cleanup()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_main(sys.argv[1], Path(sys.argv[2]).read_bytes(), Path(sys.argv[3])))
