"""What every authorization store does with a completed authorization."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.domain.account import Account
from daemon.domain.authorization import (
    Completion,
    NotStored,
    NotStoredReason,
    PendingAuthorization,
    StoredAuthorization,
    Ticket,
)
from daemon.domain.connection import Connection, Status, TestResult
from daemon.domain.tokens import TokenSet
from daemon.persistence.cipher import TokenCipher
from tests.support.authorization_stages import (
    AuthorizationStage,
    MemoryAuthorizationStage,
    PostgresAuthorizationStage,
)
from tests.support.clock import START

DUE = START + timedelta(minutes=45)
NEXT_TEST = START + timedelta(days=1)
ANNA = Account(account_id="anna", label="Anna")
OTTO = Account(account_id="otto", label="Otto")


@pytest.fixture(params=["memory", "postgresql"])
def stage(request: pytest.FixtureRequest, cipher: TokenCipher) -> AuthorizationStage:
    """Each kind of store in turn."""
    if request.param == "memory":
        return MemoryAuthorizationStage()
    return PostgresAuthorizationStage(request.getfixturevalue("database"), cipher)


def pending(name: str = "acme-1", **changes: object) -> Connection:
    """Return a connection that nobody has authorized."""
    connection = Connection(
        id=name,
        provider="acme",
        grant="authorization_code",
        status=Status.PENDING,
        requested_scopes=("read",),
        created_at=START,
        updated_at=START,
    )
    return replace(connection, **changes)  # type: ignore[arg-type] # members of every type


def tokens(mark: str, *, refresh: str | None = "", after: float = 0) -> TokenSet:
    """Return tokens that were asked for ``after`` seconds; ``refresh`` empty: one of their own."""
    issued_at = START + timedelta(seconds=after)
    return TokenSet(
        generation=1,
        access_token=f"access {mark}",
        refresh_token=f"refresh {mark}" if refresh == "" else refresh,
        token_type="Bearer",
        scopes=("read",),
        issued_at=issued_at,
        expires_at=issued_at + timedelta(hours=1),
    )


def completion(
    name: str = "acme-1", mark: str = "1", account: Account | None = ANNA, **changes: object
) -> Completion:
    """Return what an authorization of ``name`` brought."""
    made = Completion(
        connection_id=name,
        tokens=tokens(mark),
        due_at=DUE,
        account=account,
        epoch=0,
        revokes_replaced=True,
    )
    return replace(made, **changes)  # type: ignore[arg-type] # members of every type


async def stored(stage: AuthorizationStage, wanted: Completion) -> StoredAuthorization:
    """Complete what must be stored."""
    answer = await stage.store.complete(wanted)
    assert isinstance(answer, StoredAuthorization), answer
    return answer


async def refused(stage: AuthorizationStage, wanted: Completion) -> NotStored:
    """Complete what must be refused."""
    answer = await stage.store.complete(wanted)
    assert isinstance(answer, NotStored), answer
    return answer


async def test_the_first_authorization(stage: AuthorizationStage) -> None:
    """The connection is active with all that was learned, planned for, and told of once."""
    await stage.add(pending(fields={"old": "x"}))
    test = TestResult(ok=True, status=200, checked_at=START)
    account = replace(ANNA, reply_values={"token.instance_url": "https://eu.example"}, test=test)
    answer = await stored(
        stage, completion(account=account, fields={"region": "eu"}, next_test_at=NEXT_TEST)
    )
    assert answer.merged is None
    shown = await stage.get("acme-1")
    assert shown == replace(
        pending(),
        status=Status.ACTIVE,
        label="Anna",
        account_id="anna",
        fields={"region": "eu"},
        scopes=("read",),
        generation=1,
        expires_at=START + timedelta(hours=1),
        refresh_at=DUE,
        has_refresh_token=True,
        last_tested_at=START,
        last_test=test,
        reply_values={"token.instance_url": "https://eu.example"},
    )
    assert await stage.tokens("acme-1") == tokens("1")
    assert await stage.due("acme-1") == (DUE, NEXT_TEST)
    assert await stage.revoked() == []
    assert await stage.told() == [
        (
            "acme-1",
            "connection.authorized",
            {"generation": 1, "has_refresh_token": True, "account_known": True},
        )
    ]


async def test_nothing_is_known_of_the_account(stage: AuthorizationStage) -> None:
    """Label, fields and values stay as they are; other scopes than were asked for are told."""
    await stage.add(pending(fields={"region": "eu"}, requested_scopes=("read", "write")))
    await stage.name_it("acme-1", "Mine")
    answer = await stored(stage, completion(account=None))
    assert (answer.connection.label, answer.connection.account_id) == ("Mine", None)
    assert answer.connection.fields == {"region": "eu"}
    (told,) = await stage.told()
    assert told[2] == {
        "generation": 1,
        "has_refresh_token": True,
        "account_known": False,
        "scopes_granted": ["read"],
    }


async def test_a_reconnect(stage: AuthorizationStage) -> None:
    """It revives with the next generation, keeps what is not new, and revokes the old grant."""
    await stage.add(pending(metadata={"team": "billing"}, fields={"region": "eu"}))
    await stored(stage, completion(account=replace(ANNA, reply_values={"me.a": "1", "me.b": "1"})))
    again = replace(ANNA, label="Anna B.", reply_values={"me.b": "2"})
    answer = await stored(stage, completion(mark="2", account=again))
    shown = answer.connection
    assert (shown.generation, shown.label, shown.status) == (2, "Anna B.", Status.ACTIVE)
    assert shown.metadata == {"team": "billing"}
    assert shown.fields == {"region": "eu"}
    assert shown.reply_values == {"me.a": "1", "me.b": "2"}
    assert await stage.revoked() == [("acme-1", "refresh 1"), ("acme-1", "access 1")]


async def test_a_reconnect_where_the_old_grant_must_live(stage: AuthorizationStage) -> None:
    """Where revoking the old would end the new grant too, nothing is revoked."""
    await stage.add(pending())
    await stored(stage, completion())
    await stored(stage, completion(mark="2", revokes_replaced=False))
    assert await stage.revoked() == []


async def test_a_reconnect_that_repeats_a_token(stage: AuthorizationStage) -> None:
    """A provider that gives the same refresh token again keeps both: revoking ends the grant."""
    await stage.add(pending())
    await stored(stage, completion())
    same = replace(tokens("2", after=9), refresh_token="refresh 1")
    answer = await stored(stage, completion(tokens=same))
    assert answer.connection.generation == 2
    assert await stage.revoked() == []


async def test_a_reconnect_without_a_new_refresh_token(stage: AuthorizationStage) -> None:
    """The one in hand is kept for the same account, and planned with."""
    await stage.add(pending())
    await stored(stage, completion())
    bare = tokens("2", refresh=None)
    late = START + timedelta(hours=1)
    answer = await stored(stage, completion(tokens=bare, due_at=late))
    assert answer.connection.has_refresh_token
    assert await stage.tokens("acme-1") == replace(bare, generation=2, refresh_token="refresh 1")
    assert (await stage.due("acme-1"))[0] == DUE
    assert await stage.revoked() == []


async def test_a_refresh_token_of_nobody_known_is_not_kept(stage: AuthorizationStage) -> None:
    """Without an account the old refresh token may be somebody else's: it goes."""
    await stage.add(pending())
    await stored(stage, completion(account=None))
    await stored(stage, completion(account=None, tokens=tokens("2", refresh=None)))
    kept = await stage.tokens("acme-1")
    assert kept is not None
    assert kept.refresh_token is None
    assert await stage.revoked() == [("acme-1", "refresh 1"), ("acme-1", "access 1")]


