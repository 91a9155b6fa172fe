"""Verification over time: what is remembered, when keys are fetched, when somebody is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import pytest
import structlog

from daemon.config.settings import Caller, Kubernetes, Permission, ServiceAccount, Verification
from daemon.domain.errors import Problem, VerificationUnavailableError
from daemon.sidecar.access import Callers, Identity
from daemon.sidecar.known_keys import QUIET
from daemon.sidecar.service_account_token import Reason
from daemon.sidecar.service_accounts import KEYS_LIVE, ServiceAccounts, _Verified
from daemon.sidecar.token_reviews import AT_ONCE, MOST_REFUSALS, REFUSAL_WINDOW, read_review
from tests.support.clock import FakeClock
from tests.support.service_account_tokens import (
    ACCOUNT,
    AUDIENCE,
    KUBERNETES,
    MemoryCluster,
    Signer,
    claims_of,
    key_set,
)

OLD, NEW = Signer.of_curve("old"), Signer.of_curve("new")
BILLING = Caller(
    name="billing",
    service_account=ACCOUNT,
    connections=("acme-*",),
    permissions=frozenset({Permission.TOKEN}),
)
BY_REVIEW = replace(KUBERNETES, verification=Verification.TOKEN_REVIEW)


@dataclass
class Desk:
    """Callers with a cluster in memory and a clock that stands still."""

    kubernetes: Kubernetes | None = KUBERNETES
    clock: FakeClock = field(default_factory=FakeClock)
    cluster: MemoryCluster = field(default_factory=lambda: MemoryCluster(OLD))

    def __post_init__(self) -> None:
        self.accounts = ServiceAccounts(
            lambda: self.kubernetes, cluster=self.cluster, clock=self.clock
        )
        self.callers = Callers([BILLING], tokens=self.accounts)

    def token(self, signer: Signer = OLD, **how: Any) -> str:
        """Return a token that is issued now."""
        return signer.sign(claims_of(now=self.clock.now().timestamp(), **how))

    async def ask(self, token: str) -> Identity:
        """Send a token."""
        return await self.callers.recognise(f"Bearer {token}", None)

    async def refused(self, token: str) -> tuple[int, object]:
        """Send a token that is not accepted; return status and reason."""
        with pytest.raises(Problem) as caught:
            await self.ask(token)
        return caught.value.status, caught.value.members.get("reason")

    def is_known(self, token: str) -> bool:
        """Tell whether the short way of a token read knows the token."""
        try:
            return self.callers.authenticate(f"Bearer {token}", None).name == "billing"
        except Problem:
            return False


@asynccontextmanager
async def desk(**how: Any) -> AsyncIterator[Desk]:
    """Return a desk; what it began ends with it."""
    found = Desk(**how)
    async with found.accounts:
        yield found


async def test_a_verified_token_is_known_for_a_minute() -> None:
    """After the first time it costs a look-up, for a minute; then it is verified again."""
    async with desk() as here:
        token = here.token()
        assert not here.is_known(token)
        identity = await here.ask(token)
        assert identity.name == "billing"
        for _ in range(3):
            assert here.callers.authenticate(f"bearer  {token}", None) is identity
            assert here.callers.authenticate(f"Bearer {token}", None) is identity
        here.clock.advance(59.9)
        assert here.is_known(token)
        here.clock.advance(0.1)
        assert not here.is_known(token)
        assert (await here.ask(token)).name == "billing"
        assert here.is_known(token)
        assert here.cluster.fetched == 1


async def test_a_token_is_not_known_past_its_end() -> None:
    """One with less than a minute left is known until then, and then it has expired."""
    async with desk() as here:
        token = here.token(life=30)
        await here.ask(token)
        here.clock.advance(29.9)
        assert here.is_known(token)
        here.clock.advance(0.2)
        assert not here.is_known(token)
        assert (await here.ask(token)).name == "billing"
        assert not here.is_known(token)
        here.clock.advance(10)
        assert await here.refused(token) == (401, Reason.EXPIRED)


async def test_rights_are_those_of_the_caller() -> None:
    """A token gives patterns and permissions of its caller, and what that may see counts."""
    async with desk() as here:
        identity = await here.ask(here.token())
        identity.require(Permission.TOKEN, "acme-1")
        with pytest.raises(Problem, match="404"):
            identity.require(Permission.TOKEN, "other-1")
        with pytest.raises(Problem, match="403"):
            identity.require(Permission.READ, "acme-1")
        assert here.callers.may_see("billing", "acme-1")
        assert not here.callers.may_see("billing", "other-1")


async def test_a_token_opens_no_session() -> None:
    """What is known by a digest is a key: the operators' pages take no tokens."""
    async with desk() as here:
        await here.ask(here.token())
        assert here.callers.by_digest(b"") is None
        assert here.callers.by_digest(bytes(32)) is None


