"""Testing connections: what a refused token leads to, what is stored, and what is due."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import jmespath
import pytest

from daemon.domain.account import Account
from daemon.domain.connection import Connection, Failure, Status, TestResult
from daemon.domain.errors import DatabaseUnavailableError, DecryptionError, Problem
from daemon.domain.provider import Endpoints, Provider, TestRequest
from daemon.domain.revocation import Initiator, RevocationResult
from daemon.domain.templates import parse_template, parse_url_template
from daemon.domain.tokens import CurrentToken
from daemon.oauth.examination import Examined
from daemon.refresh.cache import Entry
from daemon.refresh.reading import Reading
from daemon.upkeep.testing import ConnectionTests, TestReport, report
from daemon.upkeep.testing_parts import TestingParts
from tests.support.authorization import (
    START,
    FixedResolver,
    RecordedEvents,
    SteppedClock,
)
from tests.support.waiting import until

NAMED = Provider(
    name="acme",
    client_id="client",
    endpoints=Endpoints(authorization="https://a.example/a", token="https://a.example/t"),
    account_id=jmespath.compile("me.id"),
    label=parse_template("{me.name}"),
    reply_names=frozenset({"me.id"}),
    test=TestRequest(path=parse_url_template("/me")),
)
ACTIVE = Connection(
    id="acme-1",
    provider="acme",
    grant="authorization_code",
    status=Status.ACTIVE,
    fields={"region": "eu"},
    reply_values={"token.team": "T1"},
    generation=1,
    created_at=START,
    updated_at=START,
)
DAY = timedelta(hours=24)


def good(me: object = None) -> Examined:
    """Return a test that went well."""
    result = TestResult(ok=True, status=200, checked_at=START)
    return Examined(result=result, me=me or {"id": 17, "name": "Anna"}, has_me=True)


def bad(status: int = 500, code: str = "http_status") -> Examined:
    """Return a test that did not; a 401 refuses the token."""
    error = Failure(code=code, description="It said no.", at=START)
    result = TestResult(ok=False, status=status, checked_at=START, error=error)
    return Examined(result=result, is_refused=status == 401)


def entry(generation: int = 1, *, refreshable: bool = True) -> Entry:
    """Return a cached token, named after its generation."""
    return Entry(
        CurrentToken(
            connection="acme-1",
            provider="acme",
            status=Status.ACTIVE,
            generation=generation,
            access_token=f"token-{generation}",
            token_type="Bearer",
            scopes=(),
            issued_at=START,
            expires_at=None,
            refreshable=refreshable,
        )
    )


@dataclass
class ScriptedReader:
    """Port: TokenReads. ``newer`` is what a refresh brings: an entry, or why there is none."""

    current: Entry | Problem | None = field(default_factory=entry)
    newer: Entry | Problem | None = field(default_factory=lambda: entry(2))
    reads: list[int | None] = field(default_factory=list)

    async def entry(self, connection_id: str) -> Entry | None:
        """Return the entry."""
        del connection_id
        return None if isinstance(self.current, Problem) else self.current

    async def read(
        self, connection_id: str, *, min_ttl: float = 0, newer_than: int | None = None
    ) -> Reading | None:
        """Return the entry, or the newer one."""
        del connection_id, min_ttl
        self.reads.append(newer_than)
        found = self.current if newer_than is None else self.newer
        if isinstance(found, Problem):
            raise found
        return None if found is None else Reading(entry=found, outcome="served")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded test."""

    connection: Connection
    conflict: str | None = None


@dataclass
class MemoryResults:
    """Port: ResultStore."""

    connections: dict[str, Connection] = field(default_factory=lambda: {ACTIVE.id: ACTIVE})
    due: list[str] = field(default_factory=list)
    is_away: bool = False
    conflict: str | None = None
    error: Exception | None = None
    may_die: bool = True
    recorded: list[tuple[str, Account, datetime | None]] = field(default_factory=list)
    dead: list[tuple[str, int, str]] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)

    async def get(self, connection_id: str) -> Connection | None:
        """Return a connection, or raise ``error``."""
        self._check()
        if self.error is not None:
            raise self.error
        return self.connections.get(connection_id)

    async def record_test(
        self, connection_id: str, account: Account, *, now: datetime, next_test_at: datetime | None
    ) -> Recorded | None:
        """Store a result."""
        del now
        self._check()
        self.recorded.append((connection_id, account, next_test_at))
        before = self.connections.get(connection_id)
        if before is None:
            return None
        after = replace(
            before,
            label=account.label or before.label,
            account_id=before.account_id
            if self.conflict
            else before.account_id or account.account_id,
        )
        self.connections[connection_id] = after
        return Recorded(after, self.conflict)

    async def mark_dead(
        self, connection_id: str, *, generation: int, failure: Failure, now: datetime
    ) -> bool:
        """End a grant."""
        del now
        self._check()
        self.dead.append((connection_id, generation, failure.code))
        return self.may_die

    async def claim_tests(self, *, now: datetime, limit: int) -> Sequence[str]:
        """Return what is due."""
        del now
        self._check()
        self.limits.append(limit)
        return self.due

    def _check(self) -> None:
        if self.is_away:
            raise DatabaseUnavailableError("away")


