"""What follows a granted exchange: test, identity, merge, refusal, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import jmespath
import pytest

from daemon.domain.authorization import NotStored, NotStoredReason
from daemon.domain.connection import Connection, Failure, Status, TestResult
from daemon.domain.errors import FieldError
from daemon.domain.outcome import Granted, Outcome, OutcomeKind
from daemon.domain.provider import Endpoints, Provider, TestRequest
from daemon.domain.templates import parse_template, parse_url_template
from daemon.oauth.authorization import tenant_of
from daemon.oauth.authorization_errors import Failed
from daemon.oauth.authorization_response import CallbackParams
from daemon.oauth.completing import Completed, refusal
from daemon.oauth.examination import Examined
from tests.support.authorization import ACME, ISSUER, PENDING, START, Flow, query_of

NAMED = replace(
    ACME,
    account_id=jmespath.compile("me.id"),
    label=parse_template("{me.name}"),
    test=TestRequest(path=parse_url_template("/me")),
    reply_names=frozenset({"token.instance_url", "me.id"}),
)
ANNA = {"id": 17, "name": "Anna Alt"}
OTHER = replace(
    PENDING,
    id="acme-2",
    status=Status.ACTIVE,
    generation=4,
    account_id="17",
    label="Anna before",
    created_by="billing",
)


def good(me: object = ANNA) -> Examined:
    """Return a test that went well."""
    result = TestResult(ok=True, status=200, checked_at=START)
    return Examined(result=result, me=me, has_me=True)


def bad(code: str = "http_status", status: int | None = 500) -> Examined:
    """Return a test that did not."""
    error = Failure(code=code, description="It did not work.", at=START)
    result = TestResult(ok=False, status=status, checked_at=START, error=error)
    return Examined(result=result, is_refused=status == 401)


def flow_for(*connections: Connection, provider: Provider = NAMED, **members: Any) -> Flow:
    """Return a flow at ``provider`` with a good test; ``members`` are of the token reply."""
    flow = Flow(providers={"acme": provider})
    for connection in connections:
        flow.store.connections[connection.id] = connection
    flow.examiner.examined = good()
    flow.token_endpoint.outcome = Outcome(
        kind=OutcomeKind.OK,
        granted=Granted(
            access_token="access-canary",
            refresh_token="refresh-canary",
            expires_in=3600.0,
            members=members,
        ),
    )
    return flow


async def end(
    flow: Flow, *, fields: Mapping[str, str] | None = None, others: Mapping[str, str] | None = None
) -> Completed | Failed:
    """Go through a whole transaction of the pending connection."""
    state, browser = await flow.begun(flow.providers["acme"], fields=fields)
    params = CallbackParams(state=state, code="c", others=others or {})
    return await flow.redirection.complete(params, browser)


async def test_the_test_request_names_the_account() -> None:
    """S11, S12, S14: tested on connecting; label, identity and values are stored with it."""
    flow = flow_for(instance_url="https://eu.acme.example")

    ended = await end(flow)

    assert isinstance(ended, Completed)
    assert (ended.connection.account_id, ended.connection.label) == ("17", "Anna Alt")
    assert ended.connection.last_test == good().result
    assert ended.connection.reply_values == {
        "token.instance_url": "https://eu.acme.example",
        "me.id": "17",
    }
    ((provider, token, fields, values),) = flow.examiner.asked
    assert (provider, token, fields) == (NAMED, "access-canary", {})
    assert values == {"token.instance_url": "https://eu.acme.example"}
    assert [event for event, *_ in flow.events.told] == [
        "connection_authorized",
        "connection_tested",
    ]
    assert flow.events.told[1][3] == {"ok": True, "status": 200, "code": None}
    assert flow.revocations == 1
    assert flow.store.tests_due[PENDING.id] is None


async def test_what_the_callback_said_is_there_too() -> None:
    """S14: an identity may stand in the redirect, as a realm or company id does."""
    flow = flow_for(
        provider=replace(
            ACME,
            account_id=jmespath.compile("callback.realmId"),
            label=parse_template("Company {callback.realmId}"),
            reply_names=frozenset({"callback.realmId"}),
        )
    )

    ended = await end(flow, others={"realmId": "42"})

    assert isinstance(ended, Completed)
    assert (ended.connection.account_id, ended.connection.label) == ("42", "Company 42")
    assert ended.connection.reply_values == {"callback.realmId": "42"}


async def test_a_provider_that_names_nobody_is_not_asked() -> None:
    """Without test, label and account_id there is nothing to learn, and so no request."""
    flow = flow_for(provider=ACME)

    ended = await end(flow)

    assert isinstance(ended, Completed)
    assert flow.examiner.asked == []
    assert ended.connection.account_id is None


async def test_introspection_is_asked_only_where_it_is_to_name_somebody() -> None:
    """Without a test request, ``me`` in label or account_id is what it takes."""
    for provider, asked in (
        (replace(NAMED, test=None), 1),
        (replace(NAMED, test=None, label=None), 1),
        (replace(NAMED, test=None, account_id=None), 1),
        (replace(NAMED, test=None, account_id=jmespath.compile("token.id"), label=None), 0),
        (replace(ACME, label=parse_template("{token.name}")), 0),
    ):
        flow = flow_for(provider=provider)

        await end(flow)

        assert len(flow.examiner.asked) == asked


async def test_a_provider_without_anything_to_ask_leaves_what_the_token_told() -> None:
    """Neither test nor introspection: the token reply alone decides."""
    flow = flow_for(
        provider=replace(NAMED, test=None, account_id=jmespath.compile("token.id")), id="T1"
    )
    flow.examiner.examined = None

    ended = await end(flow)

    assert isinstance(ended, Completed)
    assert ended.connection.account_id == "T1"
    assert ended.connection.last_test is None


@pytest.mark.parametrize("examined", [bad(), bad("token_refused", 401), bad("timeout", None)])
async def test_a_test_that_fails_costs_no_tokens(examined: Examined) -> None:
    """Stored and active, without label and identity; the result tells, a 401 as well."""
    flow = flow_for()
    flow.examiner.examined = examined

    ended = await end(flow)

    assert isinstance(ended, Completed)
    assert ended.connection.status is Status.ACTIVE
    assert ended.connection.last_error is None
    assert ended.connection.last_test == examined.result
    assert ended.connection.account_id is None
    assert flow.store.tokens[PENDING.id].access_token == "access-canary"
    assert flow.events.told[1][3]["ok"] is False


async def test_an_unexpiring_token_is_tested_again_by_itself() -> None:
    """S11: what never expires is tested once a day, from now on."""
    provider = replace(NAMED, tokens_never_expire=True)
    flow = flow_for(provider=provider)
    flow.token_endpoint.outcome = Outcome(
        kind=OutcomeKind.OK, granted=Granted(access_token="access-canary")
    )

    ended = await end(flow)

    assert isinstance(ended, Completed)
    assert ended.connection.expires_at is None
    assert flow.store.tests_due[PENDING.id] == START + timedelta(hours=24)


async def test_the_same_account_updates_the_connection_that_has_it() -> None:
    """S14: the answer names the survivor; the cache forgets the one that gave way."""
    flow = flow_for(OTHER)
    flow.store.connections[PENDING.id] = replace(PENDING, created_by="billing")
    flow.may_see.add("acme-2")

    ended = await end(flow)

    assert isinstance(ended, Completed)
    assert (ended.connection.id, ended.merged) == ("acme-2", PENDING.id)
    assert PENDING.id not in flow.store.connections
    assert ("billing", "acme-2") in flow.merges_asked
    ((learned, tokens),) = flow.learned
    assert (learned.id, tokens.generation) == ("acme-2", 5)
    assert flow.gone == [PENDING.id]
    assert ("connection_merged", "acme-2", "acme", {"merged": PENDING.id}) in flow.events.told


async def test_a_reconnect_as_somebody_else_is_refused() -> None:
    """A17: nothing changes, the page names the account that was expected, the grant is revoked."""
    mine = replace(PENDING, status=Status.ACTIVE, generation=3, account_id="4711", label="Otto <b>")
    flow = flow_for(mine)

    ended = await end(flow)

    assert isinstance(ended, Failed)
    assert (ended.code, ended.status) == ("other_account", 400)
    assert ended.detail == "This connection is for the account Otto <b>."
    assert flow.store.connections[PENDING.id] == mine
    assert flow.learned == []
    assert flow.revocations == 1
    assert flow.journal.entries == {}
    assert flow.journal.discarded == [entry.attempt for entry in flow.journal.kept]
    assert flow.events.failures == [("other_account", ended.reference)]


@pytest.mark.parametrize(
    ("label_mask", "expected", "detail"),
    [
        (False, "Otto Berg", "This connection is for the account Otto Berg."),
        (True, "Otto Berg", "This connection is for the account O••• B•••."),
        (True, "O••• B•••", "This connection is for the account O••• B•••."),
        (True, "1234567890", "This connection is for the account 1•••0."),
        (False, None, ""),
    ],
)
def test_the_expected_account_is_masked_where_that_is_asked_for(
    label_mask: bool,  # noqa: FBT001 - a column of the table
    expected: str | None,
    detail: str,
) -> None:
    """``label_mask`` holds for the page too, whether label or account id is shown."""
    stored = NotStored(reason=NotStoredReason.OTHER_ACCOUNT, expected=expected)

    assert refusal(stored, replace(ACME, label_mask=label_mask)).detail == detail


@pytest.mark.parametrize(
    ("examined", "provider", "is_refused"),
    [
        (bad(status=403), NAMED, True),
        (bad(status=404), NAMED, True),
        (good({"name": "nobody"}), NAMED, True),
        (bad("expect_failed", 200), NAMED, True),
        (good({"name": "nobody"}), replace(NAMED, test=None), True),
        # No answer to the question: the grant is kept, and the question asked again soon.
        (bad("token_refused", 401), NAMED, False),
        (bad(status=429), NAMED, False),
        (bad(status=503), NAMED, False),
        (bad("timeout", None), NAMED, False),
        # Nothing was asked.
        (good({"name": "nobody"}), replace(NAMED, account_id=None), False),
        (None, replace(NAMED, test=None), False),
        (None, replace(ACME, account_id=jmespath.compile("token.id")), True),
    ],
)
async def test_a_reconnect_as_nobody_knows_whom(
    *, examined: Examined | None, provider: Provider, is_refused: bool
) -> None:
    """A17: who keeps the account from us does not get into a connection that is somebody's."""
    mine = replace(PENDING, status=Status.ACTIVE, generation=3, account_id="4711")
    flow = flow_for(mine, provider=provider)
    flow.examiner.examined = examined

    ended = await end(flow)

    if is_refused:
        assert isinstance(ended, Failed)
        assert (ended.code, ended.status, ended.detail) == ("account_unknown", 400, "")
        assert flow.store.connections[PENDING.id] == mine
        return
    assert isinstance(ended, Completed)
    assert ended.connection.account_id == "4711"
    is_asked_again = provider.test is not None and provider.account_id is not None
    soon = START + timedelta(minutes=2) if is_asked_again else None
    assert flow.store.tests_due[PENDING.id] == soon


