"""A configuration that is wrong: exit code 2, everything that is wrong named, nothing begun."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from tests.support.tokenward import Tokenward

EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is to be refused
SECRET = "a-client-secret-that-must-not-be-printed"
BAD: Mapping[str, Any] = {
    "unheard_of": 1,
    "public_url": "http://example.com",
    "refresh": {"margin": "60 parsecs", "at": 2, "colour": "blue"},
    "encryption": {"keys": [{"id": "short", "secret": "c2hvcnQ="}]},
    "callers": [{"name": "a", "key": {"file": "/nonexistent"}, "permissions": ["everything"]}],
    "database": {"url": "mysql://localhost/x"},
    "log": {"level": "loud"},
    "providers": {
        "acme": {
            "issuer": "http://auth.example.com",
            "client_id": "x",
            "client_secret": SECRET,
            "authorization_params": {"state": "mine"},
        },
        "none": {},
    },
}
PATHS = (
    "unheard_of",
    "public_url",
    "refresh.margin",
    "refresh.at",
    "refresh.colour",
    "encryption.keys[0].secret",
    "callers[0].key",
    "callers[0].permissions[0]",
    "database.url",
    "log.level",
    "providers.acme.issuer",
    "providers.acme.authorization_params.state",
    "providers.none",
)


async def refused(daemon: Tokenward) -> str:
    """Return what a daemon says that refuses its configuration."""
    try:
        daemon.spawn()
        assert await daemon.ended(within=30) == 2
    finally:
        await daemon.close()
    return daemon.log()


async def test_every_bad_path_is_named(tmp_path: Path) -> None:
    """All that is wrong is said at once, each with its path, no secret, and nothing is made."""
    daemon = Tokenward(tmp_path)
    daemon.settings = {**daemon.settings, **BAD}
    said = await refused(daemon)
    assert [path for path in PATHS if path not in said] == []
    assert "Traceback" not in said
    assert SECRET not in said
    assert not daemon.state_dir.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("providers: [", "tokenward.yaml"), ("log: {level: info}\nlog: {}\n", "log")],
    ids=["no YAML", "twice"],
)
async def test_a_file_that_cannot_be_read(tmp_path: Path, text: str, words: str) -> None:
    """What is no YAML, or says one thing twice, is refused with the place."""

    class Written(Tokenward):
        def write_config(self) -> None:
            self.config_path.write_text(text)

    said = await refused(Written(tmp_path))
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize("listener", ["api", "public", "ops"])
async def test_an_open_listener_is_refused(tmp_path: Path, listener: str) -> None:
    """An address beyond this machine is refused by name where nothing allows it."""
    daemon = Tokenward(tmp_path)
    port = daemon.settings["listen"][listener]["address"].rpartition(":")[2]
    daemon.settings["listen"][listener]["address"] = f"{EVERYWHERE}:{port}"
    said = await refused(daemon)
    assert f"listen.{listener}.address" in said
    assert ("allow_non_loopback" in said) is (listener != "api")


async def test_listeners_opened_on_purpose(daemon: Tokenward) -> None:
    """With allow_non_loopback the ops and public listeners open for a pod's network."""
    for listener in ("public", "ops"):
        settings = daemon.settings["listen"][listener]
        settings["address"] = settings["address"].replace("127.0.0.1", EVERYWHERE)
        settings["allow_non_loopback"] = True
    async with daemon, ClientSession() as session:
        # Any address of this machine would do; this one every Linux has.
        for url, status in ((daemon.ops_url + "/liveness", 200), (daemon.api_url, None)):
            elsewhere = url.replace("127.0.0.1", "127.0.0.2")
            assert await status_of(session, elsewhere) == status


async def status_of(session: ClientSession, url: str) -> int | None:
    """Return the status of an answer; ``None`` where nobody listens."""
    try:
        async with session.get(url) as answer:
            return answer.status
    except OSError:
        return None


async def test_an_address_in_use(daemon: Tokenward) -> None:
    """A port that somebody else has is named, with the listener."""
    address = daemon.settings["listen"]["public"]["address"]
    port = int(address.rpartition(":")[2])
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    async with server:
        said = await refused(daemon)
    assert "listen.public.address" in said
    assert address in said
    assert "Traceback" not in said
