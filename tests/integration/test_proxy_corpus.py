"""Every input of ``tests/corpora/proxy_targets.json``: what is refused never reaches a socket.

Names resolve to a canary on this machine, and the provider may reach private addresses unless the
row says ``address``: so whatever is let through by mistake is seen as a connection.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from daemon.sidecar.proxy import ProxyLimits
from tests.support.proxy_stage import KEY, PROXY, ProxyStage, provider, proxying
from tests.support.raw_client import Answer, RawClient

ROWS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "corpora" / "proxy_targets.json").read_text(encoding="utf-8")
)
HOSTS = ("api.acme.example", "*.files.acme.example", "alt.acme.example:8443")
NAME = "https://api.acme.example/base"


class Canary(asyncio.Protocol):
    """Counts who connects, and says nothing."""

    def __init__(self, accepted: list[asyncio.BaseTransport]) -> None:
        self._accepted = accepted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count and close."""
        self._accepted.append(transport)
        transport.close()


class StubResolver(AbstractResolver):
    """Leads every name to ``address``, at the canary's port. ``asked`` has the names."""

    def __init__(self) -> None:
        self.address = "127.0.0.1"
        self.port = 0
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return one address."""
        del port, family
        self.asked.append(host)
        kind = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        return [
            ResolveResult(
                hostname=host, host=self.address, port=self.port, family=kind, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        """Do nothing."""


class Course:
    """The proxy, the canary, and what was asked of the resolver."""

    def __init__(self, stage: ProxyStage, resolver: StubResolver) -> None:
        self.stage = stage
        self.resolver = resolver
        self.accepted: list[asyncio.BaseTransport] = []
        self.asked = 0

    def reset(self, row: dict[str, Any]) -> None:
        """Prepare for a row."""
        self.accepted.clear()
        self.resolver.asked.clear()
        self.resolver.address = row["input"] if row["kind"].startswith("address") else "127.0.0.1"
        # An address is judged; everything else must be refused although the address would do.
        is_private = row["kind"] != "address"
        configured = provider(NAME, allowed_hosts=HOSTS, allow_private_hosts=is_private)
        self.stage.set_provider(configured)

    async def ask(self, row: dict[str, Any]) -> Answer:
        """Send a row's request."""
        self.asked += 1
        text = row["input"].replace("{canary}", str(self.resolver.port))
        async with await RawClient.connect(self.stage.port) as client:
            lines = [f"Authorization: Bearer {KEY}"]
            target = f"{PROXY}/me"
            match row["kind"]:
                case "target":
                    lines.append(f"Tokenward-Target: {text.encode().decode('latin-1')}")
                case "address" | "address_private":
                    # A name of its own: aiohttp remembers for seconds where a name leads.
                    lines.append(f"Tokenward-Target: https://{self.asked}.files.acme.example")
                case "path":
                    target = PROXY + text
                case "url":
                    encoded = "".join(f"%{octet:02x}" for octet in text.encode())
                    target = f"/v1/connections/acme-1/request?url={encoded}"
            return await client.ask(target, *lines)


@pytest.fixture
async def course() -> AsyncIterator[Course]:
    """Set everything up."""
    resolver = StubResolver()
    configured = provider(NAME, allowed_hosts=HOSTS)
    limits = ProxyLimits(connect=2.0, idle=2.0)
    async with proxying(configured, resolver=resolver, limits=limits) as stage:
        course = Course(stage, resolver)
        server = await asyncio.get_running_loop().create_server(
            lambda: Canary(course.accepted),
            "0.0.0.0",  # noqa: S104 - all of loopback
            0,
        )
        resolver.port = server.sockets[0].getsockname()[1]
        yield course
        server.close()


async def test_every_row(course: Course) -> None:
    """Each row ends as it says; what is refused is refused before any connection."""
    wrong = []
    for row in ROWS:
        course.reset(row)
        answer = await course.ask(row)
        expected = row["expect"]
        if expected.get("attempted"):
            is_right = answer.status == 502 and len(course.accepted) == 1
        else:
            is_right = answer.status == expected["status"] and not course.accepted
            if "code" in expected:
                is_right = is_right and answer.code == expected["code"]
        if row["kind"] in ("target", "path") and not expected.get("attempted"):
            is_right = is_right and not course.resolver.asked
        if not is_right:
            wrong.append((row["id"], answer.status, answer.body[:300], len(course.accepted)))
    assert wrong == []


def test_the_corpus_is_large_and_its_ids_are_its_own() -> None:
    """No row hides another."""
    assert len(ROWS) >= 150
    assert len({row["id"] for row in ROWS}) == len(ROWS)
