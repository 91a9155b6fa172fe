"""Replicas that change keys together, on a real PostgreSQL: none writes what one cannot read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import system_entropy
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import ConfigurationError, DatabaseUnavailableError, KeyringError
from daemon.domain.tokens import TokenSet
from daemon.persistence.agreement import STRAGGLERS, KeyAgreement, ReplicaKeys, replicas_of
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.connections import PostgresConnections
from daemon.persistence.dialing import DatabaseConnection
from daemon.persistence.history import EventRecorder
from daemon.persistence.incarnations import Incarnations
from daemon.persistence.journal import Journal
from daemon.persistence.journal_keys import count_records
from daemon.persistence.keyring import Keyring, open_keyring
from daemon.persistence.postgres import Database
from daemon.persistence.refreshes import PostgresRefreshes
from daemon.wiring.keys import Keys
from tests.support.clock import START, FakeClock
from tests.support.journalled import entry
from tests.support.polling import eventually

OLD, NEW, FOREIGN = (EncryptionKey(id=name, secret=name.encode() * 32) for name in "ONF")


@dataclass
class Replica:
    """One process's keys; ``on_missing`` heard ``told``."""

    database: Database
    directory: Path
    keys: tuple[EncryptionKey, ...]
    clock: FakeClock
    told: list[tuple[str | None, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Join the parts."""
        self.cipher = TokenCipher(self.keys, entropy=system_entropy)
        self.journal = Journal(
            self.directory, self.cipher, clock=self.clock, entropy=system_entropy
        )
        self.journal.open()
        self.agreement = KeyAgreement(
            Keyring(keys=self.keys),
            self.cipher,
            owner=self.directory.name,
            journal_keys=lambda: self.journal.keys.ids,
            clock=self.clock,
            entropy=system_entropy,
        )
        self.task = Keys(
            self.agreement,
            cipher=self.cipher,
            database=self.database,
            journal=self.journal,
            clock=self.clock,
            open_keyring=lambda keys: open_keyring(
                keys, state_dir=self.directory, entropy=system_entropy
            ),
            on_missing=lambda *told: self.told.append(told),
        )

    async def join(self) -> None:
        """Start."""
        async with self.database.acquire() as connection:
            await self.agreement.join(connection)

    async def reconnect(self) -> None:
        """Reach the database again after a time without it."""
        async with self.database.acquire() as connection:
            await self.agreement.rejoin(connection)

    async def beat(self) -> None:
        """Look at what the others have."""
        await self.agreement.beat(self.database)

    async def says(self) -> ReplicaKeys:
        """Return what the others know of this one."""
        async with self.database.acquire() as connection:
            everybody = await replicas_of(connection)
        return next(one for one in everybody if one.owner == self.directory.name)

    async def store(self, name: str) -> None:
        """Import a connection."""
        tokens = TokenSet(
            generation=1,
            access_token="access",
            refresh_token="refresh",
            token_type="Bearer",
            scopes=(),
            issued_at=START,
            expires_at=None,
        )
        connection = Connection(
            id=name,
            provider="acme",
            grant="authorization_code",
            status=Status.ACTIVE,
            created_at=START,
            updated_at=START,
        )
        recorder = EventRecorder(delivers=lambda: False)
        store = PostgresConnections(self.database, self.cipher, recorder)
        assert await store.create(connection, tokens, due_at=None)


@pytest.fixture
def clock() -> FakeClock:
    """One clock for all replicas."""
    return FakeClock()


@asynccontextmanager
async def replica(
    database: Database, tmp_path: Path, clock: FakeClock, name: str, *keys: EncryptionKey
) -> AsyncIterator[Replica]:
    """Run a replica that has joined the others."""
    made = Replica(database, tmp_path / name, keys, clock)
    try:
        await made.join()
        yield made
    finally:
        await made.journal.close()


class LostCommit:
    """A connection that dies around the COMMIT: nobody hears whether it was done."""

    def __init__(self, connection: DatabaseConnection, *, is_committed: bool) -> None:
        self._connection = connection
        self._is_committed = is_committed

    def __getattr__(self, name: str) -> Any:
        """Be the connection otherwise."""
        return getattr(self._connection, name)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Commit or not, and fail either way."""
        transaction = self._connection.transaction()
        await transaction.start()
        yield
        await (transaction.commit() if self._is_committed else transaction.rollback())
        raise ConnectionResetError


async def forget_the_living(database: Database) -> None:
    """Let five minutes pass without a word of any replica."""
    await database.execute("UPDATE replica_keys SET seen_at = clock_timestamp() - interval '301 s'")


async def in_use(database: Database) -> set[str]:
    """Return the keys that nobody may do without."""
    rows = await database.fetch("SELECT key_id FROM encryption_keys WHERE in_use")
    return {row["key_id"] for row in rows}


async def test_the_new_key_waits_for_the_last_replica(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    """One that has it first writes with the old one until the other has it, too."""
    async with (
        replica(database, tmp_path, clock, "one", OLD) as one,
        replica(database, tmp_path, clock, "two", NEW, OLD) as two,
    ):
        assert (one.cipher.primary, two.cipher.primary) == ("O", "O")
        await two.beat()
        assert two.cipher.primary == "O"
        assert [two.agreement.is_settled] == [False]
        await one.beat()
        assert (one.agreement.missing, one.agreement.awaited) == ((), ("N",))
        # It may even start again meanwhile: nothing needs the new key yet.
        await one.join()
        await one.task.replace((OLD, NEW))
        await two.beat()
        assert (one.cipher.primary, two.cipher.primary) == ("O", "N")
        # Its last words under the old key may be on their way.
        assert set((await two.says()).encrypts) == {"O", "N"}
        clock.advance(STRAGGLERS + 1)
        await two.beat()
        assert (await two.says()).encrypts == ("N",)
        assert [two.agreement.is_settled] == [True]
        # From now on nobody starts without it.
        late = Replica(database, tmp_path / "three", (OLD,), clock)
        with pytest.raises(KeyringError, match="not at hand: N"):
            await late.join()
        await late.journal.close()


async def test_who_is_gone_is_not_waited_for(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    """A replica that stopped in order does not count, nor one that is silent for five minutes."""
    async with replica(database, tmp_path, clock, "two", NEW, OLD) as two:
        assert two.cipher.primary == "N"
    for silent in (False, True):
        async with (
            replica(database, tmp_path, clock, f"old-{silent}", OLD, NEW) as old,
            replica(database, tmp_path, clock, f"new-{silent}", FOREIGN, NEW, OLD) as new,
        ):
            await new.beat()
            assert new.cipher.primary == "N"
            if silent:
                await database.execute(
                    "UPDATE replica_keys SET seen_at = clock_timestamp() - interval '301 s'"
                    " WHERE owner <> $1",
                    new.directory.name,
                )
            else:
                await old.task.leave()
                await two.task.leave()
            await new.beat()
            assert new.cipher.primary == "F"
            await database.execute("UPDATE encryption_keys SET in_use = false WHERE key_id = 'F'")
            await new.task.leave()


async def test_the_version_before_is_waited_for(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    """A replica that refreshes and says nothing of its keys has those in use, and no others."""
    async with replica(database, tmp_path, clock, "one", OLD):
        pass
    await database.execute("DELETE FROM replica_keys")
    await database.execute(
        "INSERT INTO replicas (owner, incarnation, since, seen_at)"
        " VALUES ('before', 'any', clock_timestamp(), clock_timestamp())"
    )
    async with replica(database, tmp_path, clock, "two", NEW, OLD) as two:
        assert two.cipher.primary == "O"
        await database.execute("UPDATE replicas SET seen_at = '-infinity'")
        await two.beat()
        assert two.cipher.primary == "N"


async def test_a_key_that_others_use_and_that_is_not_here(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    """Told, and nothing refreshed, until the key is configured; a forgotten replica joins again."""
    async with replica(database, tmp_path, clock, "one", OLD) as one:
        await database.execute(
            "UPDATE replica_keys SET seen_at = clock_timestamp() - interval '1 day'"
        )
        async with replica(database, tmp_path, clock, "two", NEW, OLD):
            await one.beat()
            assert one.agreement.missing == ("N",)
            assert "encryption.keys" in str(one.task.trouble)
            await one.task.replace((OLD, NEW))
            assert one.task.trouble is None
            assert one.told[-1] == (None, 0, 0)
        await database.execute("DELETE FROM replica_keys")
        await one.beat()
        assert (await one.says()).key_ids == ("O", "N")


async def test_a_replica_that_was_away_while_others_changed_keys(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    """It goes on with what it has, says so and changes nothing; a start without the key does not.

    The key that it encrypts with is not begun to be used again: others may be without it.
    """
    async with replica(database, tmp_path, clock, "one", OLD) as one:
        await forget_the_living(database)
        async with replica(database, tmp_path, clock, "two", NEW, OLD):
            await database.execute("UPDATE encryption_keys SET in_use = false WHERE key_id = 'O'")
            await one.reconnect()
            assert one.agreement.missing == ("N",)
            assert "not at hand: N" in str(one.agreement.trouble)
            says = await one.says()
            assert (says.is_live, says.key_ids, says.encrypts) == (True, ("O",), ("O",))
            assert await in_use(database) == {"N"}
            await one.store("acme-1")
            starting = Replica(database, tmp_path / "three", (OLD,), clock)
            async with database.acquire() as connection:
                with pytest.raises(KeyringError, match="not at hand: N"):
                    await starting.agreement.rejoin(connection)
            await starting.journal.close()
            await one.task.replace((OLD, NEW))
            await one.reconnect()
            assert one.agreement.trouble is None


@pytest.mark.parametrize("is_missing", [False, True])
async def test_a_wrong_key_is_final_at_every_connect(
    database: Database, tmp_path: Path, clock: FakeClock, *, is_missing: bool
) -> None:
    """A database that knows another key by this id is not the one that was joined."""
    async with replica(database, tmp_path, clock, "one", OLD) as one:
        if is_missing:
            await forget_the_living(database)
            async with replica(database, tmp_path, clock, "two", NEW, OLD):
                pass
        other = TokenCipher((replace(OLD, secret=b"x" * 32),), entropy=system_entropy)
        canary = other.encrypt(
            "tokenward", connection="", column="encryption_keys.canary", generation=0
        )
        await database.execute("UPDATE encryption_keys SET canary = $1 WHERE key_id = 'O'", canary)
        with pytest.raises(KeyringError, match="is not the key of that id"):
            await one.reconnect()
        assert one.agreement.missing == ()


@pytest.mark.parametrize("is_committed", [True, False])
async def test_keys_whose_acknowledgement_was_lost(
    database: Database, tmp_path: Path, clock: FakeClock, *, is_committed: bool
) -> None:
    """The next connect finds out whether the others count on them, and keeps those before."""
    async with replica(database, tmp_path, clock, "one", OLD) as one:
        # So it may go, and yet encrypts what comes until the answer is there.
        await database.execute("UPDATE encryption_keys SET in_use = false")
        async with database.acquire() as connection:
            with pytest.raises(ConnectionResetError):
                await one.agreement.join(
                    cast("DatabaseConnection", LostCommit(connection, is_committed=is_committed)),
                    Keyring(keys=(NEW,)),
                )
        assert (one.agreement.keyring.ids, one.cipher.primary) == (("O",), "O")
        await one.reconnect()
        assert one.agreement.missing == ()
        expected = ("N", "O") if is_committed else ("O",)
        assert one.agreement.keyring.ids == (await one.says()).key_ids == expected
        assert one.cipher.primary == expected[0]


async def test_what_a_reload_refuses(database: Database, tmp_path: Path, clock: FakeClock) -> None:
    """A key that something needs may not go, nor change its secret; then nothing has changed."""
    async with replica(database, tmp_path, clock, "one", OLD, NEW) as one:
        await one.store("acme-1")
        with pytest.raises(ConfigurationError, match="2 with O"):
            await one.task.replace((NEW,))
        with pytest.raises(ConfigurationError, match="is not the key of that id"):
            await one.task.replace((OLD, replace(NEW, secret=b"x" * 32)))
        with pytest.raises(ConfigurationError, match="is not the key of that id"):
            await one.task.replace((replace(OLD, secret=b"x" * 32), NEW))
        assert one.agreement.keyring.ids == ("O", "N")
        assert one.cipher.primary == "O"
        # A key that nothing needs may go.
        await one.task.replace((OLD,))
        assert (await one.says()).key_ids == ("O",)
        await one.task.replace((NEW, OLD))
        assert one.cipher.primary == "N"


async def test_the_journal_is_written_again(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    """Its replies keep the old key in place until they are, which is soon; the others are told."""
    async with replica(database, tmp_path, clock, "one", OLD) as one:
        await one.journal.keep(entry(1))
        await one.task.replace((NEW, OLD))
        assert one.cipher.primary == "N"
        await database.execute("UPDATE encryption_keys SET in_use = false WHERE key_id = 'O'")
        with pytest.raises(ConfigurationError, match="replies in the journal need"):
            await one.task.replace((NEW,))
        assert (await one.says()).journal_keys == ("O",)
        clock.advance(STRAGGLERS + 1)
        running = asyncio.create_task(one.task.run())

        async def is_told() -> bool:
            return (await one.says()).journal_keys == ("N",)

        await eventually(is_told, what="the journal with the new key")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert count_records(one.directory / "journal") == {"N": 1}
        await one.task.replace((NEW,))
        assert len(one.journal) == 1
        # With a reply that is not stored it does not stop in order: the others wait for it.
        await one.task.leave()
        assert (await one.says()).is_live


async def test_nothing_is_claimed_without_a_key_that_is_needed(
    database: Database, clock: FakeClock
) -> None:
    """A token that cannot be read here is somebody else's to refresh: this one claims nothing."""
    incarnations = Incarnations(database, owner="one")
    cipher = TokenCipher((OLD,), entropy=system_entropy)
    recorder = EventRecorder(delivers=lambda: False)
    store = PostgresRefreshes(database, cipher, recorder=recorder, incarnations=incarnations)
    room, hold = {"acme": (1, 1.0)}, timedelta(minutes=2)
    await store.add_providers(["acme"])
    incarnations.refuse("encryption keys in use are not at hand: N")
    with pytest.raises(DatabaseUnavailableError, match="not at hand: N"):
        await store.claim_due(room=room, owner="one", hold=hold, now=clock.now())
    incarnations.refuse(None)
    assert (await store.claim_due(room=room, owner="one", hold=hold, now=clock.now())).claims == []
