"""Which secrets and scopes are tried, what is sent twice, and what never is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from urllib.parse import parse_qs

import pytest
from pydantic import SecretStr

from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import ClientAuthentication, Provider
from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.oauth.outbound import MaySend
from daemon.oauth.token_endpoint import TokenEndpoint
from daemon.oauth.token_request import Exchange, Message, Refresh

PROVIDER = Provider(
    name="acme",
    client_id="client",
    client_secrets=(SecretStr("new-secret"), SecretStr("old-secret")),
    token_endpoint_auth_method=ClientAuthentication.CLIENT_SECRET_POST,
)
REFRESH = Refresh(refresh_token="canary-rt")
EXCHANGE = Exchange(code="canary-code", redirect_uri="http://localhost:7421/callback")
URL = "https://acme.example/token"


def reply(body: object, status: int = 200) -> RawReply:
    """Return a JSON reply."""
    return RawReply(status=status, headers={}, body=json.dumps(body).encode())


GRANTED = reply({"access_token": "at", "token_type": "Bearer", "expires_in": 60})
UNKNOWN_CLIENT = reply({"error": "invalid_client"}, 401)


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def now(self) -> datetime:
        """Return a fixed time."""
        return datetime(2026, 11, 21, tzinfo=UTC)

    def boottime(self) -> float:
        """Return the time it was set to."""
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        """Move on at once."""
        self.seconds += seconds


@dataclass
class FakeSession:
    """Answers from a script; each request takes ``duration`` seconds of the clock."""

    clock: FakeClock
    script: list[RawReply | NoReply]
    duration: float = 0.0
    connecting: float = 0.0
    sent: list[dict[str, str]] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],  # noqa: ARG002 - the port's
        body: bytes,
        *,
        hard_timeout: float,
        may_send: MaySend | None = None,
    ) -> RawReply | NoReply:
        """Record the request and return the next answer."""
        assert url == URL
        self.timeouts.append(hard_timeout)
        self.clock.seconds += self.connecting
        if may_send is not None and not await may_send():
            return NoReply(sent=False, fault=Fault.LATE)
        pairs = parse_qs(body.decode("ascii"))
        self.sent.append({name: values[0] for name, values in pairs.items()})
        self.clock.seconds += self.duration
        return self.script.pop(0)

    @property
    def secrets(self) -> list[str | None]:
        """Return the client secrets in the order in which they were sent."""
        return [request.get("client_secret") for request in self.sent]


def session_for(*script: RawReply | NoReply) -> FakeSession:
    """Return a session that answers so."""
    return FakeSession(clock=FakeClock(), script=list(script))


async def ask(
    session: FakeSession,
    message: Message = REFRESH,
    provider: Provider = PROVIDER,
    *,
    hard_timeout: float = 60.0,
    send_by: float | None = None,
) -> Outcome:
    """Send ``message`` over ``session``."""
    endpoint = TokenEndpoint(session=session, clock=session.clock)
    return await endpoint.request(
        provider, URL, message, hard_timeout=hard_timeout, send_by=send_by
    )


@pytest.mark.parametrize("message", [REFRESH, EXCHANGE])
async def test_the_next_secret_after_a_refused_client(message: Message) -> None:
    """Where the provider does not know the first secret, the second gets its chance."""
    session = session_for(UNKNOWN_CLIENT, GRANTED)
    outcome = await ask(session, message)
    assert outcome.kind is OutcomeKind.OK
    assert session.secrets == ["new-secret", "old-secret"]


async def test_secrets_are_tried_anew_each_time() -> None:
    """Nothing is remembered: the first secret comes first again."""
    session = session_for(UNKNOWN_CLIENT, GRANTED, GRANTED)
    endpoint = TokenEndpoint(session=session, clock=session.clock)
    for _ in range(2):
        await endpoint.request(PROVIDER, URL, REFRESH, hard_timeout=60.0)
    assert session.secrets == ["new-secret", "old-secret", "new-secret"]


async def test_no_secret_is_left() -> None:
    """With every secret refused, the outcome is a wrong configuration."""
    outcome = await ask(session_for(UNKNOWN_CLIENT, UNKNOWN_CLIENT))
    assert (outcome.kind, outcome.reason) == (
        OutcomeKind.MISCONFIGURED,
        FailureReason.INVALID_CLIENT,
    )


@pytest.mark.parametrize(
    "answer",
    [
        GRANTED,
        reply({"error": "invalid_grant"}, 400),
        reply({"error": "unauthorized_client"}, 400),
        reply({"error": "invalid_scope"}, 400),
        reply({"error": "server_error"}, 400),
        reply({}, 401),
        reply({"error": ""}, 401),
        reply({}, 500),
        reply({}, 302),
        reply([]),
        *(NoReply(sent=sent, fault=fault) for sent in (False, True) for fault in Fault),
    ],
)
@pytest.mark.parametrize("message", [REFRESH, EXCHANGE])
async def test_nothing_else_is_sent_twice(message: Message, answer: RawReply | NoReply) -> None:
    """No other end of a request proves that it was not looked at."""
    session = session_for(answer)
    await ask(session, message)
    assert session.secrets == ["new-secret"]


async def test_a_client_without_secret() -> None:
    """A public client has one try and no secret."""
    provider = replace(PROVIDER, token_endpoint_auth_method=ClientAuthentication.NONE)
    session = session_for(UNKNOWN_CLIENT)
    await ask(session, provider=provider)
    assert session.secrets == [None]


async def test_a_refused_scope_is_left_out_once() -> None:
    """T3: invalid_scope brings one more try, without the scope."""
    session = session_for(reply({"error": "invalid_scope"}, 400), GRANTED)
    outcome = await ask(session, Refresh(refresh_token="rt", scopes=("a", "b")))
    assert outcome.kind is OutcomeKind.OK
    assert [request.get("scope") for request in session.sent] == ["a b", None]


async def test_a_scope_refused_twice_is_our_configuration() -> None:
    """T3: the second invalid_scope is final."""
    refused = reply({"error": "invalid_scope"}, 400)
    session = session_for(refused, refused)
    outcome = await ask(session, Refresh(refresh_token="rt", scopes=("a",)))
    assert (outcome.kind, outcome.reason) == (
        OutcomeKind.MISCONFIGURED,
        FailureReason.INVALID_SCOPE,
    )


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (UNKNOWN_CLIENT, REFRESH),
        (reply({"error": "invalid_scope"}, 400), Refresh(refresh_token="rt", scopes=("a",))),
    ],
)
async def test_the_hard_timeout_covers_all_tries(first: RawReply, message: Message) -> None:
    """A second try gets what time the first left, and none is made when none is left."""
    session = session_for(first, GRANTED)
    session.duration = 40.0
    assert (await ask(session, message)).kind is OutcomeKind.OK
    assert session.timeouts == [60.0, 20.0]
    session = session_for(first, GRANTED)
    session.duration = 60.0
    assert (await ask(session, message)).kind is OutcomeKind.MISCONFIGURED
    assert session.timeouts == [60.0]


async def test_nothing_is_sent_too_late() -> None:
    """Where connecting takes longer than send_by allows, nothing is sent."""
    session = session_for(GRANTED)
    session.connecting = 5.0
    outcome = await ask(session, send_by=1_004.0)
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_SENT, FailureReason.TIMEOUT)
    assert session.sent == []
    assert (await ask(session, send_by=session.clock.seconds + 5.0)).kind is OutcomeKind.OK


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize(
    ("sent", "kind"), [(True, OutcomeKind.IN_DOUBT), (False, OutcomeKind.NOT_SENT)]
)
async def test_every_fault_has_an_outcome(fault: Fault, *, sent: bool, kind: OutcomeKind) -> None:
    """Whether something was sent decides the kind; the fault gives reason and sentence."""
    outcome = await ask(session_for(NoReply(sent=sent, fault=fault)))
    assert outcome.kind is kind
    assert outcome.reason is not None
    assert outcome.description.endswith(".")


async def test_a_reply_is_kept_before_it_is_read() -> None:
    """The hook has the raw reply in hand before anybody parses it, and each try's reply."""
    kept: list[RawReply] = []

    async def received(raw: RawReply) -> None:
        kept.append(raw)

    session = session_for(UNKNOWN_CLIENT, GRANTED)
    endpoint = TokenEndpoint(session=session, clock=session.clock)
    await endpoint.request(PROVIDER, URL, REFRESH, hard_timeout=60.0, received=received)
    assert kept == [UNKNOWN_CLIENT, GRANTED]


