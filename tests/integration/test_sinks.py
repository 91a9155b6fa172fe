"""Sinks with real files: they follow memory, end with their tokens, and put up with disks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.sink import Sink, SinkFormat
from daemon.domain.tokens import CurrentToken, Version
from daemon.refresh.cache import TokenCache
from daemon.refresh.memory import Memory
from daemon.upkeep.sink_files import SinkFile
from daemon.upkeep.sink_notices import NoticeError
from daemon.upkeep.sinks import SinkParts, Sinks
from tests.support.waiting import until

CLOCK = SystemClock()


class HastyClock(SystemClock):
    """A clock on which nobody waits for long."""

    async def sleep(self, seconds: float) -> None:
        """Sleep a hundredth of the time."""
        await super().sleep(seconds / 100)


def token(generation: int = 1, *, life: float | None = 600, **more: Any) -> CurrentToken:
    """Return what is current of ``acme-1``."""
    now = CLOCK.now()
    members: dict[str, Any] = {
        "connection": "acme-1",
        "provider": "acme",
        "status": Status.ACTIVE,
        "generation": generation,
        "access_token": f"access-{generation}",
        "token_type": "bearer",
        "scopes": ("read", "write"),
        "issued_at": now,
        "expires_at": None if life is None else now + timedelta(seconds=life),
        "refreshable": True,
    }
    return CurrentToken(**{**members, **more})


class Database:
    """What memory asks."""

    def __init__(self) -> None:
        self.tokens: dict[str, CurrentToken] = {}
        self.is_away = False

    async def current(self, ids: Sequence[str]) -> list[CurrentToken]:
        """Return what is there."""
        if self.is_away:
            raise DatabaseUnavailableError("the database is away")
        return [self.tokens[name] for name in ids if name in self.tokens]

    async def versions(self, ids: Sequence[str]) -> dict[str, Version]:
        """Refuse: nobody here asks."""
        raise AssertionError(ids)


class Told:
    """Remembers events, and tells applications nothing; ``error`` makes that fail."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.news: list[str] = []
        self.heard: list[bool] = []
        self.failing = 0
        self.error: str | None = None

    async def tell(self, sink: Sink, *, is_there: bool) -> None:
        """Port: Notices."""
        del sink
        if self.error is not None:
            raise NoticeError(self.error)
        self.heard.append(is_there)

    def sink_written(self, sink: Sink, *, generation: int) -> None:
        """Remember."""
        self.events.append(f"written {sink.path.name} {generation}")

    def sink_removed(self, sink: Sink) -> None:
        """Remember."""
        self.events.append(f"removed {sink.path.name}")

    def sink_failed(self, sink: Sink, *, error: str, is_news: bool) -> None:
        """Remember."""
        self.events.append(f"failed {sink.path.name}")
        self.news += [error] * is_news

    def sink_told(self, sink: Sink) -> None:
        """Remember."""
        self.events.append(f"told {sink.path.name}")

    def sink_notice_failed(self, sink: Sink, *, error: str, is_news: bool) -> None:
        """Remember."""
        self.events.append(f"notice failed {sink.path.name}")
        self.news += [error] * is_news

    def sinks_failing(self, count: int) -> None:
        """Remember."""
        self.failing = count