@dataclass
class ListedExaminer:
    """Port: TokenExaminer. Answers in order, then ``good()``; ``gate`` holds everybody."""

    answers: list[Examined | None] = field(default_factory=list)
    asked: list[tuple[Provider, str, dict[str, str], dict[str, str]]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    in_flight: int = 0
    most: int = 0

    def __post_init__(self) -> None:
        """Answer at once."""
        self.gate.set()

    async def examine(
        self,
        provider: Provider,
        access_token: str,
        *,
        fields: Mapping[str, str],
        reply_values: Mapping[str, str],
    ) -> Examined | None:
        """Answer."""
        self.asked.append((provider, access_token, dict(fields), dict(reply_values)))
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await self.gate.wait()
        self.in_flight -= 1
        return self.answers.pop(0) if self.answers else good()


@dataclass
class Stage:
    """All parts of testing."""

    provider: Provider = NAMED
    reader: ScriptedReader = field(default_factory=ScriptedReader)
    store: MemoryResults = field(default_factory=MemoryResults)
    examiner: ListedExaminer = field(default_factory=ListedExaminer)
    resolver: FixedResolver = field(default_factory=FixedResolver)
    events: RecordedEvents = field(default_factory=RecordedEvents)
    reread: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Join them."""
        self.tests = ConnectionTests(
            TestingParts(
                reader=self.reader,
                store=self.store,
                examiner=self.examiner,
                resolver=self.resolver,
                providers=self,
                events=self.events,
                clock=SteppedClock(),
                chance=lambda: 0.5,
                on_dead=self._reread,
            )
        )

    async def _reread(self, connection_id: str) -> None:
        self.reread.append(connection_id)

    def get(self, name: str) -> Provider | None:
        """Return the provider."""
        return self.provider if name == self.provider.name else None

    async def test(self, *answers: Examined) -> TestReport:
        """Test the connection; the API answers in order."""
        self.examiner.answers = list(answers)
        return await self.tests.test(self.store.connections[ACTIVE.id])

    @property
    def told(self) -> list[str]:
        """Return the names of the events."""
        return [event for event, *_ in self.events.told]


async def test_a_good_test_tells_whose_it_is() -> None:
    """S11, S12, S14: on demand, with the connection's fields and values; stored and told."""
    stage = Stage()

    told = await stage.test(good())

    assert told == TestReport(
        ok=True, status=200, account_id="17", label="Anna", checked_at=START, error=None
    )
    ((provider, token, fields, values),) = stage.examiner.asked
    assert (provider.name, token) == ("acme", "token-1")
    assert (fields, values) == ({"region": "eu"}, {"token.team": "T1"})
    ((_, account, next_test_at),) = stage.store.recorded
    assert (account.account_id, account.reply_values) == ("17", {"me.id": "17"})
    assert account.test == good().result
    assert next_test_at == START + DAY
    assert stage.events.told == [
        ("connection_tested", "acme-1", "acme", {"ok": True, "status": 200, "code": None})
    ]


async def test_a_connection_whose_tokens_expire_is_not_tested_by_itself() -> None:
    """Its refreshes tell."""
    stage = Stage()
    stage.store.connections[ACTIVE.id] = replace(ACTIVE, expires_at=START + DAY)

    await stage.test(good())

    assert stage.store.recorded[0][2] is None


async def test_a_label_that_needs_more_than_the_test_stays() -> None:
    """The token reply is gone by now, so nothing is made of half of the values."""
    stage = Stage(provider=replace(NAMED, label=parse_template("{me.name} of {token.org}")))
    stage.store.connections[ACTIVE.id] = replace(ACTIVE, label="Anna of Acme")

    told = await stage.test(good())

    assert told.label == "Anna of Acme"
    assert stage.store.recorded[0][1].label is None


async def test_a_failed_test_changes_nothing_but_its_result() -> None:
    """A 500 says nothing of the token: no refresh, no other state."""
    stage = Stage()

    told = await stage.test(bad())

    assert (told.ok, told.status) == (False, 500)
    assert told.error is not None
    assert told.error.code == "http_status"
    assert stage.reader.reads == [None]
    assert stage.store.dead == []
    assert stage.store.recorded[0][1].test == bad().result
    assert stage.events.told[0][3] == {"ok": False, "status": 500, "code": "http_status"}


async def test_a_401_leads_to_one_refresh_and_one_retry() -> None:
    """The retry carries the new token, and its result is the test's."""
    stage = Stage()

    told = await stage.test(bad(401, "token_refused"), good())

    assert told.ok
    assert stage.reader.reads == [None, 1]
    assert [token for _, token, _, _ in stage.examiner.asked] == ["token-1", "token-2"]
    assert stage.told == ["connection_tested"]


async def test_a_fresh_token_that_is_refused_too_is_not_the_end() -> None:
    """The API may be wrong: the last test says so, and the connection goes on."""
    stage = Stage()

    told = await stage.test(bad(401, "token_refused"), bad(401, "token_refused"))

    assert (told.ok, told.status) == (False, 401)
    assert len(stage.examiner.asked) == 2
    assert stage.store.dead == []


async def test_a_refused_token_that_cannot_be_refreshed_is_the_end() -> None:
    """Revoked at the provider, detected before it expired: told, counted, and a person must act."""
    stage = Stage(reader=ScriptedReader(current=entry(refreshable=False)))

    told = await stage.test(bad(401, "token_refused"))

    assert (told.ok, told.status) == (False, 401)
    assert stage.store.dead == [("acme-1", 1, "token_revoked")]
    assert stage.told == ["reauthorization_required", "revocation_ended", "connection_tested"]
    assert stage.events.told[0][3] == {"cause": "token_revoked"}
    assert stage.events.told[1][3] == {
        "initiator": Initiator.PROVIDER,
        "result": RevocationResult.DETECTED,
    }
    assert stage.reread == ["acme-1"]
    assert stage.reader.reads == [None]


async def test_what_has_moved_on_is_not_declared_dead() -> None:
    """A reconnect came in between: its tokens are others."""
    stage = Stage(reader=ScriptedReader(current=entry(refreshable=False)))
    stage.store.may_die = False

    await stage.test(bad(401, "token_refused"))

    assert stage.told == ["connection_tested"]
    assert stage.reread == []


async def test_a_refresh_that_is_refused_too_means_a_revocation() -> None:
    """API and token endpoint agree: detected, and the token is not served any more."""
    dead = Problem(409, "reauthorization_required", "The grant has ended.")
    stage = Stage(reader=ScriptedReader(newer=dead))

    told = await stage.test(bad(401, "token_refused"))

    assert told.error is not None
    assert told.error.code == "token_refused"
    assert "The grant has ended." in told.error.description
    assert len(stage.examiner.asked) == 1
    assert stage.store.dead == [("acme-1", 1, "token_revoked")]
    # That a person must act was told by the refresh.
    assert stage.told == ["revocation_ended", "connection_tested"]
    assert stage.reread == ["acme-1"]


async def test_a_refresh_that_fails_for_now_leaves_the_refusal() -> None:
    """What becomes of the connection is a later refresh's to say."""
    stage = Stage(reader=ScriptedReader(newer=Problem(503, "token_unavailable", "Later.")))

    told = await stage.test(bad(401, "token_refused"))

    assert told.error is not None
    assert told.error.code == "token_refused"
    assert stage.store.dead == []


async def test_a_refresh_that_brings_nothing_new_is_not_tried_again() -> None:
    """The same token would be refused again."""
    stage = Stage(reader=ScriptedReader(newer=entry(1)))

    told = await stage.test(bad(401, "token_refused"))

    assert told.status == 401
    assert len(stage.examiner.asked) == 1


@pytest.mark.parametrize(
    "problem",
    [
        Problem(409, "not_authorized_yet", "Nobody has."),
        Problem(409, "disconnected", "It was."),
        Problem(409, "reauthorization_required", "It is dead."),
        Problem(503, "token_unavailable", "Later."),
    ],
)
async def test_without_a_token_the_answer_is_the_token_routes(problem: Problem) -> None:
    """Nothing is sent and nothing stored."""
    stage = Stage(reader=ScriptedReader(current=problem))

    with pytest.raises(Problem) as caught:
        await stage.test()

    assert caught.value is problem
    assert stage.examiner.asked == []
    assert stage.store.recorded == []


async def test_a_connection_that_is_gone_is_unknown() -> None:
    """Before the test or after it."""
    stage = Stage(reader=ScriptedReader(current=None))
    with pytest.raises(Problem) as before:
        await stage.test()

    stage = Stage()
    stage.store.connections.clear()
    with pytest.raises(Problem) as after:
        await stage.tests.test(ACTIVE)

    assert [one.value.code for one in (before, after)] == ["unknown_connection"] * 2


@pytest.mark.parametrize("provider", [replace(NAMED, test=None), replace(NAMED, name="other")])
async def test_nothing_to_ask_is_a_problem_of_its_own(provider: Provider) -> None:
    """409 ``test_not_configured``: neither test request nor introspection endpoint."""
    stage = Stage(provider=provider)

    with pytest.raises(Problem) as caught:
        await stage.test()

    assert (caught.value.status, caught.value.code) == (409, "test_not_configured")


async def test_an_introspection_endpoint_will_do() -> None:
    """Where no test request is configured."""
    endpoints = replace(NAMED.endpoints, introspection="https://a.example/i")
    stage = Stage(provider=replace(NAMED, test=None, endpoints=endpoints))

    assert (await stage.test(good())).ok
    assert stage.store.recorded[0][2] is None


@pytest.mark.parametrize(
    ("provider", "code"),
    [
        (
            replace(NAMED, endpoints=Endpoints(token="https://{shop}.a.example/t")),
            "value_missing",
        ),
        (replace(NAMED, test=None), "provider_unavailable"),
    ],
)
async def test_a_provider_that_cannot_be_asked_is_a_result(provider: Provider, code: str) -> None:
    """A missing field and unreadable metadata are reported, not raised."""
    stage = Stage(provider=provider)
    stage.resolver.is_away = True

    told = await stage.test()

    assert told.error is not None
    assert told.error.code == code
    assert stage.examiner.asked == []
    assert stage.told == ["connection_tested"]


async def test_an_account_that_another_connection_has_is_reported() -> None:
    """Without naming it: it may not be this caller's to know."""
    stage = Stage()
    stage.store.conflict = "acme-secret"

    told = await stage.test(good())

    assert (told.ok, told.account_id) == (False, None)
    assert told.error is not None
    assert told.error.code == "account_connected_elsewhere"
    assert "acme-secret" not in repr(told)


async def test_a_token_of_another_account_is_reported() -> None:
    """A17: it works, but not for whom the connection is; told as a failure, once and for all."""
    stage = Stage()
    stage.store.connections[ACTIVE.id] = replace(ACTIVE, account_id="somebody else")

    told = await stage.test(good())

    assert (told.ok, told.status, told.account_id) == (False, 200, "somebody else")
    assert told.error is not None
    assert told.error.code == "other_account"
    assert stage.told == ["connection_tested"]


def test_a_failed_test_says_what_failed_rather_than_whose_it_is() -> None:
    """Of two things to say, the test's own error is the one to act on."""
    told = report(bad().result, Recorded(ACTIVE, "other"))

    assert told.error == bad().result.error


async def test_what_is_due_is_tested_eight_at_a_time() -> None:
    """S11: periodically, up to 50 in one go, without crowding providers."""
    stage = Stage()
    stage.store.due = [f"acme-{number}" for number in range(20)]
    stage.store.connections = {name: replace(ACTIVE, id=name) for name in stage.store.due}
    stage.examiner.gate.clear()

    running = asyncio.create_task(stage.tests.run_due())
    await until(lambda: stage.examiner.in_flight == 8)
    stage.examiner.gate.set()
    await running

    assert stage.examiner.most == 8
    assert sorted(name for name, _, _ in stage.store.recorded) == sorted(stage.store.due)
    assert stage.store.limits == [50]


@pytest.mark.parametrize(
    "problem", [Problem(409, "disconnected", "It was."), Problem(503, "token_unavailable", "x")]
)
async def test_what_cannot_be_tested_now_stops_nobody(problem: Problem) -> None:
    """A connection that was disconnected meanwhile, one that is gone, a provider that is away."""
    stage = Stage(reader=ScriptedReader(current=problem))
    stage.store.due = [ACTIVE.id, "gone"]

    await stage.tests.run_due()

    assert stage.store.recorded == []


@pytest.mark.parametrize(
    "error",
    [
        DatabaseUnavailableError("away"),
        DecryptionError("cut", connection="acme-1", column="access_token", key_id=None),
    ],
)
async def test_what_cannot_be_read_stops_nobody(error: Exception) -> None:
    """The database went away in between, or a row does not open."""
    stage = Stage()
    stage.store.due = [ACTIVE.id]
    stage.store.error = error

    await stage.tests.run_due()

    assert stage.examiner.asked == []


async def test_an_examiner_that_asks_nothing_is_a_problem() -> None:
    """The configuration was reloaded between two looks at it."""
    stage = Stage()
    stage.examiner.answers = [None]

    with pytest.raises(Problem, match="test_not_configured"):
        await stage.tests.test(ACTIVE)


async def test_a_database_that_is_away_is_not_an_error() -> None:
    """The next look comes by itself."""
    stage = Stage()
    stage.store.due = [ACTIVE.id]
    stage.store.is_away = True

    await stage.tests.run_due()

    assert stage.examiner.asked == []
