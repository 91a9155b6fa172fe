"""The yardstick of the refresh pipeline: POST, encrypt, UPDATE, and nothing that makes it safe.

So many tasks in flight, each: a POST by aiohttp to the token endpoint, AES-GCM over the two new
tokens, one UPDATE by primary key that is durable by itself. No claim, no check of the reply, no
cache, no notification, no log.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import orjson
import uvloop
from aiohttp import ClientSession, DummyCookieJar, TCPConnector
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.processes import answer_lines

IN_FLIGHT = 64
_HEADERS = {
    "Authorization": "Basic " + base64.b64encode(b"bench:not-so-secret-0123456789").decode(),
    "Content-Type": "application/x-www-form-urlencoded",
    "Accept": "application/json",
}
_TABLE = """
CREATE TABLE bench_tokens (
    connection_id text PRIMARY KEY, access_token bytea NOT NULL, refresh_token bytea NOT NULL,
    stored_at timestamptz NOT NULL
) WITH (fillfactor = 75);
ALTER TABLE bench_tokens ALTER access_token SET STORAGE EXTERNAL;
"""
_UPDATE = """
UPDATE bench_tokens SET access_token = $2, refresh_token = $3, stored_at = now()
WHERE connection_id = $1
"""


class _Loop:
    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], url: str) -> None:
        self._pool = pool
        self._url = url
        self._key = AESGCM(AESGCM.generate_key(256))
        self._tokens: dict[str, str] = {}

    async def seed(self, count: int) -> None:
        """Make the table and its rows."""
        self._tokens = {f"bare-{number:06}": f"{number:s>64}" for number in range(count)}
        rows = [(name, self._encrypt("a" * 900), self._encrypt("r" * 64)) for name in self._tokens]
        async with self._pool.acquire() as session:
            await session.execute("DROP TABLE IF EXISTS bench_tokens")
            await session.execute(_TABLE)
            await session.executemany("INSERT INTO bench_tokens VALUES ($1, $2, $3, now())", rows)
            await session.execute("ANALYZE bench_tokens")

    async def refresh(self, first: int, count: int, *, keeps: bool) -> object:
        """Refresh a batch; ``keeps`` its HTTP connections, or opens one for each request."""
        names = iter(list(self._tokens)[first : first + count])
        connector = TCPConnector(limit=0, force_close=not keeps)
        async with ClientSession(
            connector=connector, cookie_jar=DummyCookieJar(), auto_decompress=False
        ) as session:
            began, cpu_before = time.perf_counter(), time.process_time()
            await asyncio.gather(*(self._work(session, names) for _ in range(IN_FLIGHT)))
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_before
        return {"seconds": seconds, "cpu": cpu}

    async def _work(self, session: ClientSession, names: Iterator[str]) -> None:
        for name in names:
            body = f"grant_type=refresh_token&refresh_token={self._tokens[name]}".encode()
            async with session.post(self._url, data=body, headers=_HEADERS) as response:
                reply = orjson.loads(await response.read())
            self._tokens[name] = reply["refresh_token"]
            access = self._encrypt(reply["access_token"])
            refresh = self._encrypt(reply["refresh_token"])
            await self._pool.execute(_UPDATE, name, access, refresh)

    def _encrypt(self, text: str) -> bytes:
        nonce = os.urandom(12)
        return nonce + self._key.encrypt(nonce, text.encode(), b"bench")


async def _main(database: str, url: str, size: int) -> None:
    async with asyncpg.create_pool(database, min_size=size, max_size=size, reset=_kept) as pool:
        work = _Loop(pool, url)

        async def answer(command: Any) -> object:
            if command["do"] == "seed":
                await work.seed(command["count"])
                return {}
            return await work.refresh(command["first"], command["count"], keeps=command["keeps"])

        await answer_lines(answer, first={})


async def _kept(_: object) -> None:
    """Stand in for asyncpg's reset, a round trip that the daemon saves as well."""


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
