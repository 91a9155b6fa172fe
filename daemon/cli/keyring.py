"""``tokenward keys``: secrets made on this machine, and which of them the database knows."""

from __future__ import annotations

import base64
import hashlib
import re

from daemon.cli.database import exists, load, reach
from daemon.cli.exits import CommandError, Exit
from daemon.cli.invocation import Invocation
from daemon.cli.printing import cell, complain, say, say_json, say_table
from daemon.config.settings import Settings
from daemon.domain.clock import Clock, Entropy
from daemon.persistence import keyring

_CALLER_KEY_BYTES = 32
# Safe as it stands in YAML, in a log and in a metric.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


def generate(call: Invocation, *, clock: Clock, entropy: Entropy) -> None:
    """``keys generate``: the bare secret on stdout, what to do with it on stderr."""
    secret = keyring.generate_key(entropy)
    key_id = f"{clock.now():%Y-%m-%d}"
    if call.as_json:
        say_json({"id": key_id, "secret": secret})
        return
    say(secret)
    complain(
        "\n".join(
            (
                "",
                "This is a new encryption key. It is stored nowhere: keep it in a secret store,",
                "for without it no stored token can be read. Then add it to the configuration,",
                "before the keys that are there already:",
                "",
                "encryption:",
                "  keys:",
                f'    - id: "{key_id}"',
                f"      secret: {{file: /run/secrets/tokenward-key-{key_id}}}",
            )
        )
    )


def generate_caller(call: Invocation, name: str, *, entropy: Entropy) -> None:
    """``keys caller``: a key for a caller, and the digest of it for the configuration."""
    if _NAME.fullmatch(name) is None:
        raise CommandError(
            "A caller's name has 1 to 63 letters, digits or . _ - and begins with a letter or "
            "digit, as in: tokenward keys caller billing",
            Exit.USAGE,
        )
    secret = base64.urlsafe_b64encode(entropy(_CALLER_KEY_BYTES)).rstrip(b"=").decode("ascii")
    key = f"tw_{secret}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    if call.as_json:
        say_json({"name": name, "key": key, "key_sha256": digest})
        return
    complain(f"The key of the caller {name}, shown this once; give it to that program alone:")
    say(key)
    complain("Add this to the configuration, then reload it (SIGHUP) or restart the daemon:")
    say(
        "\n".join(
            (
                "callers:",
                f"  - name: {name}",
                f'    key_sha256: "{digest}"',
                '    connections: ["*"]        # patterns of connection ids; narrow them',
                "    permissions: [token, read]",
            )
        )
    )


async def status(call: Invocation) -> None:
    """``keys status``: every key at hand or known to the database. Raises StorageError."""
    settings = load(call)
    at_hand = keyring.find_keyring(settings.encryption_keys, state_dir=settings.state_dir)
    keys = keyring.status(at_hand, await _known(settings))
    if call.as_json:
        say_json(
            {
                "keys": [
                    {
                        "id": key.id,
                        "encrypts": key.encrypts,
                        "configured": key.configured,
                        "known": key.known,
                    }
                    for key in keys
                ]
            }
        )
    elif not keys:
        say("There is no key yet: the first start generates one, or configure encryption.keys.")
    else:
        say_table(
            ("KEY", "ENCRYPTS", "AT HAND", "USED BY THE DATABASE"),
            ((key.id, cell(key.encrypts), cell(key.configured), cell(key.known)) for key in keys),
        )
    missing = [key.id for key in keys if key.known and not key.configured]
    if missing:
        raise CommandError(
            f"The database was encrypted with keys that are not at hand: {', '.join(missing)}. "
            "Add each to encryption.keys (after the first it only decrypts)."
        )


async def _known(settings: Settings) -> tuple[str, ...]:
    if not exists(settings):
        return ()
    async with reach(settings) as database:
        if await database.connection.fetchval("SELECT to_regclass('encryption_keys')") is None:
            return ()
        return await keyring.known_keys(database.connection)
