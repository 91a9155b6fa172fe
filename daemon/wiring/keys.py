"""Keeps this replica's encryption keys in step with the others', and changes them at SIGHUP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import Clock
from daemon.domain.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    Finding,
    JournalError,
    KeyringError,
)
from daemon.persistence.agreement import KeyAgreement
from daemon.persistence.background import pause
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.journal import Journal
from daemon.persistence.journal_keys import reseal_file
from daemon.persistence.keyring import Keyring, missing_keys
from daemon.persistence.postgres import Database
from daemon.persistence.reencryption import count_ciphertexts

log = structlog.get_logger()

# Others take a replica for live that was seen within five minutes.
_BEAT = 30.0
# While the first key waits for the others, or the last words of the old one arrive.
_SOON = 3.0
_PATH = "encryption.keys"


class Keys:
    """The task of one process.

    ``on_missing`` hears why nothing may be refreshed, or ``None``, and how many keys are missing
    now and soon.
    """

    def __init__(
        self,
        agreement: KeyAgreement,
        *,
        cipher: TokenCipher,
        database: Database,
        journal: Journal,
        clock: Clock,
        open_keyring: Callable[[tuple[EncryptionKey, ...]], Keyring],
        on_missing: Callable[[str | None, int, int], None],
    ) -> None:
        self._agreement = agreement
        self._cipher = cipher
        self._database = database
        self._journal = journal
        self._clock = clock
        self._open_keyring = open_keyring
        self._on_missing = on_missing
        # One change of the keys at a time.
        self._changing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._has_left = False
        # Files of the journal that cannot be written again with the keys at hand.
        self._left: set[int] = set()

    @property
    def trouble(self) -> str | None:
        """Return why this replica cannot refresh anything, in words; ``None``: it can."""
        return self._agreement.trouble

    async def run(self) -> None:
        """Say every so often which keys there are, and change to the first one when all have it."""
        while True:
            self._changed.clear()
            try:
                async with self._changing:
                    if not self._has_left:
                        await self._agreement.beat(self._database)
            except DatabaseUnavailableError:
                pass
            except KeyringError as error:
                log.warning("encryption_keys_not_agreed", error=str(error))
            self._tell_missing()
            if self._agreement.is_settled and await self._reseal_journal():
                # The others hear at once that the journal does not need the old key any more.
                continue
            seconds = _BEAT if self._agreement.is_settled else _SOON
            await pause(self._clock, seconds, self._changed)

    async def replace(self, configured: tuple[EncryptionKey, ...]) -> None:
        """Have these keys from now on.

        Raises:
            ConfigurationError: something needs a key that is not among them, or one of them is
                not what it was; nothing was changed.
            DatabaseUnavailableError: the same, but not known.
        """
        async with self._changing:
            try:
                keyring = self._open_keyring(configured)
                await self._refuse_loss(keyring)
                async with self._database.acquire() as connection:
                    await self._agreement.join(connection, keyring)
            except KeyringError as error:
                raise ConfigurationError([Finding(_PATH, str(error))]) from error
        self._left.clear()
        self._changed.set()
        self._tell_missing()

    async def leave(self) -> None:
        """Let the others not wait for this replica any more, if nothing waits in its journal."""
        async with self._changing:
            self._has_left = True
            if not len(self._journal):
                await self._agreement.leave(self._database)

    def _tell_missing(self) -> None:
        missing, awaited = self._agreement.missing, self._agreement.awaited
        self._on_missing(self.trouble, len(missing), len(awaited))

    async def _refuse_loss(self, keyring: Keyring) -> None:
        """Raise where something would not open any more without a key that is to go."""
        gone = missing_keys(keyring.ids, self._agreement.keyring.ids)
        in_journal = sorted(self._journal.keys.ids & set(gone))
        if in_journal:
            raise KeyringError(
                f"replies in the journal need keys that are gone from the configuration: "
                f"{', '.join(in_journal)}. 'tokenward keys status' says when they may go"
            )
        if not gone:
            return
        async with self._database.transaction() as connection:
            # This reads every row.
            await connection.execute("SET LOCAL statement_timeout = 0")
            counts = await count_ciphertexts(connection)
        needed = {key_id: sum(counts[key_id].values()) for key_id in gone if key_id in counts}
        if needed:
            what = ", ".join(f"{count} with {key_id}" for key_id, count in needed.items())
            raise KeyringError(
                f"ciphertexts in the database need keys that are gone from the configuration "
                f"({what}): run 'tokenward keys rotate' before you remove them"
            )

    async def _reseal_journal(self) -> bool:
        """Write the journal's files again that need another key; tell whether any was."""
        keys, primary = self._journal.keys, self._cipher.primary
        done = 0
        try:
            for number in keys.files_beside(primary):
                # A file with damaged places stays as it is, until it is a day old.
                if number in self._left:
                    continue
                path = await self._journal.closed_file(number)
                ids = None if path is None else await asyncio.to_thread(self._reseal, path)
                if ids is None:
                    keys.forget(number)
                    continue
                keys.replace(number, ids)
                if ids - {primary}:
                    self._left.add(number)
                done += 1
        except (OSError, JournalError) as error:
            log.warning("journal_not_resealed", error=str(error))
            return False
        if done:
            log.info("journal_resealed", files=done, key_id=primary)
        return bool(done)

    def _reseal(self, path: Path) -> frozenset[str] | None:
        try:
            return reseal_file(path, self._cipher)
        except FileNotFoundError:  # old, and cleaned up meanwhile
            return None
