"""Which key encrypts: the first of the configuration that every live replica can decrypt with.

Its hard idea: a replica that writes with a key that another does not have makes rows unreadable
there. So each says which keys it has, and none encrypts with a key before all the others have it.
Who starts and who begins to use a key do so under one lock: a key in use is everybody's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from daemon.domain.clock import Clock, Entropy
from daemon.domain.errors import KeyringError
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.dialing import DatabaseConnection
from daemon.persistence.keyring import (
    Keyring,
    StoredKeys,
    announce,
    judge,
    missing_keys,
    stored_keys,
)
from daemon.persistence.postgres import Database

log = structlog.get_logger()

# What was encrypted just before a change may be on its way for as long as a statement may take:
# 10 s at the server, 12 s here (``dialing.Limits``).
STRAGGLERS = 15.0
# A replica says that it lives every 30 s. One that is silent for longer has lost the database.
LIVE_MINUTES = 5

LOCK_KEYS = "LOCK TABLE encryption_keys IN SHARE ROW EXCLUSIVE MODE"
# A replica of the version before this one is in ``replicas`` only, or has an old row here.
_REPLICAS = f"""
WITH seen AS (
    SELECT coalesce(k.owner, r.owner) AS owner, k.key_ids, k.encrypts, k.journal_keys,
           greatest(k.seen_at, r.seen_at) AS seen_at,
           k.seen_at > clock_timestamp() - interval '{LIVE_MINUTES} minutes' AS tells,
           r.seen_at > clock_timestamp() - interval '{LIVE_MINUTES} minutes' AS refreshes
    FROM replica_keys k FULL JOIN replicas r ON r.owner = k.owner
)
SELECT owner, seen_at, coalesce(tells OR refreshes, false) AS is_live,
       CASE WHEN tells OR NOT coalesce(refreshes, false) THEN key_ids END AS key_ids,
       encrypts, journal_keys
FROM seen WHERE seen_at > clock_timestamp() - interval '30 days' ORDER BY owner
"""
_LACKING = f"""
SELECT count(*) FROM ({_REPLICAS}) replica
WHERE is_live AND owner <> $1 AND NOT coalesce($2 = ANY(key_ids), false)
"""
_TELL = """
INSERT INTO replica_keys (owner, key_ids, encrypts, journal_keys, seen_at)
VALUES ($1, $2, $3, $4, clock_timestamp())
ON CONFLICT (owner) DO UPDATE
SET key_ids = excluded.key_ids, encrypts = excluded.encrypts,
    journal_keys = excluded.journal_keys, seen_at = excluded.seen_at
"""
_TOLD = "SELECT key_ids FROM replica_keys WHERE owner = $1"
_FORGET = "DELETE FROM replica_keys WHERE seen_at < clock_timestamp() - interval '30 days'"
_BEAT = """
WITH beat AS (
    UPDATE replica_keys SET encrypts = $2, journal_keys = $3, seen_at = clock_timestamp()
    WHERE owner = $1 RETURNING 1
)
SELECT (SELECT count(*) FROM beat) AS told,
       array(SELECT key_id FROM encryption_keys WHERE in_use) AS in_use,
       array(SELECT DISTINCT key_ids[1] FROM replica_keys
             WHERE seen_at > clock_timestamp() - interval '5 minutes') AS first
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaKeys:
    """What one replica says of its keys; ``key_ids`` is ``None`` where it says nothing.

    ``encrypts`` are the keys whose ciphertexts may still arrive from it.
    """

    owner: str
    seen_at: datetime
    is_live: bool
    key_ids: tuple[str, ...] | None
    encrypts: tuple[str, ...] = ()
    journal_keys: tuple[str, ...] = ()

    def has(self, key_id: str) -> bool:
        """Tell whether it is known to have a key."""
        return key_id in (self.key_ids or ())


def encrypting(
    own: Sequence[str], *, in_use: Collection[str], others: Iterable[ReplicaKeys]
) -> str:
    """Return the first of our ``own`` keys that all live replicas have. Pure.

    What is ``in_use`` they have, or they would not have started.

    Raises:
        KeyringError: there is none.
    """
    live = [other for other in others if other.is_live]
    for key_id in own:
        if key_id in in_use or all(other.has(key_id) for other in live):
            return key_id
    owners = ", ".join(other.owner for other in live if not any(map(other.has, own)))
    raise KeyringError(
        f"no encryption key of this replica is known to the others ({owners}). Give all of them "
        "the same keys; one that does not run any more counts for five minutes"
    )