async def test_the_account_becomes_known_later(stage: AuthorizationStage) -> None:
    """A connection that had no account takes the one of its reconnect."""
    await stage.add(pending())
    await stored(stage, completion(account=None))
    answer = await stored(stage, completion(mark="2"))
    assert answer.connection.account_id == "anna"


async def test_a_reconnect_as_somebody_else(stage: AuthorizationStage) -> None:
    """Nothing changes, the new tokens are revoked, and who was expected is answered."""
    await stage.add(pending())
    await stored(stage, completion())
    before = await stage.get("acme-1")
    answer = await refused(stage, completion(mark="2", account=OTTO))
    assert answer == NotStored(reason=NotStoredReason.OTHER_ACCOUNT, expected="Anna")
    assert await stage.get("acme-1") == before
    assert await stage.tokens("acme-1") == tokens("1")
    assert await stage.revoked() == [("acme-1", "refresh 2"), ("acme-1", "access 2")]
    assert (await stage.told())[-1] == (
        "acme-1",
        "connection.authorization_failed",
        {"code": "other_account"},
    )


async def test_what_was_refused_is_never_stored_later(stage: AuthorizationStage) -> None:
    """A17: a journal that still has the reply does not know whose it is; the store does."""
    await stage.add(pending())
    await stored(stage, completion())
    await refused(stage, completion(mark="2", account=OTTO))
    told = await stage.told()
    replayed = completion(mark="2", account=None, only_after=1)
    answer = await refused(stage, replayed)
    assert answer.reason is NotStoredReason.OTHER_ACCOUNT
    assert await stage.tokens("acme-1") == tokens("1")
    assert await stage.revoked() == [("acme-1", "refresh 2"), ("acme-1", "access 2")]
    assert await stage.told() == told
    # The same token at another time is another reply.
    again = replace(replayed, tokens=tokens("2", after=9))
    assert (await stored(stage, again)).connection.generation == 2


