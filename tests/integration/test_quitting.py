"""``POST /quitquitquit``: only where it is allowed, and only for who may manage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from daemon.config.settings import ApiListener, Listen
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.postgres import Database
from tests.support.api_parts import SETTINGS
from tests.support.api_stage import ApiStage, api_stage

_ALLOWED = replace(SETTINGS, listen=Listen(api=ApiListener(quitquitquit=True)))


@pytest.fixture
async def api(database: Database, cipher: TokenCipher) -> AsyncIterator[ApiStage]:
    """An api listener that may be stopped."""
    async with api_stage(database, cipher, settings=_ALLOWED) as stage:
        yield stage


async def test_who_may_manage_may_stop_it(api: ApiStage) -> None:
    """202, and the daemon is asked to end."""
    answer = await api.ask("POST", "/quitquitquit", key="manager")
    assert (answer.status, answer.body) == (202, {"status": "stopping"})
    assert api.quits == ["stop"]


@pytest.mark.parametrize(
    ("method", "path", "key", "headers", "status"),
    [
        ("POST", "/quitquitquit", None, {}, 401),
        ("POST", "/quitquitquit", "nobody's key", {}, 401),
        ("POST", "/quitquitquit", "tokens", {}, 403),
        ("POST", "/quitquitquit", "reader", {}, 403),
        ("POST", "/quitquitquit", "manager", {"Origin": "https://evil.example"}, 403),
        ("POST", "/quitquitquit", "manager", {"Host": "evil.example"}, 421),
        ("POST", "/quitquitquit?now=1", "manager", {}, 400),
        ("GET", "/quitquitquit", "manager", {}, 405),
    ],
)
async def test_nobody_else_may(
    api: ApiStage, *, method: str, path: str, key: str | None, headers: dict[str, str], status: int
) -> None:
    """Neither other callers nor web pages, and not by mistake."""
    answer = await api.ask(method, path, key=key, headers=headers)
    assert answer.status == status
    assert api.quits == []


async def test_it_is_off_by_default(database: Database, cipher: TokenCipher) -> None:
    """404 that says how it is allowed."""
    async with api_stage(database, cipher) as api:
        answer = await api.ask("POST", "/quitquitquit")
        assert (answer.status, answer.code) == (404, "not_found")
        assert "listen.api.quitquitquit" in answer.body["detail"]
        assert api.quits == []
