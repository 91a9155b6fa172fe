"""Whose account a grant is that the journal kept: found out as at its callback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

import jmespath
import pytest

from daemon.domain.connection import Connection, Failure, Status, TestResult
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.outcome import Granted
from daemon.domain.provider import Provider, TestRequest
from daemon.domain.reply import RawReply
from daemon.domain.templates import parse_template, parse_url_template
from daemon.domain.tokens import TokenSet
from daemon.oauth.examination import Examined
from daemon.oauth.identifying import Identifying, KeptGrants
from tests.support.authorization import (
    ACME,
    PENDING,
    START,
    FixedResolver,
    ScriptedExaminer,
    StoredConnections,
)
from tests.support.clock import FakeClock
from tests.support.memory_authorizations import MemoryAuthorizations

NAMED = replace(
    ACME,
    account_id=jmespath.compile("me.id"),
    label=parse_template("{me.name}"),
    test=TestRequest(
        path=parse_url_template("/me"), interval=timedelta(days=1), only_unexpiring=False
    ),
)
REALM = replace(
    ACME,
    account_id=jmespath.compile("callback.realmId"),
    reply_names=frozenset({"callback.realmId"}),
)
CONNECTED = replace(PENDING, status=Status.ACTIVE, account_id="17", created_by="billing")
GRANTED = Granted(access_token="access-canary", refresh_token="refresh-canary")
TOKENS = TokenSet(
    generation=3,
    access_token="access-canary",
    refresh_token="refresh-canary",
    token_type="Bearer",
    scopes=(),
    issued_at=START,
    expires_at=START + timedelta(hours=1),
)
ENTRY = JournaledReply(
    attempt="exchange-1",
    purpose=Purpose.EXCHANGE,
    connection_id="acme-1",
    provider="acme",
    generation=2,
    scopes=(),
    sent_at=START,
    reply=RawReply(status=200, headers={}, body=b""),
    caller="billing",
    callback={},
)


def examined(status: int, me: object = None) -> Examined:
    """Return what a test came to."""
    is_good = status == 200
    error = None if is_good else Failure(code="http_status", description="No.", at=START)
    result = TestResult(ok=is_good, status=status, checked_at=START, error=error)
    return Examined(result=result, me=me, has_me=is_good)


@dataclass
class Kept:
    """Kept grants with all that is around them. ``seen`` is what every caller may see."""

    connection: Connection = CONNECTED
    seen: Mapping[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Join the parts."""
        self.examiner = ScriptedExaminer()
        self.resolver = FixedResolver()
        clock = FakeClock()
        self.grants = KeptGrants(
            Identifying(
                examiner=self.examiner,
                may_merge=lambda caller, other: other in self.seen.get(caller, set()),
                clock=clock,
                chance=lambda: 0.5,
            ),
            connections=StoredConnections(MemoryAuthorizations(self.connection)),
            resolver=self.resolver,
            clock=clock,
        )


async def test_the_test_request_is_sent_again_after_a_crash() -> None:
    """The answer names the account, as it would have at the callback."""
    kept = Kept()
    kept.examiner.examined = examined(200, {"id": 18, "name": "Berta"})

    identity = await kept.grants.identify(ENTRY, NAMED, GRANTED, TOKENS)

    assert (identity.account.account_id, identity.account.label) == ("18", "Berta")
    assert identity.account.test is not None
    assert identity.next_test_at == START + timedelta(days=1)
    assert [token for _, token, _, _ in kept.examiner.asked] == ["access-canary"]


@pytest.mark.parametrize(("status", "is_withheld"), [(200, True), (403, True), (503, False)])
async def test_an_answer_without_a_name_is_told_from_no_answer(
    status: int, *, is_withheld: bool
) -> None:
    """Who was asked and did not say is withheld; an API that is broken has said nothing."""
    kept = Kept()
    kept.examiner.examined = examined(status, {})

    identity = await kept.grants.identify(ENTRY, NAMED, GRANTED, TOKENS)

    assert identity.account.account_id is None
    assert identity.account.is_withheld is is_withheld
    assert identity.next_test_at == START + timedelta(minutes=2)


@pytest.mark.parametrize(
    ("callback", "account_id", "is_withheld"),
    [({"realmId": "42"}, "42", False), ({}, None, True), (None, None, False)],
)
async def test_what_the_redirect_said_was_kept(
    callback: Mapping[str, str] | None, account_id: str | None, *, is_withheld: bool
) -> None:
    """A realm id names the account; what an earlier version did not keep accuses nobody."""
    kept = Kept()

    identity = await kept.grants.identify(replace(ENTRY, callback=callback), REALM, GRANTED, TOKENS)

    assert (identity.account.account_id, identity.account.is_withheld) == (account_id, is_withheld)
    assert kept.examiner.asked == []


@pytest.mark.parametrize("provider", [NAMED, ACME])
async def test_nobody_is_asked_twice(provider: Provider) -> None:
    """A grant that was judged before is taken for what its own replies say."""
    kept = Kept()

    identity = await kept.grants.identity(ENTRY, provider, GRANTED, TOKENS)

    assert kept.examiner.asked == []
    assert not identity.account.is_withheld
    assert identity.next_test_at == (None if provider is ACME else START)
    assert identity.may_merge("whatever was right then")


async def test_who_may_merge_is_who_made_the_connect_url() -> None:
    """Both see it: who asked for it, and who made the connection; nobody where nobody is known."""
    kept = Kept(
        connection=replace(CONNECTED, created_by="crm"),
        seen={"billing": {"acme-2", "acme-3"}, "crm": {"acme-2"}},
    )

    identity = await kept.grants.identify(ENTRY, ACME, GRANTED, TOKENS)
    unknown = await kept.grants.identify(replace(ENTRY, caller=""), ACME, GRANTED, TOKENS)

    assert [identity.may_merge(one) for one in ("acme-2", "acme-3", "acme-4")] == [
        True,
        False,
        False,
    ]
    assert not unknown.may_merge("acme-2")


async def test_metadata_that_are_away_hold_up_nothing() -> None:
    """The test request does not need them."""
    kept = Kept()
    kept.resolver.is_away = True
    kept.examiner.examined = examined(200, {"id": 17, "name": "Anna"})

    identity = await kept.grants.identify(ENTRY, NAMED, GRANTED, TOKENS)

    assert identity.account.account_id == "17"
