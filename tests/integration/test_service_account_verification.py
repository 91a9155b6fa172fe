"""Tokens verified against an API server over real TLS: keys, rotation, outages, reviews."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from daemon.config.settings import Caller, Kubernetes, Permission, Verification
from daemon.domain.errors import Problem, VerificationUnavailableError
from daemon.sidecar.access import Callers
from daemon.sidecar.cluster_trial import try_cluster
from daemon.sidecar.known_keys import QUIET
from daemon.sidecar.kubernetes_api import KubernetesApi
from daemon.sidecar.service_account_token import Reason
from daemon.sidecar.service_accounts import ServiceAccounts
from daemon.sidecar.token_reviews import AT_ONCE
from tests.support.api_server import KEYS, OWN_TOKEN, REVIEWS, ApiServer
from tests.support.clock import FakeClock
from tests.support.polling import eventually
from tests.support.service_account_tokens import (
    ACCOUNT,
    AUDIENCE,
    ISSUER,
    Signer,
    claims_of,
    key_set,
)

OLD, NEW, RSA = Signer.of_curve("old"), Signer.of_curve("new"), Signer.of_rsa()
REVIEW = Verification.TOKEN_REVIEW
UNAVAILABLE: tuple[int, Any] = (503, None)
IN = (200, "billing")


@dataclass
class Pod:
    """tokenward's verification with its files, and a clock that stands still."""

    server: ApiServer
    kubernetes: Kubernetes
    clock: FakeClock
    callers: Callers

    def token(self, signer: Signer = OLD, **how: Any) -> str:
        """Return a token that is issued now."""
        return signer.sign(claims_of(now=self.clock.now().timestamp(), **how))

    async def ask(self, token: str) -> tuple[int, Any]:
        """Send a token; return status and the caller's name or the reason."""
        try:
            return 200, (await self.callers.recognise(f"Bearer {token}", None)).name
        except Problem as problem:
            shown = f"{problem} {problem.headers}"
            assert "canary" not in shown
            return problem.status, problem.members.get("reason")


@asynccontextmanager
async def pod(server: ApiServer, **more: Any) -> AsyncIterator[Pod]:
    """Return a pod of the cluster."""
    members: dict[str, Any] = {
        "audience": AUDIENCE,
        "issuer": ISSUER,
        "api_server": server.url,
        "ca_file": server.ca_file,
        "token_file": server.token_file,
        **more,
    }
    kubernetes, clock = Kubernetes(**members), FakeClock()
    cluster = KubernetesApi(timeout=0.5)
    async with ServiceAccounts(lambda: kubernetes, cluster=cluster, clock=clock) as accounts:
        caller = Caller(
            name="billing",
            service_account=ACCOUNT,
            connections=("*",),
            permissions=frozenset({Permission.TOKEN}),
        )
        yield Pod(server, kubernetes, clock, Callers([caller], tokens=accounts))


@pytest.fixture(autouse=True)
def lines() -> Any:
    """Hold every log line against the secrets that are about."""
    with structlog.testing.capture_logs() as found:
        yield found
    assert "canary" not in str(found)
    assert "eyJ" not in str(found)


async def test_tokens_are_verified_with_the_cluster_s_keys(tmp_path: Path) -> None:
    """The keys are had with our own token; then the API server is left alone."""
    async with ApiServer(tmp_path, OLD, RSA) as server, pod(server) as here:
        for signer in (OLD, RSA):
            assert await here.ask(here.token(signer)) == IN
        assert await here.ask(here.token(aud=[ISSUER])) == (401, Reason.AUDIENCE)
        assert server.asked == {KEYS: 1}
        assert server.credentials == [f"Bearer {OWN_TOKEN}"]


async def test_the_cluster_changes_its_keys(tmp_path: Path) -> None:
    """New keys are found by their first token; old ones count no longer."""
    async with ApiServer(tmp_path, OLD) as server, pod(server) as here:
        assert await here.ask(here.token()) == IN
        server.signers = [NEW]
        here.clock.advance(QUIET)
        assert await here.ask(here.token(NEW)) == IN
        assert await here.ask(here.token(life=601)) == (401, Reason.UNKNOWN_KEY)