@pytest.mark.parametrize("revokes", [True, False])
async def test_a_reconnect_that_does_not_say_whose_it_is(
    stage: AuthorizationStage, *, revokes: bool
) -> None:
    """A17: asked and not told, nothing changes; it may be the same grant, so that is spared."""
    await stage.add(pending())
    await stored(stage, completion())
    before = await stage.get("acme-1")
    withheld = Account(is_withheld=True)
    wanted = completion(mark="2", account=withheld, revokes_replaced=revokes)
    answer = await refused(stage, wanted)
    assert answer == NotStored(reason=NotStoredReason.ACCOUNT_UNKNOWN)
    assert await stage.get("acme-1") == before
    assert await stage.tokens("acme-1") == tokens("1")
    expected = [("acme-1", "refresh 2"), ("acme-1", "access 2")] if revokes else []
    assert await stage.revoked() == expected
    await stage.add(pending("acme-2"))
    assert (await stored(stage, completion("acme-2", "3", withheld))).connection.account_id is None


async def test_another_tenant_is_another_account(stage: AuthorizationStage) -> None:
    """Account 1 of another region that a person chose is refused."""
    await stage.add(pending())
    us = Account(account_id="1", scope="us")
    await stored(stage, completion(account=us, fields={"region": "us"}))
    eu = Account(account_id="1", scope="eu")
    wanted = completion(mark="2", account=eu, fields={"region": "eu"})
    answer = await refused(stage, wanted)
    assert answer == NotStored(reason=NotStoredReason.OTHER_ACCOUNT, expected="1")


async def test_the_same_account_at_a_new_address(stage: AuthorizationStage) -> None:
    """Where not the person but the configuration changed the address, it is the same account."""
    await stage.add(pending())
    await stored(stage, completion(account=replace(ANNA, scope="old"), fields={"a": "b"}))
    moved = completion(mark="2", account=replace(ANNA, scope="new"), fields={"a": "b"})
    assert (await stored(stage, moved)).merged is None
    await stage.add(pending("acme-2"))
    answer = await stored(stage, completion("acme-2", "3", replace(ANNA, scope="new")))
    assert (answer.connection.id, answer.merged) == ("acme-1", "acme-2")


