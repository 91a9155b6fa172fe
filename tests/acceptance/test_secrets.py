"""Marked secrets through a whole life, failures included, and a search of all that is left."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from aiohttp import ClientSession

from daemon.domain.clock import SystemClock, system_entropy
from daemon.persistence.embedded.server import EmbeddedPostgres
from tests.support.dump import dump
from tests.support.oauth_flow import browser_session
from tests.support.polling import eventually
from tests.support.raw_server import replies
from tests.support.token_server import TokenServer, says
from tests.support.tokenward import Reply, Tokenward

PREFIX = "MARKED-"
CLIENT_SECRET = "MARKED-client-secret-3d1f77a04be25c98d6f0127ab3c4915e"
OLD_CLIENT_SECRET = "MARKED-old-client-secret-80f2d96b47a1c35e09b8d24f6a7"
ENCRYPTION_KEY = base64.b64encode(b"MARKED-encryption-key-of-32-bytes"[:32]).decode()
CALLER_KEY = "MARKED-caller-key-6a7e1c503d1f77a04be25c98d6f012"
WRONG_KEY = "MARKED-wrong-caller-key-6a7e1c503d1f77a04be25c98d"
CODE = "MARKED-code-24f6a7e1c503d1f77a04be25c98d6f0127a"


class Life:
    """One daemon's life: what it was given, and what it let out."""

    def __init__(self, daemon: Tokenward, database_url: str | None) -> None:
        self.daemon = daemon
        self.secrets: dict[str, str] = {
            "client secret": CLIENT_SECRET,
            "old client secret": OLD_CLIENT_SECRET,
            "encryption key": ENCRYPTION_KEY,
            "caller key": CALLER_KEY,
            "wrong caller key": WRONG_KEY,
            "code": CODE,
            "imported refresh token": f"{PREFIX}imported",
        }
        self.answers: list[bytes] = []
        self.token_answers: list[bytes] = []
        self.sent: list[bytes] = []
        self._database_url = database_url

    @property
    def database_url(self) -> str:
        """Return the URL of the database, the embedded one's where none was configured."""
        if self._database_url is not None:
            return self._database_url
        clock, entropy = SystemClock(), system_entropy
        return EmbeddedPostgres(self.daemon.state_dir, entropy=entropy, clock=clock).url()

    async def ask(self, method: str, path: str, **more: Any) -> Reply:
        """Ask the api listener and remember what it said."""
        reply = await self.daemon.request(method, path, key=more.pop("key", CALLER_KEY), **more)
        is_token = path.partition("?")[0].endswith("/token") and reply.status == 200
        (self.token_answers if is_token else self.answers).append(
            reply.content + repr(sorted(reply.headers.items())).encode()
        )
        return reply

    async def read_metrics(self, session: ClientSession) -> None:
        """Remember what the ops listener says."""
        for path in ("/metrics", "/startup", "/readiness", "/liveness"):
            async with session.get(self.daemon.ops_url + path) as answer:
                self.answers.append(await answer.read())


async def live(life: Life, server: TokenServer) -> None:
    """Connect, refresh, fail in every way that has a text to leak, recover, reload."""
    await connect(life, server)
    await life.ask("GET", "/v1/connections/acme-1/token")
    tokens = {"refresh_token": f"{PREFIX}imported"}
    await life.ask(
        "POST", "/v1/connections", json={"provider": "acme", "id": "acme-2", "tokens": tokens}
    )
    bad = {
        "provider": "acme",
        "tokens": {**tokens, "id_token": f"{PREFIX}imported", "expires_at": f"{PREFIX}imported"},
    }
    assert (await life.ask("POST", "/v1/connections", json=bad)).status == 422
    assert (await life.ask("GET", "/v1/connections", key=WRONG_KEY)).status == 401
    await eventually(lambda: serves(life, "acme-2"), what="the imported connection's token")
    await fail(life, server)
    await life.ask("GET", "/v1/connections")
    await life.ask("GET", "/v1/connections/acme-1")
    await life.ask("GET", "/v1/providers")
    await life.ask("GET", "/v1/providers/acme")
    await reload_badly(life)
    await life.read_metrics(life.daemon.session)


