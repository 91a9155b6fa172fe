"""``tokenward keys``: secrets made on this machine, and which of them the database knows."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

from daemon.cli.database import exists, load, reach
from daemon.cli.exits import CommandError, Exit
from daemon.cli.invocation import Invocation
from daemon.cli.key_report import KeyReport, Known, as_json, counted, removable, report
from daemon.cli.printing import cell, complain, relative, say, say_json, say_table
from daemon.config.settings import Settings
from daemon.domain.clock import Clock, Entropy, SystemClock
from daemon.domain.errors import DatabaseUnavailableError, StorageError
from daemon.persistence import keyring
from daemon.persistence.agreement import replicas_of
from daemon.persistence.dialing import DatabaseConnection
from daemon.persistence.journal_keys import count_records
from daemon.persistence.reencryption import count_ciphertexts, unhurried
from daemon.persistence.unavailable import LIBRARY_ERRORS, classify

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
                "for without it no stored token can be read. Then add it to the configuration of",
                "every replica, before the keys that are there already, and send SIGHUP:",
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
    """``keys status``: every key, what needs it, and who has it. Raises StorageError."""
    settings, now = load(call), SystemClock().now()
    known = await find_known(settings)
    keys = report(known, now=now)
    if call.as_json:
        say_json(as_json(keys, known.replicas))
    elif not keys:
        say("There is no key yet: the first start generates one, or configure encryption.keys.")
    else:
        _print(keys, known, now)
    missing = [key.id for key in keys if key.is_missing]
    if missing:
        raise CommandError(
            f"The database was encrypted with keys that are not at hand: {', '.join(missing)}. "
            "Add each to encryption.keys (after the first it only decrypts)."
        )


async def find_known(settings: Settings) -> Known:
    """Return all that is known of keys. Raises StorageError."""
    at_hand = keyring.find_keyring(settings.encryption_keys, state_dir=settings.state_dir)
    ids = at_hand.ids if at_hand else ()
    journal = count_records(settings.state_dir / "journal")
    if not exists(settings):
        return Known(at_hand=ids, journal=journal)
    async with reach(settings) as database:
        with told():
            return await read_known(database.connection, ids, journal)


async def read_known(
    connection: DatabaseConnection, at_hand: tuple[str, ...], journal: Mapping[str, int]
) -> Known:
    """Return all that is known of keys. Raises CommandError for an older schema."""
    if not await has_schema(connection):
        return Known(at_hand=at_hand, journal=journal)
    await unhurried(connection)
    stored = await keyring.stored_keys(connection)
    return Known(
        at_hand=at_hand,
        stored=tuple(stored.canaries),
        in_use=stored.in_use,
        ciphertexts=await count_ciphertexts(connection),
        journal=journal,
        replicas=await replicas_of(connection),
    )


async def has_schema(connection: DatabaseConnection) -> bool:
    """Tell whether the database has anything; raise CommandError where it is of a version before.

    A daemon of this version has not started yet.
    """
    if await connection.fetchval("SELECT to_regclass('encryption_keys')") is None:
        return False
    if await connection.fetchval("SELECT to_regclass('replica_keys')") is None:
        raise CommandError(
            "The database's schema is older than this version. Run 'tokenward migrate', or start "
            "a daemon of this version, and try again."
        )
    return True


@contextmanager
def told() -> Iterator[None]:
    """Raise StorageError for what the database says, in words."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        problem = StorageError if classify(error) is None else DatabaseUnavailableError
        raise problem(
            f"The database did not do what was asked ({type(error).__name__}). Look at its log, "
            "and run the same command again: it goes on where it stopped."
        ) from error


def _print(keys: Sequence[KeyReport], known: Known, now: datetime) -> None:
    say_table(
        ("KEY", "ENCRYPTS", "AT HAND", "CIPHERTEXTS", "MAY BE REMOVED"),
        (
            (
                key.id,
                cell(key.encrypts),
                cell(key.configured),
                counted(key.ciphertexts),
                removable(key),
            )
            for key in keys
        ),
    )
    if known.replicas:
        say()
        say_table(
            ("REPLICA", "SEEN", "KEYS", "ENCRYPTS WITH", "IN ITS JOURNAL"),
            (
                (
                    replica.owner,
                    relative(replica.seen_at.isoformat(), now),
                    "not told" if replica.key_ids is None else cell(list(replica.key_ids)),
                    cell(list(replica.encrypts)),
                    cell(list(replica.journal_keys)),
                )
                for replica in known.replicas
            ),
        )
    for key in keys:
        if key.configured and not key.encrypts:
            for why in key.needed or ("it may be removed from every configuration.",):
                say(f"{key.id}: {why}")