async def replicas_of(connection: DatabaseConnection) -> list[ReplicaKeys]:
    """Return all replicas that were seen within 30 days and have not stopped in order."""
    return [
        ReplicaKeys(
            owner=row["owner"],
            seen_at=row["seen_at"],
            is_live=row["is_live"],
            key_ids=None if row["key_ids"] is None else tuple(row["key_ids"]),
            encrypts=tuple(row["encrypts"] or ()),
            journal_keys=tuple(row["journal_keys"] or ()),
        )
        for row in await connection.fetch(_REPLICAS)
    ]


async def begin_to_use(connection: DatabaseConnection, key_id: str) -> None:
    """Note that something will be encrypted with a key. Under ``LOCK_KEYS``."""
    await connection.execute(
        "UPDATE encryption_keys SET in_use = true WHERE key_id = $1 AND NOT in_use", key_id
    )


class KeyAgreement:
    """This replica's part: what it has, what it says, and with what ``cipher`` encrypts.

    ``missing`` are keys in use that are not at hand: only while running can that come about, by
    others who have not seen this replica for five minutes. ``awaited`` are keys that others are to
    encrypt with and cannot while they are not at hand here. ``journal_keys`` is asked for the keys
    that the journal's records need.
    """

    def __init__(
        self,
        keyring: Keyring,
        cipher: TokenCipher,
        *,
        owner: str,
        journal_keys: Callable[[], Collection[str]],
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self.keyring = keyring
        self.missing: tuple[str, ...] = ()
        self.awaited: tuple[str, ...] = ()
        self._cipher = cipher
        self._owner = owner
        self._journal_keys = journal_keys
        self._clock = clock
        self._entropy = entropy
        self._joined = False
        # The keys of a join that may have been committed, although nobody said so.
        self._unconfirmed: Keyring | None = None
        # When the last ciphertext of a key that encrypted before can have arrived.
        self._until: dict[str, float] = {}

    @property
    def trouble(self) -> str | None:
        """Return why this replica cannot refresh anything, in words; ``None``: it can."""
        if not self.missing:
            return None
        return (
            f"encryption keys in use are not at hand: {', '.join(self.missing)}. Add them to "
            "encryption.keys and send SIGHUP"
        )

    @property
    def is_settled(self) -> bool:
        """Tell whether the first key encrypts, and nothing of another is on its way."""
        return self._cipher.primary == self.keyring.ids[0] and not self._stragglers()

    async def join(self, connection: DatabaseConnection, keyring: Keyring | None = None) -> None:
        """Judge the keys, say which there are, and encrypt with the one that all have.

        ``keyring`` replaces the keys at hand. ``connection`` is in no transaction.

        Raises:
            KeyringError: as ``judge`` and ``encrypting``; nothing was written or changed.
        """
        async with connection.transaction():
            stored = await self._locked(connection)
            keyring = keyring or self.keyring
            chosen = await self._enter(connection, keyring, stored)
        self._switch(keyring, chosen)

    async def rejoin(self, connection: DatabaseConnection) -> None:
        """Do as ``join`` where a database was just reached: the first time and every time after.

        Who has joined before serves tokens and has replies to store: where others began to use a
        key meanwhile that is not at hand, it is noted in ``missing`` and nothing else is changed.

        Raises:
            KeyringError: as ``join``, but once joined not for keys that are missing.
        """
        async with connection.transaction():
            stored = await self._locked(connection)
            keyring = self.keyring
            missing = missing_keys(keyring.ids, stored.in_use) if self._joined else ()
            chosen = None
            if missing:
                await self._stay(connection, stored.canaries)
            else:
                chosen = await self._enter(connection, keyring, stored)
        if chosen is None:
            self._note_missing(missing)
        else:
            self._switch(keyring, chosen)

    async def beat(self, database: Database) -> None:
        """Say that this replica lives, and look whether the first key may encrypt by now.

        Raises DatabaseUnavailableError; KeyringError as ``join``.
        """
        encrypts = list(dict.fromkeys((self._cipher.primary, *self._stragglers())))
        row = await database.fetchrow(_BEAT, self._owner, encrypts, self._in_journal())
        if row is None:
            raise AssertionError("this statement returns one row")
        self._note_missing(missing_keys(self.keyring.ids, row["in_use"]))
        awaited = set(row["first"]) - set(row["in_use"])
        self.awaited = missing_keys(self.keyring.ids, awaited)
        is_known = bool(row["told"]) and self._cipher.primary in row["in_use"]
        if not self.missing and (not is_known or await self._may_change(database, row["in_use"])):
            async with database.acquire() as connection:
                await self.join(connection)

    async def leave(self, database: Database) -> None:
        """Let nobody wait for this replica: it stops, and its journal holds nothing unsettled."""
        await database.execute("DELETE FROM replica_keys WHERE owner = $1", self._owner)

    async def _locked(self, connection: DatabaseConnection) -> StoredKeys:
        """Keep others from starting or changing keys, and settle what a join before came to."""
        # Two with keys of their own may both have found the database empty.
        await connection.execute(LOCK_KEYS)
        keyring = self._unconfirmed
        if keyring is not None:
            told = await connection.fetchval(_TOLD, self._owner)
            # Its acknowledgement may have come meanwhile.
            if self._unconfirmed is keyring and told == list(keyring.ids):
                self._adopt(keyring)
            self._unconfirmed = None
        return await stored_keys(connection)

    def _adopt(self, keyring: Keyring) -> None:
        """Have keys that the others count on, and those before: they encrypted until now."""
        before = (key for key in self.keyring.keys if key.id not in keyring.ids)
        self.keyring = replace(keyring, keys=(*keyring.keys, *before))
        self._cipher.replace(self.keyring.keys, primary=self._cipher.primary)

    async def _enter(
        self, connection: DatabaseConnection, keyring: Keyring, stored: StoredKeys
    ) -> str:
        """Write what ``join`` says; return the key that is to encrypt. Under ``LOCK_KEYS``."""
        cipher = TokenCipher(keyring.keys, entropy=self._entropy)
        new = judge(keyring, cipher, stored.canaries, stored.in_use)
        others = [r for r in await replicas_of(connection) if r.owner != self._owner]
        chosen = encrypting(keyring.ids, in_use=stored.in_use, others=others)
        self._unconfirmed = keyring
        await announce(connection, cipher, new)
        await begin_to_use(connection, chosen)
        before = self._cipher.primary if self._joined else chosen
        await self._tell(connection, keyring, (chosen, before))
        await connection.execute(_FORGET)
        return chosen

    async def _stay(self, connection: DatabaseConnection, canaries: Mapping[str, bytes]) -> None:
        """Say that this replica lives with the keys that it has. Under ``LOCK_KEYS``.

        The key that encrypts is not begun to be used again: others may be without it by now.
        """
        new = judge(self.keyring, self._cipher, canaries, in_use=())
        await announce(connection, self._cipher, new)
        await self._tell(connection, self.keyring, (self._cipher.primary,))

    async def _tell(
        self, connection: DatabaseConnection, keyring: Keyring, encrypts: Iterable[str]
    ) -> None:
        encrypts = dict.fromkeys((*encrypts, *self._stragglers()))
        await connection.execute(
            _TELL, self._owner, list(keyring.ids), list(encrypts), self._in_journal()
        )

    async def _may_change(self, database: Database, in_use: Collection[str]) -> bool:
        """Tell whether all have a key that is to encrypt before the one that does. Locks nothing.

        Of a thousand replicas that wait for one, none should hold up the others.
        """
        for key_id in self.keyring.ids:
            if key_id == self._cipher.primary:
                return False
            if key_id in in_use or not await database.fetchval(_LACKING, self._owner, key_id):
                return True
        return False

    def _switch(self, keyring: Keyring, chosen: str) -> None:
        before = self._cipher.primary
        self._cipher.replace(keyring.keys, primary=chosen)
        self.keyring = keyring
        if self._unconfirmed is keyring:
            self._unconfirmed = None
        self._note_missing(())
        self.awaited = ()
        if self._joined and before != chosen:
            self._until[before] = self._clock.boottime() + STRAGGLERS
        if not self._joined or before != chosen:
            log.info("encryption_key_in_use", key_id=chosen, configured=list(keyring.ids))
        self._joined = True

    def _note_missing(self, missing: tuple[str, ...]) -> None:
        if missing and missing != self.missing:
            log.error(
                "encryption_key_missing",
                key_ids=list(missing),
                detail="other replicas encrypt with keys that are not at hand here: nothing is "
                "refreshed. Add them to encryption.keys and send SIGHUP",
            )
        self.missing = missing

    def _stragglers(self) -> list[str]:
        now = self._clock.boottime()
        return [key_id for key_id, until in self._until.items() if until > now]

    def _in_journal(self) -> list[str]:
        return sorted(self._journal_keys())