async def test_no_reply_is_not_kept() -> None:
    """The hook is for replies."""

    async def received(_raw: RawReply) -> None:
        raise AssertionError

    session = session_for(NoReply(sent=True, fault=Fault.TIMEOUT))
    endpoint = TokenEndpoint(session=session, clock=session.clock)
    await endpoint.request(PROVIDER, URL, REFRESH, hard_timeout=60.0, received=received)


async def test_an_echoing_server_brings_no_secret_into_the_outcome() -> None:
    """An error code that repeats the refresh token, the code or the secret is not shown."""
    for message, secret in ((REFRESH, "canary-rt"), (EXCHANGE, "canary-code")):
        for echo in (secret, "new-secret"):
            outcome = await ask(session_for(reply({"error": f"bad {echo}"}, 400)), message)
            assert outcome.error is None
            assert echo not in repr(outcome)


async def test_cancellation_goes_through() -> None:
    """A cancelled request ends as cancelled, not as an outcome."""

    class Hanging(FakeSession):
        async def post(
            self,
            url: str,  # noqa: ARG002 - the port's
            headers: Mapping[str, str],  # noqa: ARG002 - the port's
            body: bytes,  # noqa: ARG002 - the port's
            *,
            hard_timeout: float,  # noqa: ARG002 - the port's
            may_send: MaySend | None = None,  # noqa: ARG002 - the port's
        ) -> RawReply | NoReply:
            await asyncio.Event().wait()
            raise AssertionError

    task = asyncio.create_task(ask(Hanging(clock=FakeClock(), script=[])))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