@dataclass
class Stage:
    """A process's memory, its sinks, and a directory for them."""

    directory: Path
    cache: TokenCache = field(default_factory=TokenCache)
    database: Database = field(default_factory=Database)
    told: Told = field(default_factory=Told)
    configured: list[Sink] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Join the parts; one sink is there."""
        self.path = self.directory / "token"
        self.configured.append(Sink(connection="acme-1", path=self.path))
        self.sinks = self._joined(CLOCK)

    def hurry(self) -> None:
        """Look again a hundred times as often."""
        self.sinks = self._joined(HastyClock())

    def _joined(self, clock: SystemClock) -> Sinks:
        return Sinks(
            SinkParts(
                sinks=lambda: self.configured,
                cache=self.cache,
                memory=Memory(self.cache, self.database),
                notices=self.told,
                events=self.told,
                clock=clock,
                entropy=system_entropy,
            )
        )

    def configure(self, **changes: Any) -> None:
        """Change the first sink."""
        self.configured[0] = replace(self.configured[0], **changes)

    def learn(self, current: CurrentToken) -> None:
        """Let database and memory know of a token."""
        self.database.tokens[current.connection] = current
        self.cache.put(current)

    async def holds(self, content: bytes | None, *, seconds: float = 1.0) -> None:
        """Wait until the file holds this, or is gone: within a second, as the promise is."""
        await until(lambda: self.read() == content, seconds=seconds)

    def names(self) -> list[str]:
        """Return what is in the directory."""
        return sorted(path.name for path in self.directory.iterdir())

    def read(self) -> bytes | None:
        """Return the file's content."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the sinks, from after their first look."""
        task = asyncio.create_task(self.sinks.run())
        await asyncio.wait_for(self.sinks.first_look(), 5)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stage with one sink."""
    return Stage(tmp_path)


async def test_the_file_follows_the_token(stage: Stage) -> None:
    """Made at the start, and anew with each generation, and not otherwise."""
    stage.learn(token())
    async with stage.running():
        assert stage.read() == b"access-1"
        stage.learn(token(2))
        await stage.holds(b"access-2")
        stage.learn(token(2, failure="no luck", status=Status.FAILING))
        stage.learn(token(3, life=None))
        await stage.holds(b"access-3")
        await until(lambda: len(stage.told.events) == 3)
    assert stage.told.events == ["written token 1", "written token 2", "written token 3"]
    assert stage.names() == ["token"]


async def test_a_right_file_is_left_alone(stage: Stage) -> None:
    """A restart does not touch what is there; the file outlives a stop."""
    stage.learn(token())
    async with stage.running():
        pass
    found = stage.path.stat()
    again = Stage(stage.directory)
    again.learn(token())
    async with again.running():
        assert again.path.stat() == found
    assert again.told.events == []


async def test_a_token_that_is_not_in_memory_is_read(stage: Stage) -> None:
    """What nobody has asked for yet comes from the database."""
    stage.database.tokens["acme-1"] = token()
    async with stage.running():
        assert stage.read() == b"access-1"


@pytest.mark.parametrize(
    ("form", "content"),
    [
        (SinkFormat.TOKEN, b"access-1"),
        (SinkFormat.HEADER, b"Authorization: Bearer access-1\n"),
    ],
)
async def test_formats(stage: Stage, form: SinkFormat, content: bytes) -> None:
    """The bare token, or the line of a header."""
    stage.configure(format=form)
    stage.learn(token())
    async with stage.running():
        assert stage.read() == content


async def test_json_has_nothing_that_ages(stage: Stage) -> None:
    """The token body without what is true at one moment only."""
    stage.configure(format=SinkFormat.JSON)
    stage.learn(token(failure="no luck", status=Status.FAILING))
    async with stage.running():
        members = orjson.loads(stage.read() or b"")
    assert members.pop("expires_at").endswith("Z")
    assert members == {
        "access_token": "access-1",
        "token_type": "bearer",
        "scope": "read write",
        "generation": 1,
        "connection": "acme-1",
    }


@pytest.mark.parametrize(
    "ended",
    [
        token(status=Status.DISCONNECTED, access_token=""),
        token(2, status=Status.PENDING, access_token=""),
        token(2, status=Status.REAUTHORIZATION_REQUIRED, life=-5),
    ],
    ids=["disconnected", "pending", "dead"],
)
async def test_the_file_ends_with_the_token(stage: Stage, ended: CurrentToken) -> None:
    """Where there is no token to be used there is no file, within a second."""
    stage.learn(token())
    async with stage.running():
        assert stage.read() == b"access-1"
        stage.learn(ended)
        await stage.holds(None)
        stage.learn(token(3))
        await stage.holds(b"access-3")
    assert stage.told.events[1] == "removed token"


async def test_a_dead_grant_keeps_a_good_token(stage: Stage) -> None:
    """What is good until it expires stays until then."""
    stage.learn(token(status=Status.REAUTHORIZATION_REQUIRED))
    async with stage.running():
        assert stage.read() == b"access-1"


async def test_the_file_is_gone_at_the_expiry(stage: Stage) -> None:
    """No reader finds an expired token, also where nothing is heard."""
    expiring = token(life=1.6)
    assert expiring.expires_at is not None
    stage.learn(expiring)
    async with stage.running():
        assert stage.read() == b"access-1"
        await stage.holds(None, seconds=3)
        assert CLOCK.now() < expiring.expires_at


async def test_an_old_file_is_removed_at_the_start(stage: Stage) -> None:
    """A token that expired while nobody ran does not stay; nor one of no connection."""
    stage.path.write_bytes(b"stale")
    stage.learn(token(life=-1))
    other = Sink(connection="nobody", path=stage.directory / "other")
    other.path.write_bytes(b"of nobody")
    stage.configured.append(other)
    async with stage.running():
        assert stage.names() == []


async def test_an_outage_of_the_database_removes_nothing(stage: Stage) -> None:
    """Not knowing is no news; the file is put right once the database answers."""
    stage.path.write_bytes(b"from before")
    stage.database.is_away = True
    async with stage.running():
        assert stage.read() == b"from before"
        stage.database.is_away = False
        stage.learn(token())
        await stage.holds(b"access-1")


async def test_readers_only_see_whole_tokens(stage: Stage) -> None:
    """While generations fly by, each read is one of them, whole."""
    stage.learn(token(1, access_token="1" * 4000))
    is_over = threading.Event()

    def read_all() -> set[bytes | None]:
        seen = set()
        while not is_over.is_set():
            seen.add(stage.read())
        return seen

    async with stage.running():
        reading = asyncio.create_task(asyncio.to_thread(read_all))
        try:
            for generation in range(2, 40):
                letters = str(generation % 10) * 4000
                stage.learn(token(generation, access_token=letters))
                await stage.holds(letters.encode())
        finally:
            is_over.set()
        seen = await reading
    assert len(seen) > 2
    assert all(one and len(one) == 4000 and len(set(one)) == 1 for one in seen)


async def test_a_disk_that_hangs_does_not_hold_up_a_stop(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for a little, for a write that is nearly done; then the stop goes on."""
    stage.learn(token())
    hangs, is_back = threading.Event(), threading.Event()

    def look(_: SinkFile) -> None:
        hangs.set()
        is_back.wait(10)

    monkeypatch.setattr("daemon.upkeep.sinks._PATIENCE", 0.05)
    monkeypatch.setattr(SinkFile, "look", look)
    keeping = asyncio.create_task(stage.sinks.run())
    try:
        await until(hangs.is_set)
        keeping.cancel()
        await asyncio.wait({keeping}, timeout=5)
        assert keeping.cancelled()
        assert not is_back.is_set()
    finally:
        is_back.set()