async def test_our_own_token_and_the_authority_are_renewed(tmp_path: Path) -> None:
    """What the kubelet writes anew is used the next time: nothing is read once for good."""
    async with ApiServer(tmp_path, OLD) as server, pod(server) as here:
        assert await here.ask(here.token()) == IN
        await server.stop()
        server.renew()
        server.write_own_token("another-canary")
        server.signers = [NEW]
        async with server:
            here.clock.advance(QUIET)
            assert await here.ask(here.token(NEW)) == IN
        assert server.credentials[-1] == "Bearer another-canary"


async def test_an_outage(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """Known keys go on counting while the API server is away, and it is found when it is back."""
    async with ApiServer(tmp_path, OLD) as server, pod(server) as here:
        assert await here.ask(here.token()) == IN
        await server.stop()
        server.signers = [OLD, NEW]
        here.clock.advance(QUIET)
        assert await here.ask(here.token(life=602)) == IN
        assert await here.ask(here.token(NEW)) == UNAVAILABLE
        async with server:
            here.clock.advance(QUIET)
            assert await here.ask(here.token(NEW)) == IN
    troubles = [line["reason"] for line in lines if line["log_level"] == "warning"]
    assert troubles == ["no reply (connect)"]


async def test_a_slow_api_server(tmp_path: Path) -> None:
    """An answer that does not come ends the wait; who knows the key does not wait at all."""
    async with ApiServer(tmp_path, OLD) as server, pod(server) as here:
        assert await here.ask(here.token()) == IN
        server.gate.clear()
        here.clock.advance(QUIET)
        waiting = asyncio.create_task(here.ask(here.token(NEW)))
        await eventually(_asked(server, KEYS, 2), what="the question")
        assert await here.ask(here.token(life=603)) == IN
        assert not waiting.done()
        assert await waiting == UNAVAILABLE


def _asked(server: ApiServer, path: str, times: int) -> Any:
    async def look() -> bool:
        return server.asked[path] >= times

    return look


@pytest.mark.parametrize(
    "answer",
    [
        partial(web.Response, status=500),
        partial(web.Response, status=403),
        partial(web.Response, status=302, headers={"Location": "https://127.0.0.1:1/"}),
        partial(web.Response, body=b"<html>", content_type="text/html"),
        partial(web.Response, body=b'{"keys":[]}'),
        partial(web.Response, body=b"x" * (2 * 1024 * 1024)),
    ],
    ids=["500", "403", "redirect", "html", "no keys", "2 MiB"],
)
@pytest.mark.parametrize("verification", Verification)
async def test_answers_that_are_none(
    tmp_path: Path, answer: Callable[[], web.Response], verification: Verification
) -> None:
    """Whatever an API server answers instead, nobody is let in, and no caller is at fault."""
    async with (
        ApiServer(tmp_path, OLD) as server,
        pod(server, verification=verification) as here,
    ):
        server.answer = answer
        assert await here.ask(here.token()) == UNAVAILABLE
        assert sum(server.asked.values()) == 1


@pytest.mark.parametrize("verification", Verification)
async def test_a_server_that_is_not_the_cluster_s(
    tmp_path: Path, verification: Verification
) -> None:
    """With another certificate no byte is sent: neither our token nor the caller's."""
    (tmp_path / "true").mkdir()
    (tmp_path / "false").mkdir()
    true = ApiServer(tmp_path / "true", OLD)
    async with ApiServer(tmp_path / "false", OLD) as false:
        more = {"ca_file": true.ca_file, "verification": verification}
        async with pod(false, **more) as here:
            assert await here.ask(here.token()) == UNAVAILABLE
        assert not false.asked


@pytest.mark.parametrize("key", ["ca_file", "token_file"])
@pytest.mark.parametrize("content", [None, "", "no\nsuch\x00thing", "é"])
async def test_files_that_cannot_be_used(
    tmp_path: Path, key: str, content: str | None, lines: list[dict[str, Any]]
) -> None:
    """A file that is missing or broken is told in the log by its key, and nobody is let in."""
    path = tmp_path / "broken"
    if content is not None:
        path.write_text(content)
    async with ApiServer(tmp_path, OLD) as server, pod(server, **{key: path}) as here:
        assert await here.ask(here.token()) == UNAVAILABLE
        assert not server.asked
    (line,) = lines
    assert f"kubernetes.{key}" in line["reason"]


async def test_keys_in_a_file(tmp_path: Path) -> None:
    """No API server is needed where the keys are in a file, which is read again for new ones."""
    path = tmp_path / "keys.json"
    server = ApiServer(tmp_path, OLD)
    async with pod(server, jwks_file=path) as here:
        assert await here.ask(here.token()) == UNAVAILABLE
        path.write_bytes(key_set(OLD))
        here.clock.advance(QUIET)
        assert await here.ask(here.token()) == IN
        path.write_bytes(key_set(NEW))
        here.clock.advance(QUIET)
        assert await here.ask(here.token(NEW)) == IN
        path.write_bytes(b" " * (1024 * 1024 + 1))
        here.clock.advance(QUIET)
        assert await here.ask(here.token(RSA)) == UNAVAILABLE
        assert await here.ask(here.token(NEW, life=604)) == IN


async def test_keys_from_elsewhere(tmp_path: Path) -> None:
    """Whoever else publishes the keys does not get our token."""
    (tmp_path / "elsewhere").mkdir()
    server = ApiServer(tmp_path, OLD)
    async with ApiServer(tmp_path / "elsewhere", OLD) as elsewhere:
        elsewhere.answer = partial(web.Response, body=key_set(OLD))
        url = f"{elsewhere.url}{KEYS}"
        async with pod(server, jwks_url=url, ca_file=elsewhere.ca_file) as here:
            assert await here.ask(here.token()) == IN
        assert elsewhere.credentials == [None]


async def test_the_api_server_reviews_tokens(tmp_path: Path) -> None:
    """It is asked with our token, for our audience, and knows of pods that are gone."""
    async with ApiServer(tmp_path, OLD) as server, pod(server, verification=REVIEW) as here:
        token = here.token()
        assert await here.ask(token) == IN
        assert await here.ask(token) == IN
        assert server.asked == {REVIEWS: 1}
        assert server.credentials == [f"Bearer {OWN_TOKEN}"]
        assert await here.ask(here.token(NEW)) == (401, Reason.REFUSED)
        assert await here.ask(here.token(aud=[ISSUER])) == (401, Reason.AUDIENCE)
        server.deleted_pods.add("billing-6d4b-x7k2p")
        here.clock.advance(60)
        assert await here.ask(token) == (401, Reason.REFUSED)
        assert server.asked == {REVIEWS: 3}


async def test_an_api_server_that_knows_no_audiences(tmp_path: Path) -> None:
    """Where it does not say for whom a token is, that may be for the API server: refused."""
    async with ApiServer(tmp_path, OLD) as server, pod(server, verification=REVIEW) as here:
        server.knows_audiences = False
        assert await here.ask(here.token()) == (401, Reason.AUDIENCE)


async def test_we_may_not_ask(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """Where our own account lacks the right, the log says which role it needs."""
    async with ApiServer(tmp_path, OLD) as server, pod(server, verification=REVIEW) as here:
        server.own_token = "expected-another"
        assert await here.ask(here.token()) == UNAVAILABLE
    assert "system:auth-delegator" in lines[0]["reason"]


async def test_a_crowd_of_made_up_tokens(tmp_path: Path) -> None:
    """An API server that is slow gets eight questions at a time, and the rest is sent away."""
    async with ApiServer(tmp_path, OLD) as server, pod(server, verification=REVIEW) as here:
        server.gate.clear()
        crowd = [asyncio.create_task(here.ask(here.token(NEW, life=60 + n))) for n in range(200)]
        await eventually(_asked(server, REVIEWS, AT_ONCE), what="questions")
        server.gate.set()
        ends = await asyncio.gather(*crowd)
        assert server.most <= AT_ONCE
        assert server.asked[REVIEWS] <= 64
        assert set(ends) <= {(401, Reason.REFUSED), UNAVAILABLE}


@pytest.mark.parametrize("verification", Verification)
async def test_a_look_at_the_cluster(tmp_path: Path, verification: Verification) -> None:
    """`tokenward check` finds out whether tokens could be verified, with no caller's token."""
    async with ApiServer(tmp_path, OLD) as server, pod(server, verification=verification) as here:
        words = await try_cluster(here.kubernetes, KubernetesApi())
        assert words.startswith(("service account tokens are", f"{server.url} reviews"))
        server.answer = partial(web.Response, body=b"{}")
        with pytest.raises(VerificationUnavailableError, match=r"keys|TokenReview"):
            await try_cluster(here.kubernetes, KubernetesApi())
        server.answer, server.own_token = None, "expected-another"
        with pytest.raises(VerificationUnavailableError, match="bind the ClusterRole system:"):
            await try_cluster(here.kubernetes, KubernetesApi())