async def test_keys_and_tokens_stand_side_by_side() -> None:
    """A key that looks like a token is a key; an unknown one is told so, with no reason."""
    async with desk() as here:
        assert await here.refused("tw_an-unknown-key") == (401, None)
        assert await here.refused("") == (401, None)
        with pytest.raises(Problem, match="No caller key"):
            await here.callers.recognise(None, None)
        with pytest.raises(Problem, match="not known"):
            await here.callers.recognise(f"Basic {here.token()}", None)
        assert await here.callers.by_secret(here.token()) is not None
        assert await here.callers.by_secret("tw_an-unknown-key") is None


async def test_without_a_cluster_a_token_is_an_unknown_key() -> None:
    """Nothing is fetched and nothing believed where the configuration names no cluster."""
    async with desk(kubernetes=None) as here:
        assert await here.refused(here.token()) == (401, None)
        assert here.cluster.fetched == 0


async def test_a_rotation_of_keys() -> None:
    """A token with a new key's id brings the new keys; the old one's tokens go on meanwhile."""
    async with desk() as here:
        await here.ask(here.token())
        here.clock.advance(QUIET)
        here.cluster.published = key_set(OLD, NEW)
        assert (await here.ask(here.token(NEW))).name == "billing"
        assert (await here.ask(here.token(life=600))).name == "billing"
        assert here.cluster.fetched == 2


async def test_made_up_key_ids_cause_one_fetch_in_ten_seconds() -> None:
    """However many strangers come with ids of their own, the API server hears of few."""
    async with desk() as here:
        await here.ask(here.token())
        for number in range(200):
            here.clock.advance(0.1)
            stranger = Signer("x" * (number + 1), NEW.key, NEW.algorithm)
            assert await here.refused(here.token(stranger)) == (401, Reason.UNKNOWN_KEY)
        assert here.cluster.fetched == 3


async def test_a_crowd_waits_for_one_fetch() -> None:
    """At the start all wait for the same keys."""
    async with desk() as here:
        tokens = [here.token(life=100 + number) for number in range(50)]
        found = await asyncio.gather(*map(here.ask, tokens))
        assert {identity.name for identity in found} == {"billing"}
        assert here.cluster.fetched == 1


async def test_an_outage_keeps_the_last_good_keys() -> None:
    """Known keys verify while the API server is away or talks nonsense; unknown ones wait."""
    async with desk() as here:
        await here.ask(here.token())
        good = here.cluster.published
        for trouble in ("no reply (timeout)", None):
            here.cluster.trouble, here.cluster.published = trouble, b"<html>"
            here.clock.advance(QUIET)
            assert await here.refused(here.token(NEW)) == (503, None)
            assert (await here.ask(here.token(life=601))).name == "billing"
        here.cluster.published = good
        here.clock.advance(QUIET)
        assert await here.refused(here.token(NEW)) == (401, Reason.UNKNOWN_KEY)


async def test_no_keys_at_all_is_nobody_s_fault() -> None:
    """Where keys were never had a good token is answered 503, and tried again after ten seconds."""
    async with desk() as here:
        here.cluster.trouble = "no reply (connect)"
        for _ in range(5):
            assert await here.refused(here.token()) == (503, None)
        assert here.cluster.fetched == 1
        here.cluster.trouble = None
        here.clock.advance(QUIET)
        assert (await here.ask(here.token())).name == "billing"


async def test_withdrawn_keys_are_forgotten_in_the_background() -> None:
    """Keys are read at the start and every ten minutes, sooner after a failure, and logged."""
    with structlog.testing.capture_logs() as lines:
        async with desk() as here:
            here.cluster.trouble = "no reply (connect)"
            async with asyncio.TaskGroup() as group:
                running = group.create_task(here.accounts.run())
                await here.clock.run(65)
                assert here.cluster.fetched == 3
                here.cluster.trouble = None
                await here.clock.run(30)
                await here.ask(here.token())
                here.cluster.published = key_set(NEW)
                await here.clock.run(KEYS_LIVE + 1)
                assert await here.refused(here.token()) == (401, Reason.UNKNOWN_KEY)
                running.cancel()
    events = [line["event"] for line in lines]
    assert events == [
        "service_account_keys_unavailable",
        "service_account_keys_read",
        "service_account_recognised",
        "service_account_keys_read",
    ]


