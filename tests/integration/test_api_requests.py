"""Requests that are wrong in one way each (tests/corpora/api_requests.json), to the byte.

A case has ``do`` (method and target), ``key`` (the caller; default admin, ``none`` without),
``headers``, ``host``, and one of ``json``, ``form``, ``body`` (``repeat`` times); or ``raw``, which
is everything. ``expect`` is the status and the code of a problem or the error of RFC 6749, or
``closed``.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from daemon.persistence.cipher import TokenCipher
from daemon.persistence.postgres import Database
from tests.support.api_parts import KEYS
from tests.support.api_stage import ApiStage, api_stage
from tests.support.raw_client import Answer, RawClient

_FILE = Path(__file__).parents[1] / "corpora" / "api_requests.json"
CORPUS: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))


def test_the_corpus_is_large_enough() -> None:
    """No group is empty, and no case stands there twice."""
    cases = [json.dumps(case) for group in CORPUS.values() for case in group["cases"]]
    assert len(cases) >= 250
    assert len(set(cases)) == len(cases)
    assert all(group["cases"] for group in CORPUS.values())


@pytest.mark.parametrize("group", CORPUS)
async def test_each_is_answered_as_expected(
    database: Database, cipher: TokenCipher, group: str
) -> None:
    """Status and code are as the corpus says; nothing marked comes back, no CORS header is sent."""
    async with api_stage(database, cipher) as api:
        await prepare(api)
        wrong = [
            f"{_named(case)}: {difference}"
            for case in CORPUS[group]["cases"]
            if (difference := await differs(api, case)) is not None
        ]
        assert wrong == [], "\n".join(wrong)
        # What was wrong did nothing.
        assert (await api.ask("GET", "/v1/connections/never")).status == 404
        assert (await api.ask("GET", "/v1/connections/acme-1/token")).status == 200


async def prepare(api: ApiStage) -> None:
    """Make an active connection, a pending, a disconnected, and one that is another's."""
    await api.imported("acme-1")
    await api.create("acme-2")
    await api.imported("acme-3")
    await api.ask("DELETE", "/v1/connections/acme-3")
    await api.imported("secret-1")


async def differs(api: ApiStage, case: dict[str, Any]) -> str | None:
    """Send a case; return how the answer is not as expected."""
    port = urlsplit(api.url).port
    assert port is not None
    async with await RawClient.connect(port) as client:
        client.send(_bytes(case))
        try:
            answer = await client.answer(has_body=not case.get("do", "").startswith("HEAD "))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None if case["expect"] == "closed" else "closed without an answer"
    if b"canary" in answer.body or "canary" in repr(answer.headers):
        return f"what was planted came back: {answer}"
    if any(name.startswith("access-control-") for name in answer.headers):
        return f"a CORS header was sent: {answer}"
    status, _, code = case["expect"].partition(" ")
    if answer.status != int(status) or (code and _code(answer) != code):
        return f"{answer.status} {_code(answer)} instead of {case['expect']}"
    return None


def _code(answer: Answer) -> object:
    if not answer.body or "json" not in answer.headers["content-type"]:
        return None
    return answer.json.get("code") or answer.json.get("error")


def _bytes(case: dict[str, Any]) -> bytes:
    if "raw" in case:
        raw: str = case["raw"]
        return raw.encode("latin-1")
    method, _, target = case["do"].partition(" ")
    headers = [f"Host: {case.get('host', '127.0.0.1')}"]
    if case.get("key") != "none":
        headers.append(f"Authorization: Bearer {KEYS[case.get('key', 'admin')]}")
    body = b""
    if "json" in case:
        headers.append("Content-Type: application/json")
        body = json.dumps(case["json"]).encode()
    elif "form" in case:
        headers.append("Content-Type: application/x-www-form-urlencoded")
        body = case["form"].encode()
    elif "body" in case:
        body = case["body"].encode() * case.get("repeat", 1)
    headers += case.get("headers", [])
    if body or method in {"POST", "PATCH", "PUT"}:
        headers.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([f"{method} {target} HTTP/1.1", *headers, "", ""])
    return head.encode("latin-1") + body


def _named(case: dict[str, Any]) -> str:
    return json.dumps(case)[:160]