async def test_an_account_that_is_connected_already(stage: AuthorizationStage) -> None:
    """The older connection receives all, the newer gives way, and both are told of."""
    await stage.add(pending(metadata={"team": "billing", "plan": "a"}, fields={"region": "eu"}))
    await stored(stage, completion())
    newer = pending("acme-2", metadata={"plan": "b"}, requested_scopes=("read", "write"))
    await stage.add(newer)
    await stage.store.add_ticket(ticket("acme-2"))
    assert await stage.store.begin(transaction("acme-2"), ticket_hash=b"t" * 32)
    answer = await stored(
        stage, completion("acme-2", "2", replace(ANNA, label="Anna B."), fields={"region": "us"})
    )
    assert (answer.merged, answer.connection.id) == ("acme-2", "acme-1")
    assert await stage.get("acme-2") is None
    assert await stage.survivor_of("acme-2") == "acme-1"
    shown = await stage.get("acme-1")
    assert shown is not None
    assert (shown.generation, shown.label, shown.account_id) == (2, "Anna B.", "anna")
    assert shown.fields == {"region": "us"}
    assert shown.requested_scopes == ("read", "write")
    assert shown.metadata == {"team": "billing", "plan": "b"}
    assert await stage.tokens("acme-1") == replace(tokens("2"), generation=2)
    assert await stage.revoked() == [("acme-1", "refresh 1"), ("acme-1", "access 1")]
    name, kind, detail = (await stage.told())[-1]
    assert (name, kind, detail["merged"]) == ("acme-1", "connection.authorized", "acme-2")
    assert await stage.store.ticket(b"t" * 32, now=START) is None
    assert await stage.store.consume(b"s" * 32) is None


async def test_accounts_of_other_tenants_and_providers(stage: AuthorizationStage) -> None:
    """Equal ids elsewhere are not the same account."""
    await stage.add(pending())
    await stored(stage, completion(account=replace(ANNA, scope="us")))
    await stage.add(pending("acme-2"))
    await stage.add(pending("other-1", provider="other"))
    for name, scope in (("acme-2", "eu"), ("other-1", "us")):
        answer = await stored(stage, completion(name, name, replace(ANNA, scope=scope)))
        assert (answer.connection.id, answer.merged) == (name, None)


async def test_a_merged_connection_had_tokens(stage: AuthorizationStage) -> None:
    """Tokens of the one that gives way are revoked with those of the other."""
    await stage.add(pending())
    await stored(stage, completion())
    await stage.add(pending("acme-2"))
    await stored(stage, completion("acme-2", "x", None))
    await stored(stage, completion("acme-2", "2"))
    assert await stage.revoked() == [
        ("acme-2", "refresh x"),
        ("acme-2", "access x"),
        ("acme-1", "refresh 1"),
        ("acme-1", "access 1"),
    ]


async def test_a_name_that_a_person_gave_stays(stage: AuthorizationStage) -> None:
    """No reply renames it; where both were named the one just connected wins."""
    await stage.add(pending())
    await stage.name_it("acme-1", "Main account")
    assert (await stored(stage, completion())).connection.label == "Main account"
    await stage.add(pending("acme-2"))
    assert (await stored(stage, completion("acme-2", "2"))).connection.label == "Main account"
    await stage.add(pending("acme-3"))
    await stage.name_it("acme-3", "Newer name")
    assert (await stored(stage, completion("acme-3", "3"))).connection.label == "Newer name"
    assert (await stored(stage, completion(mark="4"))).connection.label == "Newer name"