async def test_a_reload_applies_at_once() -> None:
    """Another audience, and other rights, hold from the next request, for remembered tokens too."""
    async with desk() as here:
        token = here.token()
        await here.ask(token)
        here.callers.replace([replace(BILLING, permissions=frozenset({Permission.READ}))])
        (await here.ask(token)).require(Permission.READ)
        assert (await here.ask(token)).permissions == {Permission.READ}
        here.callers.replace([])
        with pytest.raises(Problem):
            here.callers.authenticate(f"Bearer {token}", None)
        here.callers.replace([BILLING])
        here.kubernetes = replace(KUBERNETES, audience="another")
        here.accounts.reconfigured()
        assert not here.is_known(token)
        assert await here.refused(token) == (401, Reason.AUDIENCE)


async def test_what_was_verified_for_an_old_configuration_is_not_remembered() -> None:
    """A reload while the API server is asked leaves nothing of the old configuration behind."""
    async with desk(kubernetes=BY_REVIEW) as here:
        token = here.token()

        async def reload_meanwhile(_: Kubernetes, __: str) -> bytes:
            here.kubernetes = replace(BY_REVIEW, audience="another")
            here.accounts.reconfigured()
            return orjson.dumps({"status": here.cluster.status})

        here.accounts._reviews._review = reload_meanwhile
        await here.ask(token)
        assert not here.is_known(token)


async def test_remembered_tokens_are_bounded() -> None:
    """However many tokens come, memory has an end."""
    async with desk() as here:
        digests = (number.to_bytes(32) for number in range(4096))
        here.accounts._verified = dict.fromkeys(digests, _Verified(ACCOUNT, float("inf")))
        token = here.token()
        await here.ask(token)
        assert len(here.accounts._verified) == 1
        for number in range(600):
            header = f"Bearer {' ' * number}{token}"
            assert here.callers.authenticate(header, None).name == "billing"
        assert len(here.accounts._by_header) <= 512
        here.clock.advance(60)
        await here.ask(token)
        assert not here.accounts._by_header


async def test_the_api_server_is_asked_once_a_minute() -> None:
    """A confirmed token is asked about again after a minute, a refused one after half of that."""
    async with desk(kubernetes=BY_REVIEW) as here:
        token = here.token()
        for _ in range(3):
            await here.ask(token)
        assert here.cluster.reviewed == [token]
        here.clock.advance(60)
        await here.ask(token)
        assert len(here.cluster.reviewed) == 2
        here.cluster.status = {"authenticated": False, "error": "pod is gone"}
        here.clock.advance(60)
        for _ in range(3):
            assert await here.refused(token) == (401, Reason.REFUSED)
        assert len(here.cluster.reviewed) == 3
        here.clock.advance(30)
        assert await here.refused(token) == (401, Reason.REFUSED)
        assert len(here.cluster.reviewed) == 4
        assert here.cluster.fetched == 0


async def test_an_api_server_that_is_away_closes_the_door() -> None:
    """Within the minute nothing is noticed; after it nobody is let in, and told to come again."""
    with structlog.testing.capture_logs() as lines:
        async with desk(kubernetes=BY_REVIEW) as here:
            token = here.token()
            await here.ask(token)
            here.cluster.trouble = "no reply (timeout)"
            here.clock.advance(59)
            await here.ask(token)
            here.clock.advance(1)
            for _ in range(3):
                assert await here.refused(token) == (503, None)
            here.cluster.trouble = None
            assert (await here.ask(token)).name == "billing"
    events = [line["event"] for line in lines if line["event"].startswith("token_review")]
    assert events == ["token_review_unavailable", "token_review_available"]


async def test_only_callers_are_asked_about() -> None:
    """A token of an account that is no caller is refused without a question."""
    async with desk(kubernetes=BY_REVIEW) as here:
        other = here.token(account=ServiceAccount("stolen", "billing"))
        assert await here.refused(other) == (401, Reason.UNKNOWN_ACCOUNT)
        assert here.cluster.reviewed == []