@pytest.mark.parametrize("blind", ["who made the link", "who made the connection"])
async def test_both_callers_must_see_what_is_merged_into(blind: str) -> None:
    """A link of one caller does not lead into another's connection, whoever made the first."""
    flow = flow_for(OTHER)
    maker = "billing" if blind == "who made the connection" else "root"
    flow.store.connections[PENDING.id] = replace(PENDING, created_by=maker)
    flow.may_see.add("acme-2")
    flow.blind.add("billing" if blind == "who made the connection" else "visitor")
    state, browser = await flow.begun(NAMED, caller="visitor")

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Failed)
    assert ended.code == "connected_elsewhere"
    assert flow.store.connections["acme-2"] == OTHER


async def test_another_callers_connection_is_not_merged_into() -> None:
    """The page says so and names nobody; the new grant is revoked."""
    flow = flow_for(OTHER)

    ended = await end(flow)

    assert isinstance(ended, Failed)
    assert (ended.code, ended.status, ended.detail) == ("connected_elsewhere", 400, "")
    assert "Anna" not in repr(ended)
    assert "acme-2" not in repr(ended)
    assert flow.store.connections["acme-2"] == OTHER
    assert flow.revocations == 1


async def test_without_knowing_whose_it_is_nothing_is_merged() -> None:
    """The database could not say who created the connection: no other one is theirs."""
    flow = flow_for(OTHER)
    flow.may_see.add("acme-2")
    flow.connections.is_away = True

    ended = await end(flow)

    assert isinstance(ended, Failed)
    assert ended.code == "connected_elsewhere"
    assert flow.merges_asked == []


