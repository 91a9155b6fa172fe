"""Requests drawn from the description, good and bad, against the real listener and database.

Left out: ``/v1/events`` is a stream without an end, and nothing waits for one here; ``/proxy``
answers whatever somebody else's API answers. Both have suites of their own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from daemon.domain.clock import system_entropy
from daemon.persistence.cipher import TokenCipher
from tests.support.api_parts import KEYS
from tests.support.api_stage import ApiStage, api_stage
from tests.support.database import KEY, open_database
from tests.support.openapi import api_document
from tests.support.postgres import Cluster

_NAMES = ("acme-1", "acme-2", "acme-3", "acme-t")
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
SCHEMA = (
    schemathesis.openapi.from_dict(api_document())
    .exclude(path_regex="/proxy/")
    .exclude(path="/v1/events")
)


def _mostly(given: object, known: tuple[str, ...]) -> object:
    """Put a value that means something in place of a drawn text, but leave some as drawn."""
    if not isinstance(given, str):
        return given
    choice = len(given) % (len(known) + 1)
    return given if choice == len(known) else known[choice]


def _with(values: Any, name: str, known: tuple[str, ...]) -> Any:
    if not isinstance(values, dict) or name not in values:
        return values
    return {**values, name: _mostly(values[name], known)}


@SCHEMA.hook
def map_path_parameters(_: Any, path_parameters: Any) -> Any:
    """Ask for what is there most of the time: all else ends alike."""
    mapped = _with(path_parameters, "id", _NAMES)
    return _with(mapped, "name", ("acme", "tenants"))


@SCHEMA.hook
def map_query(_: Any, query: Any) -> Any:
    """Ask for a URL that a token may be sent to, most of the time."""
    return _with(
        query, "url", ("https://initech.tenants.example/api/me?x=1", "https://evil.example/")
    )


@SCHEMA.hook
def map_body(_: Any, body: Any) -> Any:
    """Name providers and return URLs that are configured, most of the time."""
    mapped = _with(body, "provider", ("acme", "tenants", "other"))
    return _with(mapped, "return_url", ("https://app.example/done", "https://app.example/x?y"))


@asynccontextmanager
async def running(url: str) -> AsyncIterator[ApiStage]:
    """Run a stage with connections in different states."""
    database = open_database(url)
    assert await database.start()
    try:
        async with api_stage(database, TokenCipher((KEY,), entropy=system_entropy)) as stage:
            await stage.imported("acme-1")
            await stage.create("acme-2")
            await stage.imported("acme-3")
            await stage.create(
                "acme-t",
                provider="tenants",
                fields={"company": "initech"},
                tokens={"refresh_token": "refresh-canary", "access_token": "access-t"},
            )
            yield stage
    finally:
        await database.close()


@pytest.fixture
def live(postgres_cluster: Cluster, migrated_template: str) -> Iterator[str]:
    """The URL of a listener that runs in another thread, for this operation alone."""
    database_url = postgres_cluster.create_database(migrated_template)
    started, stop = threading.Event(), asyncio.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        found["loop"] = asyncio.get_running_loop()
        async with running(database_url) as stage:
            found["url"] = stage.url
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(timeout=30)
    yield found["url"]
    found["loop"].call_soon_threadsafe(stop.set)
    thread.join(timeout=30)
    postgres_cluster.drop_database(database_url)


@SCHEMA.parametrize()
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(case: schemathesis.Case[Any], live: str) -> None:
    """No request makes the server fail, and every answer has a described status and shape."""
    headers = {"Authorization": f"Bearer {KEYS['admin']}"}
    response = case.call(base_url=live, headers=headers)
    case.validate_response(response, checks=list(CHECKS))
    # How a request looks includes what the configuration puts on it, keys and all.
    assert b"canary" not in response.content or case.path.endswith("/request")