async def test_few_questions_at_a_time() -> None:
    """Of a crowd eight are asked about at once, each once, and beyond 64 none waits."""
    async with desk(kubernetes=BY_REVIEW) as here:
        under_way, most, gate = 0, 0, asyncio.Event()

        async def slow(_: Kubernetes, __: str) -> bytes:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await gate.wait()
            under_way -= 1
            return orjson.dumps({"status": here.cluster.status})

        here.accounts._reviews._review = slow
        tokens = [here.token(life=100 + number) for number in range(100)]
        asking = [asyncio.create_task(here.ask(token)) for token in [*tokens, *tokens]]
        await here.clock.settle()
        assert most == AT_ONCE
        gate.set()
        ends = await asyncio.gather(*asking, return_exceptions=True)
        let_in = [end for end in ends if isinstance(end, Identity)]
        sent_away = [end for end in ends if isinstance(end, Problem)]
        assert (len(let_in), len(sent_away)) == (128, 72)
        assert {problem.status for problem in sent_away} == {503}


async def test_junk_stops_being_asked_about() -> None:
    """After fifty refusals in ten seconds strangers wait; who was good before does not."""
    async with desk(kubernetes=BY_REVIEW) as here:
        token, good = here.token(), here.cluster.status
        await here.ask(token)
        here.clock.advance(60)
        here.cluster.status = {"authenticated": False}
        ends = [await here.refused(here.token(life=100 + number)) for number in range(100)]
        assert ends.count((401, Reason.REFUSED)) == MOST_REFUSALS
        assert ends.count((503, None)) == 100 - MOST_REFUSALS
        here.cluster.status = good
        assert (await here.ask(token)).name == "billing"
        assert await here.refused(here.token(life=77)) == (503, None)
        here.clock.advance(REFUSAL_WINDOW + 1)
        assert (await here.ask(here.token(life=77))).name == "billing"


async def test_who_leaves_takes_nobody_along() -> None:
    """A caller that disconnects does not end the question that others wait for."""
    async with desk(kubernetes=BY_REVIEW) as here:
        gate = asyncio.Event()

        async def slow(_: Kubernetes, __: str) -> bytes:
            await gate.wait()
            return orjson.dumps({"status": here.cluster.status})

        here.accounts._reviews._review = slow
        token = here.token()
        leaving, staying = (asyncio.create_task(here.ask(token)) for _ in range(2))
        await here.clock.settle()
        leaving.cancel()
        await here.clock.settle()
        gate.set()
        assert (await staying).name == "billing"


def _status(**changes: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda good: {**good, **changes}


REVIEWS: list[tuple[object, Reason | None]] = [
    (_status(), None),
    (_status(audiences=["vault", AUDIENCE]), None),
    (_status(audiences=[]), Reason.AUDIENCE),
    (_status(audiences=None), Reason.AUDIENCE),
    (_status(audiences=AUDIENCE), Reason.AUDIENCE),
    (_status(audiences=["https://kubernetes.default.svc"]), Reason.AUDIENCE),
    (_status(authenticated=False), Reason.REFUSED),
    (_status(authenticated="true"), Reason.REFUSED),
    (_status(authenticated=1), Reason.REFUSED),
    (_status(authenticated=None, error="x"), Reason.REFUSED),
    (_status(user=None), Reason.REFUSED),
    (_status(user={}), Reason.REFUSED),
    (_status(user={"username": "system:serviceaccount:stolen:billing"}), Reason.REFUSED),
    (_status(user={"username": "system:admin"}), Reason.REFUSED),
]


@pytest.mark.parametrize(("change", "reason"), REVIEWS)
def test_what_the_api_server_says(
    change: Callable[[dict[str, Any]], dict[str, Any]], reason: Reason | None
) -> None:
    """It must say yes, for us, and name the very account; no audience means its own."""
    body = orjson.dumps({"status": change(MemoryCluster(OLD).status)})
    assert read_review(body, AUDIENCE, ACCOUNT) is reason


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b'{"status":[]}', b"[" * 5000])
def test_what_is_no_review(body: bytes) -> None:
    """An answer that cannot be read is no answer, and closes the door."""
    with pytest.raises(VerificationUnavailableError, match="no TokenReview"):
        read_review(body, AUDIENCE, ACCOUNT)