async def connect(life: Life, server: TokenServer) -> None:
    """Go through the code flow; the authorization page itself is left out."""
    created = await life.ask("POST", "/v1/connections", json={"provider": "acme", "id": "acme-1"})
    connect_url = created.body["connect_url"]
    life.answers.pop()  # It holds the ticket, which is for the person.
    life.secrets["ticket"] = connect_url.rpartition("/")[2]
    async with browser_session() as browser:
        async with browser.post(connect_url, allow_redirects=False) as begun:
            assert begun.status == 303, await begun.text()
            state = parse_qs(urlsplit(begun.headers["Location"]).query)["state"][0]
        life.secrets["state"] = state
        for cookie in browser.cookie_jar:
            life.secrets["browser binding"] = cookie.value
        callback = f"{life.daemon.redirect_uri}?code={CODE}&state={state}"
        for status in (200, 400):
            # The second time its state is used up.
            async with browser.get(callback) as answer:
                assert answer.status == status
                life.answers.append(await answer.read())
        # What a provider says in an error is anybody's text.
        denied = f"{life.daemon.redirect_uri}?error={CODE}&error_description={CODE}&state={state}"
        async with browser.get(denied) as answer:
            life.answers.append(await answer.read())
    life.secrets["verifier"] = server.forms[-1]["code_verifier"]


async def fail(life: Life, server: TokenServer) -> None:
    """Let the provider echo what it was sent, in every kind of failure."""
    for status, error in (
        (400, "temporarily_unavailable"),
        (400, "{refresh_token}"),
        (401, "invalid_client"),
        (500, "server_error"),
        (400, "invalid_grant"),
    ):
        echo = last_sent(server)
        text = error.format(refresh_token=echo)
        body = {
            "error": text,
            "error_description": f"bad {echo} {CLIENT_SECRET}",
            "error_uri": echo,
        }
        server.answer = says(status, body)
        await life.ask("POST", "/v1/connections/acme-1/refresh")
        await life.ask("GET", "/v1/connections/acme-1")
        await life.ask("GET", "/v1/connections/acme-1/token?newer_than=1000")
    server.answer = replies(f"<html>{last_sent(server)} {CLIENT_SECRET}</html>".encode())
    await life.ask("POST", "/v1/connections/acme-2/refresh")
    server.answer = says(200, {"access_token": f"{PREFIX}unusable token", "token_type": "mac"})
    await life.ask("POST", "/v1/connections/acme-2/refresh")
    server.answer = server.grant
    await life.ask("POST", "/v1/connections/acme-2/refresh")
    await eventually(lambda: serves(life, "acme-2"), what="a token after the failures")


def last_sent(server: TokenServer) -> str:
    """Return the refresh token that was sent last."""
    sent = [form["refresh_token"] for form in server.forms if "refresh_token" in form]
    return sent[-1] if sent else f"{PREFIX}refresh-1"


async def serves(life: Life, connection: str) -> bool:
    """Tell whether a token is served."""
    return (await life.ask("GET", f"/v1/connections/{connection}/token")).status == 200


async def reload_badly(life: Life) -> None:
    """Read a configuration again that has the secrets in the wrong places."""
    good = life.daemon.settings
    acme = good["providers"]["acme"]
    life.daemon.settings = {
        **good,
        "encryption": {"keys": [{"id": ENCRYPTION_KEY, "secret": CLIENT_SECRET}]},
        "callers": [{"name": "service", "key": {"value": CALLER_KEY}}],
        "database": {"url": f"postgresql://user:{CLIENT_SECRET}@host:port/x"},
        "providers": {
            "acme": {**acme, "client_secret": {"fiel": CLIENT_SECRET}, "rate": CALLER_KEY}
        },
    }
    assert not await life.daemon.reload()
    life.daemon.settings = good