async def test_an_account_that_the_caller_may_not_see(stage: AuthorizationStage) -> None:
    """Another caller's connection is not merged into; the newcomer stays as it was."""
    await stage.add(pending())
    await stored(stage, completion())
    await stage.add(pending("other"))
    seen: list[str] = []

    def may_merge(name: str) -> bool:
        seen.append(name)
        return False

    answer = await refused(stage, completion("other", "2", may_merge=may_merge))
    assert answer == NotStored(reason=NotStoredReason.CONNECTED_ELSEWHERE)
    assert seen == ["acme-1"]
    assert await stage.tokens("acme-1") == tokens("1")
    assert await stage.get("other") == pending("other")
    assert await stage.revoked() == [("other", "refresh 2"), ("other", "access 2")]


async def test_refused_tokens_that_another_connection_lives_on(stage: AuthorizationStage) -> None:
    """They are not revoked where that would end the grant that the account has already."""
    await stage.add(pending())
    await stored(stage, completion())
    await stage.add(pending("other"))
    wanted = completion("other", "2", may_merge=lambda _: False)
    await refused(stage, replace(wanted, revokes_replaced=False))
    shared = replace(tokens("2"), refresh_token="refresh 1")
    await refused(stage, replace(wanted, tokens=shared))
    assert await stage.revoked() == []


async def test_the_same_reply_once_more(stage: AuthorizationStage) -> None:
    """Repeated after a lost acknowledgement, it is stored once and revokes nothing."""
    await stage.add(pending())
    first = await stored(stage, completion())
    again = await stored(stage, completion())
    assert again.connection.generation == first.connection.generation == 1
    assert await stage.revoked() == []
    assert len(await stage.told()) == 1


async def test_the_same_reply_once_more_after_a_merge(stage: AuthorizationStage) -> None:
    """The answer names the survivor again."""
    await stage.add(pending())
    await stored(stage, completion())
    await stage.add(pending("acme-2"))
    for _ in range(2):
        answer = await stored(stage, completion("acme-2", "2"))
        assert (answer.connection.id, answer.merged) == ("acme-1", "acme-2")
        assert answer.connection.generation == 2
    assert len(await stage.told()) == 2


async def test_a_second_authorization_of_a_merged_connection(stage: AuthorizationStage) -> None:
    """It goes where the first one went, if it is of the same account; else it is gone."""
    await stage.add(pending())
    await stored(stage, completion())
    await stage.add(pending("acme-2"))
    await stored(stage, completion("acme-2", "2"))
    answer = await stored(stage, completion("acme-2", "3"))
    assert (answer.connection.id, answer.connection.generation) == ("acme-1", 3)
    gone = NotStored(reason=NotStoredReason.GONE)
    assert await refused(stage, completion("acme-2", "4", OTTO)) == gone
    assert await refused(stage, completion("acme-2", "5", None)) == gone
    late = completion("acme-2", "6", only_after=0)
    assert (await refused(stage, late)).reason is NotStoredReason.SUPERSEDED


async def test_merged_twice(stage: AuthorizationStage) -> None:
    """What went into one that itself gives way is found at the last survivor."""
    await stage.add(pending())
    await stored(stage, completion(account=replace(ANNA, scope="old"), fields={}))
    await stage.add(pending("acme-2"))
    await stored(stage, completion("acme-2", "2", replace(ANNA, scope="old")))
    await stage.add(pending("acme-3"))
    await stored(stage, completion("acme-3", "3"))
    await stored(stage, completion("acme-1", "4", fields={}))
    assert await stage.survivor_of("acme-1") == "acme-3"
    assert await stage.survivor_of("acme-2") == "acme-3"


async def test_a_disconnect_comes_first(stage: AuthorizationStage) -> None:
    """A code that was spent before it does not bring the connection back; its tokens go."""
    await stage.add(pending())
    await stored(stage, completion())
    await stage.disconnect("acme-1")
    for epoch in (0, None):
        answer = await refused(stage, completion(mark=f"{epoch}", epoch=epoch))
        assert answer == NotStored(reason=NotStoredReason.DISCONNECTED)
    assert await stage.revoked() == [
        ("acme-1", "refresh 0"),
        ("acme-1", "access 0"),
        ("acme-1", "refresh None"),
        ("acme-1", "access None"),
    ]
    answer_again = await stored(stage, completion(mark="3", epoch=1))
    assert (answer_again.connection.generation, answer_again.connection.status) == (
        2,
        Status.ACTIVE,
    )


