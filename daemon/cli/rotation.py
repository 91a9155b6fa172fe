"""``tokenward keys rotate``: everything encrypted with the first key, while the daemons go on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack

from daemon.cli.database import exists, load, reach
from daemon.cli.exits import CommandError, Exit
from daemon.cli.invocation import Invocation
from daemon.cli.key_report import KeyReport, as_json, changing, lacking, not_first, report
from daemon.cli.keyring import has_schema, read_known, told
from daemon.cli.printing import complain, console_for, say, say_json
from daemon.config.settings import Settings
from daemon.domain.clock import Clock, SystemClock, system_entropy
from daemon.persistence import keyring
from daemon.persistence.agreement import LOCK_KEYS, ReplicaKeys, begin_to_use, replicas_of
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.dialing import DatabaseConnection
from daemon.persistence.journal_keys import count_records, reseal_unused
from daemon.persistence.keyring import Keyring
from daemon.persistence.reencryption import Rotation, reencrypt, retire, rows_left, unhurried

# A replica that has just learned the key encrypts with it within 3 s, and 15 s later the last
# ciphertext of the old one has arrived.
_PATIENCE = 60.0
_LOOK_EVERY = 1.0
_SAY_EVERY = 5.0


async def rotate(call: Invocation) -> None:
    """Rotate. May be stopped anywhere, and goes on with what is left.

    Raises:
        CommandError: a live replica is not ready for the key, or something could not be read.
        KeyringError: a key is wrong or missing; not one row was written.
        StorageError: the database or the journal cannot be used.
    """
    settings, clock = load(call), SystemClock()
    at_hand = keyring.find_keyring(settings.encryption_keys, state_dir=settings.state_dir)
    if at_hand is None or not exists(settings):
        raise CommandError(
            "There is nothing to encrypt again yet: the first start makes the database and, where "
            "none is configured, a key."
        )
    async with reach(settings) as database:
        with told():
            rotation, keys, replicas = await _rotate(
                settings, database.connection, at_hand, clock, quietly=call.as_json
            )
    if call.as_json:
        done = {"rewritten": rotation.rewritten, "unopened": rotation.unopened}
        say_json({**done, **as_json(keys, replicas)})
    else:
        _print(at_hand.ids[0], rotation, keys)
    if rotation.unopened or rotation.busy:
        raise CommandError(_what_is_left(rotation))


async def _rotate(
    settings: Settings,
    connection: DatabaseConnection,
    at_hand: Keyring,
    clock: Clock,
    *,
    quietly: bool,
) -> tuple[Rotation, list[KeyReport], list[ReplicaKeys]]:
    cipher = TokenCipher(at_hand.keys, entropy=system_entropy)
    if not await has_schema(connection):
        raise CommandError("The database is empty: there is nothing to encrypt again yet.")
    await unhurried(connection)
    await _agree(connection, at_hand, cipher, clock)
    rotation = Rotation()
    with ExitStack() as stack:
        total = await rows_left(connection, cipher)
        tell = (lambda _: None) if quietly else _teller(total, clock, stack)
        async for rotation in reencrypt(connection, cipher, clock=clock):
            tell(rotation.rewritten)
    await retire(connection, keep=cipher.primary, clock=clock)
    journal = settings.state_dir / "journal"
    reseal_unused(journal, cipher)
    known = await read_known(connection, at_hand.ids, count_records(journal))
    return rotation, report(known, now=clock.now()), list(known.replicas)


async def _agree(
    connection: DatabaseConnection, at_hand: Keyring, cipher: TokenCipher, clock: Clock
) -> None:
    """Return when every live replica has the first key and encrypts with no other."""
    give_up = clock.boottime() + _PATIENCE
    while True:
        async with connection.transaction():
            # From here on nobody starts without the key.
            await connection.execute(LOCK_KEYS)
            stored = await keyring.stored_keys(connection)
            new = keyring.judge(at_hand, cipher, stored.canaries, stored.in_use)
            replicas = await replicas_of(connection)
            _refuse_unready(replicas, cipher.primary)
            await keyring.announce(connection, cipher, new)
            await begin_to_use(connection, cipher.primary)
        waiting = changing(replicas, cipher.primary)
        if not waiting:
            return
        if clock.boottime() >= give_up:
            raise CommandError(
                f"These replicas have the key first and still encrypt with another: "
                f"{', '.join(waiting)}. Look at their logs, and run this again.",
                Exit.UNAVAILABLE,
            )
        await clock.sleep(_LOOK_EVERY)


def _refuse_unready(replicas: list[ReplicaKeys], key_id: str) -> None:
    """Raise CommandError while a live replica does not have the key, or has another one first."""
    old = [replica.owner for replica in replicas if replica.is_live and replica.key_ids is None]
    if old:
        raise CommandError(
            f"Replicas of an older version do not say which keys they have: {', '.join(old)}. "
            "Upgrade them first. Nothing was changed."
        )
    without = [replica.owner for replica in lacking(replicas, key_id)]
    if without:
        raise CommandError(
            f"Live replicas do not have the key {key_id} yet: {', '.join(without)}. Add it to "
            "encryption.keys there and send SIGHUP (or restart them), then run this again. One "
            "that was killed counts as live for five minutes. Nothing was changed."
        )
    others = [replica.owner for replica in not_first(replicas, key_id)]
    if others:
        raise CommandError(
            f"Replicas have another key first and would go on to encrypt with it: "
            f"{', '.join(others)}. Make {key_id} the first of encryption.keys there and send "
            "SIGHUP, then run this again. Nothing was changed."
        )


def _teller(total: int, clock: Clock, stack: ExitStack) -> Callable[[int], None]:
    """Return what is told how many rows are done: a bar for a person, else a line now and then."""
    if sys.stderr.isatty():
        return _bar(total, stack)
    complain(f"encrypting {total} rows again")
    said_at = clock.boottime()

    def tell(done: int) -> None:
        nonlocal said_at
        if clock.boottime() - said_at >= _SAY_EVERY:
            said_at = clock.boottime()
            complain(f"{done} of {total} rows")

    return tell


def _bar(total: int, stack: ExitStack) -> Callable[[int], None]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("Encrypting again"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console_for(sys.stderr),
        transient=True,
    )
    stack.enter_context(bar)
    task = bar.add_task("rotate", total=total)
    # Refreshes rewrite rows, too: fewer may be left to do than there were.
    return lambda done: bar.update(task, completed=done, total=max(total, done))


def _print(first: str, rotation: Rotation, keys: list[KeyReport]) -> None:
    say(f"{rotation.rewritten} rows were encrypted again; all new ones are with {first}.")
    for key in keys:
        if not key.configured or key.encrypts:
            continue
        if key.may_be_removed:
            say(f"{key.id} is not needed any more: remove it from every configuration, send SIGHUP")
        for why in key.needed:
            say(f"{key.id} may not be removed yet: {why}")


def _what_is_left(rotation: Rotation) -> str:
    if rotation.busy:
        return f"{rotation.busy} rows were always in use by others. Run this again."
    return (
        f"{rotation.unopened} ciphertexts do not open with the keys at hand, and were left as they "
        "are. 'tokenward keys status' shows whose they are: configure that key, or connect their "
        "accounts again."
    )
