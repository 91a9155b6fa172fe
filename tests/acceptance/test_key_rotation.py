"""New keys for running daemons; ``make key-test`` runs the first one with 1,000 connections."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import SystemClock, system_entropy
from daemon.persistence.agreement import KeyAgreement
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.keyring import KEY_FILE, Keyring
from tests.campaigns.keys import KeyCampaign, Plan, command, environ_of
from tests.support.polling import eventually
from tests.support.strict_server import StrictServer
from tests.support.tokenward import ROOT, Tokenward

SECOND, THIRD = ({"id": name, "secret": name * 43 + "="} for name in ("2", "3"))


async def test_a_new_key_under_load(tmp_path: Path, database_url: str) -> None:
    """Two replicas change keys while they refresh: no error, no reuse, and the old key can go."""
    plan = Plan(connections=100, takes=0.3, rest=8.0, kills=1)
    report = await KeyCampaign(tmp_path, database_url, plan).run()
    assert report.wrong == [], str(report)
    assert report.reads[200] > 100
    assert report.books.rotations > plan.connections


async def test_the_embedded_database_with_and_without_its_daemon(tmp_path: Path) -> None:
    """From a generated key to a configured one beside the daemon, to the next while it rests."""
    async with StrictServer() as server:
        daemon = Tokenward(tmp_path, {"providers": {"acme": server.provider()}})
        async with daemon:
            grant = server.grant()
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": grant.refresh_token})
            await daemon.until_served("acme-1")
            generated = status_of(daemon)[0]
            assert (generated["encrypts"], generated["ciphertexts"]) == (True, {"token_sets": 2})
            file = {"id": generated["id"], "secret": {"file": str(daemon.state_dir / KEY_FILE)}}
            # A configuration without the key that everything is encrypted with changes nothing.
            daemon.settings["encryption"] = {"keys": [SECOND]}
            assert not await daemon.reload()
            daemon.settings["encryption"] = {"keys": [SECOND, file]}
            assert await daemon.reload()
            assert "Encrypting again" in rotated_at_a_terminal(daemon)
            second, old = status_of(daemon)
            assert (second["ciphertexts"], old["ciphertexts"]) == ({"token_sets": 2}, {})

            async def is_rewritten() -> bool:
                return bool(daemon.logged("journal_resealed"))

            async def may_be_removed() -> bool:
                return bool(status_of(daemon)[1]["may_be_removed"])

            await eventually(is_rewritten, within=60, what="the journal with the new key")
            await eventually(may_be_removed, what="that the others know")
            shown = tokenward(daemon, "keys", "status").stdout
            assert shown.startswith("KEY ")
            assert "\nREPLICA " in shown
            assert shown.endswith(f"{file['id']}: it may be removed from every configuration.\n")
        daemon.settings["encryption"] = {"keys": [THIRD, SECOND]}
        daemon.write_config()
        done = tokenward(daemon, "keys", "rotate")
        assert (done.returncode, "not needed any more" in done.stdout) == (0, True), done.stderr
        daemon.settings["encryption"] = {"keys": [{**THIRD, "secret": SECOND["secret"]}]}
        daemon.write_config()
        wrong = tokenward(daemon, "keys", "rotate")
        assert (wrong.returncode, "is not the key of that id" in wrong.stderr) == (2, True)
        daemon.settings["encryption"] = {"keys": [THIRD]}
        async with daemon:
            assert (await daemon.token("acme-1")).body["access_token"] == grant.access_token
            assert status_of(daemon)[0]["ciphertexts"] == {"token_sets": 2}
            assert daemon.logged("journal_record_not_opened") == []


async def test_a_daemon_that_was_away_while_the_others_changed_keys(
    tmp_path: Path, database_url: str
) -> None:
    """It does not end where it meets their key: it serves, is ready, and takes the key by SIGHUP.

    A start without that key is refused.
    """
    keys = {"keys": [SECOND]}
    async with StrictServer() as server:
        daemon = Tokenward(
            tmp_path,
            {
                "providers": {"acme": server.provider()},
                "database": {"url": database_url},
                "encryption": keys,
            },
        )
        async with daemon:
            first, second = ({"refresh_token": server.grant().refresh_token} for _ in range(2))
            await daemon.create("acme", id="acme-1", tokens=first)
            await daemon.until_served("acme-1")

            async def is_away() -> bool:
                return (await daemon.metrics())["tokenward_database_up"] == 0

            async with taking_no_writes(database_url):
                await eventually(is_away, what="that the daemon lost the database")
                await change_keys_without(database_url)

            async def is_noted() -> bool:
                return bool(daemon.logged("encryption_key_missing"))

            async def is_stored() -> bool:
                """Tell whether the database is used again."""
                body = {"provider": "acme", "id": "acme-2", "tokens": second}
                reply = await daemon.request("POST", "/v1/connections", json=body)
                return reply.status == 201

            await eventually(is_noted, what="the key that is missing")
            await eventually(is_stored, what="a row of a daemon without a key")
            assert (await daemon.token("acme-1")).status == 200
            async with daemon.session.get(f"{daemon.ops_url}/readiness") as answer:
                assert answer.status == 200
            daemon.settings["encryption"] = {"keys": [THIRD, SECOND]}
            assert await daemon.reload()
            await daemon.until_served("acme-2")
        daemon.settings["encryption"] = keys
        daemon.spawn()
        assert await daemon.ended() == 2
        assert "keys that are not at hand: 3" in daemon.log()


@asynccontextmanager
async def taking_no_writes(database_url: str) -> AsyncIterator[None]:
    """Make the database as good as gone for daemons."""
    setting = "default_transaction_read_only"
    connection = await asyncpg.connect(database_url, server_settings={setting: "off"})
    try:
        name = await connection.fetchval("SELECT quote_ident(current_database())")
        await connection.execute(f"ALTER DATABASE {name} SET {setting} = on")
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        yield
        await connection.execute(f"ALTER DATABASE {name} RESET {setting}")
    finally:
        await connection.close()


async def change_keys_without(database_url: str) -> None:
    """Begin to use the third key, as others do where this daemon was not heard for long."""
    third, second = (
        EncryptionKey(id=key["id"], secret=base64.b64decode(key["secret"]))
        for key in (THIRD, SECOND)
    )
    other = KeyAgreement(
        Keyring(keys=(third, second)),
        TokenCipher((third, second), entropy=system_entropy),
        owner="other",
        journal_keys=frozenset,
        clock=SystemClock(),
        entropy=system_entropy,
    )
    connection = await asyncpg.connect(
        database_url, server_settings={"default_transaction_read_only": "off"}
    )
    try:
        for table in ("replicas", "replica_keys"):
            await connection.execute(f"UPDATE {table} SET seen_at = seen_at - interval '301 s'")
        await other.join(connection)
        await connection.execute("DELETE FROM replica_keys WHERE owner = 'other'")
    finally:
        await connection.close()


async def test_callers_come_and_go_without_a_restart(daemon: Tokenward, tmp_path: Path) -> None:
    """A key that SIGHUP brings is good, one that it takes is not; a file needs no SIGHUP."""
    made = json.loads(tokenward(daemon, "keys", "caller", "billing", "--output", "json").stdout)
    caller = {"connections": ["*"], "permissions": ["read"]}
    admin = {"name": "admin", "key": "a" * 40, **caller}
    daemon.settings["callers"] = [admin]

    async def may_ask(key: str) -> bool:
        reply = await daemon.request("GET", "/v1/providers", key=key)
        assert reply.status in {200, 401}
        return reply.status == 200

    async with daemon:
        assert not await may_ask(made["key"])
        billing = {"name": "billing", "key_sha256": made["key_sha256"], **caller}
        daemon.settings["callers"] = [admin, billing]
        assert await daemon.reload()
        assert await may_ask(made["key"])
        key_file = tmp_path / "caller"
        key_file.write_text("f" * 40)
        daemon.settings["callers"] = [admin, {**caller, "name": "file", "key": {"file": "caller"}}]
        assert await daemon.reload()
        assert [await may_ask(made["key"]), await may_ask("f" * 40)] == [False, True]
        key_file.write_text("g" * 40)
        await eventually(lambda: may_ask("g" * 40), what="the new key of the file")
        # The program that reads the file may not have seen it yet.
        assert await may_ask("f" * 40)
        daemon.settings["callers"] = [admin]
        assert await daemon.reload()
        assert [await may_ask("f" * 40), await may_ask("g" * 40)] == [False, False]


def tokenward(daemon: Tokenward, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a daemon's configuration."""
    daemon.write_config()
    return subprocess.run(  # noqa: S603 - our own interpreter
        command(daemon, *arguments),
        cwd=ROOT,
        env=environ_of(daemon),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def status_of(daemon: Tokenward) -> list[dict[str, Any]]:
    """Return the keys, as the command shows them."""
    done = tokenward(daemon, "keys", "status", "--output", "json")
    assert done.returncode == 0, done.stderr
    keys: list[dict[str, Any]] = json.loads(done.stdout)["keys"]
    return keys


def rotated_at_a_terminal(daemon: Tokenward) -> str:
    """Rotate with a terminal for errors; return what it showed."""
    shown, terminal = os.openpty()
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            command(daemon, "keys", "rotate"),
            cwd=ROOT,
            env={**environ_of(daemon), "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=terminal,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return os.read(shown, 65_536).decode()
    finally:
        os.close(shown)
        os.close(terminal)