async def test_a_connection_that_is_gone(stage: AuthorizationStage) -> None:
    """The tokens are revoked where the provider is known."""
    gone = NotStored(reason=NotStoredReason.GONE)
    assert await refused(stage, completion("nobody")) == gone
    assert await stage.revoked() == []
    assert await refused(stage, completion("nobody", provider="acme")) == gone
    assert await stage.revoked() == [("nobody", "refresh 1"), ("nobody", "access 1")]


async def test_only_after_a_generation(stage: AuthorizationStage) -> None:
    """A reply found later is stored on top of the generation it belongs to, or not at all."""
    await stage.add(pending())
    superseded = NotStored(reason=NotStoredReason.SUPERSEDED)
    assert await refused(stage, completion(only_after=1)) == superseded
    await stored(stage, completion(only_after=0))
    assert await refused(stage, completion(only_after=0)) == superseded
    assert await stage.revoked() == []
    assert len(await stage.told()) == 1


async def test_a_consumed_transaction_knows_its_connection(stage: AuthorizationStage) -> None:
    """It says the connection's generation and epoch of that moment, and the fields typed."""
    await stage.add(pending())
    await stored(stage, completion())
    await stage.disconnect("acme-1")
    begun = transaction("acme-1")
    assert await stage.store.add_ticket(ticket("acme-1"))
    assert await stage.store.begin(begun, ticket_hash=b"t" * 32)
    consumed = await stage.store.consume(begun.state_hash)
    assert consumed == replace(begun, generation=1, epoch=1)
    assert consumed.fields == {"region": "eu"}


async def test_a_disconnect_ends_what_was_begun(stage: AuthorizationStage) -> None:
    """Tickets and transactions of before are worth nothing."""
    await stage.add(pending())
    await stage.store.add_ticket(ticket("acme-1"))
    assert await stage.store.begin(transaction("acme-1"), ticket_hash=b"t" * 32)
    await stage.disconnect("acme-1")
    assert not await stage.store.begin(transaction("acme-1"), ticket_hash=b"t" * 32)
    assert await stage.store.ticket(b"t" * 32, now=START) is None
    assert await stage.store.consume(b"s" * 32) is None


def ticket(name: str) -> Ticket:
    """Return a live ticket."""
    return Ticket(
        ticket_hash=b"t" * 32,
        connection_id=name,
        caller="billing",
        return_url=None,
        expires_at=START + timedelta(minutes=10),
    )


def transaction(name: str) -> PendingAuthorization:
    """Return a transaction with a field that a person typed."""
    return PendingAuthorization(
        state_hash=b"s" * 32,
        connection_id=name,
        provider="acme",
        issuer=None,
        token_endpoint="https://auth.acme.example/token",
        redirect_uri="http://localhost:7421/callback",
        code_verifier=None,
        browser_hash=b"b" * 32,
        scopes=("read",),
        return_url=None,
        expires_at=START + timedelta(minutes=10),
        fields={"region": "eu"},
    )


async def test_a_ticket_begins_what_it_was_made_for(stage: AuthorizationStage) -> None:
    """Not another connection's authorization, and nothing once its connection is gone."""
    await stage.add(pending())
    await stage.add(pending("acme-2"))
    assert await stage.store.add_ticket(ticket("acme-1"))
    assert not await stage.store.begin(transaction("acme-2"), ticket_hash=b"t" * 32)
    assert not await stage.store.begin(transaction("acme-1"), ticket_hash=b"u" * 32)
    assert not await stage.store.add_ticket(replace(ticket("nobody"), ticket_hash=b"n" * 32))