async def test_a_missing_directory_is_waited_for(stage: Stage) -> None:
    """Said once, tried again, and written when it is there."""
    stage.configure(path=stage.directory / "volume" / "token")
    stage.path = stage.directory / "volume" / "token"
    stage.learn(token())
    async with stage.running():
        await until(lambda: stage.told.events.count("failed token") >= 2)
        assert stage.told.failing == 1
        (stage.directory / "volume").mkdir()
        await stage.holds(b"access-1", seconds=5)
        await until(lambda: stage.told.failing == 0)
    assert len(stage.told.news) == 1


async def test_the_application_is_told_of_each_change(stage: Stage) -> None:
    """After the file is there or gone; what failed is tried again."""
    stage.configure(command=("/bin/true",))
    stage.learn(token())
    stage.told.error = "not today"
    async with stage.running():
        assert stage.read() == b"access-1"
        await until(lambda: stage.told.events.count("notice failed token") >= 2)
        assert (stage.told.news, stage.told.failing) == (["not today"], 1)
        stage.told.error = None
        await until(lambda: stage.told.heard == [True])
        stage.learn(token(status=Status.DISCONNECTED, access_token=""))
        await until(lambda: stage.told.heard == [True, False])
        await until(lambda: stage.told.failing == 0)


async def test_a_reload_adds_and_removes(stage: Stage) -> None:
    """A sink that goes takes its file along; one that moves is written in its new place."""
    stage.learn(token())
    async with stage.running():
        stage.configured[:] = [
            Sink(connection="acme-1", path=stage.directory / "elsewhere"),
            Sink(connection="acme-1", path=stage.directory / "header", format=SinkFormat.HEADER),
        ]
        stage.sinks.reload()
        await until(lambda: stage.names() == ["elsewhere", "header"])
        # One that stays, in another format, is never gone.
        stage.configured[1] = replace(stage.configured[1], format=SinkFormat.TOKEN)
        stage.sinks.reload()
        await until(lambda: (stage.directory / "header").read_bytes() == b"access-1")
    assert "removed header" not in stage.told.events


async def test_a_file_that_somebody_removed_comes_back(stage: Stage) -> None:
    """At the next look, for which nothing needs to be heard."""
    stage.hurry()
    stage.learn(token())
    async with stage.running():
        stage.path.unlink()
        await stage.holds(b"access-1")
        stage.path.write_bytes(b"something else")
        await stage.holds(b"access-1")