@pytest.fixture(params=["json and external", "console and embedded"])
async def life(
    request: pytest.FixtureRequest, tmp_path: Path, database_url: str
) -> AsyncIterator[Life]:
    """A life that was lived; the daemon still runs."""
    is_external = request.param == "json and external"
    daemon = Tokenward(tmp_path)
    (tmp_path / "old-secret").write_text(f"{OLD_CLIENT_SECRET}\n")
    async with TokenServer(prefix=PREFIX) as server:
        daemon.settings |= {
            "log": {"format": "json" if is_external else "console", "level": "debug"},
            "encryption": {"keys": [{"id": "k1", "secret": ENCRYPTION_KEY}]},
            "callers": [
                {
                    "name": "service",
                    "key": CALLER_KEY,
                    "connections": ["*"],
                    "permissions": ["token", "read", "manage"],
                }
            ],
            "providers": {
                "acme": server.provider(
                    client_secret=[CLIENT_SECRET, {"file": str(tmp_path / "old-secret")}],
                    rotation="overlap",
                )
            },
        }
        if is_external:
            daemon.settings["database"] = {"url": database_url}
        life = Life(daemon, database_url if is_external else None)
        async with daemon:
            await live(life, server)
            for number in range(1, 10):
                life.secrets[f"access token {number}"] = f"{PREFIX}access-{number}"
                life.secrets[f"refresh token {number}"] = f"{PREFIX}refresh-{number}"
            life.sent = [repr(seen).encode() for seen in server.seen]
            life.secrets["database password"] = password_of(life.database_url)
            yield life


def password_of(url: str) -> str:
    """Return the password in a database URL."""
    return unquote(urlsplit(url).password or "")


async def test_no_secret_is_let_out(life: Life) -> None:
    """No secret is in a log, a metric, an answer, a command line or a row."""
    rows = [row for table in (await dump(life.database_url)).values() for row in table]
    assert life.daemon.process is not None
    places = {
        "log": life.daemon.log().encode(),
        "answers": b"\n".join(life.answers),
        "command lines": b"\n".join(command_lines(life.daemon.process.pid)),
        "rows": "\n".join(rows).encode(),
        "files": b"\n".join(
            path.read_bytes() for path in life.daemon.state_dir.glob("*.log") if path.is_file()
        ),
    }
    leaks = [
        (place, name)
        for place, content in places.items()
        for name, secret in life.secrets.items()
        if holds(content, secret)
    ]
    assert leaks == []
    assert b"MARKED" not in places["log"]


async def test_the_search_finds_what_is_there(life: Life) -> None:
    """Every place holds what belongs there, and secrets are found where they have to be."""
    rows = [row for table in (await dump(life.database_url)).values() for row in table]
    assert life.daemon.process is not None
    assert "acme-1" in life.daemon.log()
    assert any(holds(answer, "acme-1") for answer in life.answers)
    assert any(holds(row.encode(), "acme-1") for row in rows)
    assert any(holds(line, "daemon") for line in command_lines(life.daemon.process.pid))
    assert any(holds(answer, f"{PREFIX}access-1") for answer in life.token_answers)
    sent = b"\n".join(life.sent)
    for name in ("client secret", "code", "verifier", "imported refresh token"):
        assert holds(sent, life.secrets[name]), name


def holds(content: bytes, secret: str) -> bool:
    """Tell whether a secret is in there: plain, in hexadecimal digits, within base64."""
    return any(form in content for form in forms_of(secret))


def forms_of(secret: str) -> Iterator[bytes]:
    """Yield the ways to write a secret."""
    raw = secret.encode()
    yield raw
    yield raw.hex().encode()
    # Base64 at each of three offsets, without the characters that depend on the neighbours.
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw)
        yield encoded[4 if offset else 0 : -4]


def command_lines(pid: int) -> Iterator[bytes]:
    """Yield the command lines of a process and its descendants."""
    yield Path(f"/proc/{pid}/cmdline").read_bytes()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from command_lines(int(child))