async def test_a_disconnect_meanwhile_wins() -> None:
    """PO9: the tokens of an exchange in flight are not kept, but given back."""
    flow = flow_for()
    state, browser = await flow.begun(NAMED)
    flow.token_endpoint.gate.clear()
    ending = asyncio.create_task(
        flow.redirection.complete(CallbackParams(state=state, code="c"), browser)
    )
    await flow.token_endpoint.reached.wait()
    flow.store.disconnect(PENDING.id)
    flow.token_endpoint.gate.set()

    ended = await ending

    assert isinstance(ended, Failed)
    assert (ended.code, ended.status) == ("disconnected", 400)
    assert flow.store.connections[PENDING.id].status is Status.DISCONNECTED
    assert [tokens.access_token for _, tokens in flow.store.revoked] == ["access-canary"]
    assert flow.journal.entries == {}


async def test_a_connection_removed_meanwhile_has_its_tokens_revoked() -> None:
    """Gone while the code was exchanged: nobody keeps the tokens, the provider is told."""
    flow = flow_for()
    state, browser = await flow.begun(NAMED)
    flow.token_endpoint.gate.clear()
    ending = asyncio.create_task(
        flow.redirection.complete(CallbackParams(state=state, code="c"), browser)
    )
    await flow.token_endpoint.reached.wait()
    flow.store.connections.clear()
    flow.token_endpoint.gate.set()

    ended = await ending

    assert isinstance(ended, Failed)
    assert (ended.code, ended.status) == ("connection_gone", 400)
    assert len(flow.store.revoked) == 1


async def test_no_code_is_sent_for_a_connection_that_is_gone() -> None:
    """Removed while the person was at the provider: nothing to revoke, for nothing was granted."""
    flow = flow_for()
    state, browser = await flow.begun(NAMED)
    flow.store.connections.clear()

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Failed)
    assert ended.code == "connection_gone"
    assert flow.token_endpoint.sent == []


async def test_what_the_store_refused_is_recorded_by_the_store() -> None:
    """Once: the store's transaction has the event, and the page adds none."""
    flow = flow_for(OTHER)

    await end(flow)

    assert [detail for _, _, detail in flow.store.recorded] == [{"code": "connected_elsewhere"}]
    assert flow.history == []


async def test_what_failed_before_is_in_the_history() -> None:
    """S18: a denial is told beside the connection, with the reference of its page."""
    flow = flow_for()
    state, browser = await flow.begun(NAMED)

    ended = await flow.redirection.complete(
        CallbackParams(state=state, error="access_denied"), browser
    )

    assert isinstance(ended, Failed)
    (event,) = flow.history
    assert (event.type.value, event.connection) == ("connection.authorization_failed", PENDING.id)
    assert event.detail == {"code": "access_denied", "reference": ended.reference}


@pytest.mark.parametrize("reason", list(NotStoredReason))
def test_every_refusal_has_a_page(reason: NotStoredReason) -> None:
    """Each reason leads to words of ours."""
    fault = refusal(NotStored(reason=reason), ACME)

    assert not fault.from_provider
    assert fault.code in {
        "connection_gone",
        "disconnected",
        "not_stored",
        "other_account",
        "account_unknown",
        "connected_elsewhere",
    }


REGIONAL = replace(
    NAMED,
    issuer=None,
    endpoints=Endpoints(
        authorization="https://{region}.acme.example/authorize",
        token="https://{region}.acme.example/token",
    ),
)


async def test_fields_choose_where_a_person_is_sent_and_a_code_goes() -> None:
    """S1, S21: the tenant's endpoints, pinned when it starts; the fields are the connection's."""
    flow = flow_for(provider=REGIONAL)

    ended = await end(flow, fields={"region": "eu"})

    assert isinstance(ended, Completed)
    ((_, url, _),) = flow.token_endpoint.sent
    assert url == "https://eu.acme.example/token"
    assert ended.connection.fields == {"region": "eu"}
    assert flow.store.account_scopes[PENDING.id] == "https://eu.acme.example/token"
    assert flow.examiner.asked[0][2] == {"region": "eu"}
    assert [(entry.epoch, entry.fields) for entry in flow.journal.kept] == [(0, {"region": "eu"})]


async def test_the_authorization_url_is_the_tenants() -> None:
    """S21: and its fields wait in the transaction."""
    flow = flow_for(provider=REGIONAL)
    ticket, _ = await flow.authorizer.issue_ticket(PENDING, caller="b", return_url=None)

    url = await flow.authorizer.begin(ticket, PENDING, REGIONAL, "b" * 43, fields={"region": "us"})

    assert url is not None
    assert url.startswith("https://us.acme.example/authorize?")
    assert query_of(url)["state"]
    (pending,) = flow.store.pending.values()
    assert pending.fields == {"region": "us"}
    assert pending.token_endpoint == "https://us.acme.example/token"


@pytest.mark.parametrize("fields", [{}, {"region": ""}, {"region": "evil.example/"}])
async def test_a_missing_field_is_named_before_anybody_leaves(fields: Mapping[str, str]) -> None:
    """Without the value that a URL needs nothing starts, and the error says which."""
    flow = flow_for(provider=REGIONAL)

    with pytest.raises(FieldError, match="region") as caught:
        await flow.begun(REGIONAL, fields=fields)

    assert "evil" not in str(caught.value)
    assert not flow.store.pending
    with pytest.raises(FieldError):
        tenant_of(REGIONAL, fields)


async def test_a_field_that_became_unusable_ends_the_callback() -> None:
    """The configuration was reloaded in between: the code stays here."""
    flow = flow_for(provider=replace(REGIONAL, issuer=None))
    state, browser = await flow.begun(REGIONAL, fields={"region": "eu"})
    flow.providers["acme"] = replace(
        REGIONAL, endpoints=Endpoints(authorization=ISSUER, token="https://{shop}.acme.example/t")
    )

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Failed)
    assert (ended.code, ended.status) == ("fields_unusable", 400)
    assert "shop" in ended.detail
    assert flow.token_endpoint.sent == []
