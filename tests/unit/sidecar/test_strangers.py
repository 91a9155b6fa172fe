"""Whatever a stranger presents costs an answer, and nothing behind it: no database, no provider."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry

from daemon.config.settings import Caller, Permission, Verification
from daemon.domain.connection import Status
from daemon.domain.errors import Problem
from daemon.domain.tokens import CurrentToken
from daemon.refresh.cache import TokenCache
from daemon.refresh.reading import TokenReader
from daemon.sidecar.access import Callers
from daemon.sidecar.guard import Guard
from daemon.sidecar.service_accounts import ServiceAccounts
from daemon.sidecar.token_route import TokenRoute
from daemon.telemetry.token_reads import TokenReads
from tests.support.clock import START, FakeClock
from tests.support.service_account_tokens import (
    ACCOUNT,
    KUBERNETES,
    MemoryCluster,
    Signer,
    claims_of,
)

SIGNER, STRANGER = Signer.of_curve(), Signer.of_curve()
FORGED = STRANGER.sign(claims_of(now=START.timestamp()))
_JWT = st.text("eyJ0bGciOiJFUzI1NiJ9.-_", max_size=120).map("eyJ".__add__)
_CREDENTIALS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["Bearer", "bearer", "Basic", "DPoP", ""]),
    st.sampled_from([" ", "  ", "\t", ""]),
    st.one_of(st.text(max_size=80), _JWT, st.just(FORGED), st.just(FORGED[:-5])),
)


_KNOWN = CurrentToken(
    connection="acme-1",
    provider="acme",
    status=Status.ACTIVE,
    generation=1,
    access_token="access 1",
    token_type="Bearer",
    scopes=("read",),
    issued_at=START,
    expires_at=START + timedelta(hours=1),
    refreshable=True,
)


class _Untouched:
    """Stands for what must not be asked."""

    async def survivor_of(self, connection_id: str) -> str | None:
        """Fail."""
        raise AssertionError(f"{connection_id} was looked for")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked")


def _route(verification: Verification) -> tuple[TokenRoute, ServiceAccounts]:
    clock, cache = FakeClock(), TokenCache()
    cache.put(_KNOWN)
    cluster = MemoryCluster(SIGNER)
    cluster.status = {"authenticated": False}
    kubernetes = replace(KUBERNETES, verification=verification)
    accounts = ServiceAccounts(lambda: kubernetes, cluster=cluster, clock=clock)
    caller = Caller(
        name="billing",
        service_account=ACCOUNT,
        connections=("*",),
        permissions=frozenset(Permission),
    )
    route = TokenRoute(
        callers=Callers([caller], tokens=accounts),
        guard=Guard(),
        cache=cache,
        reader=cast("TokenReader", _Untouched()),
        reads=TokenReads(CollectorRegistry(), providers=["acme"]),
        survivor_of=_Untouched().survivor_of,
        clock=clock,
    )
    return route, accounts


@pytest.mark.parametrize("verification", Verification)
@settings(deadline=None)
@given(authorization=_CREDENTIALS)
async def test_junk_costs_an_answer(verification: Verification, authorization: str) -> None:
    """Any credential of a stranger ends as a 401, before a connection is looked for."""
    route, accounts = _route(verification)
    headers = CIMultiDict({"Host": "127.0.0.1:7420", "Authorization": authorization})
    request = make_mocked_request(
        "GET", "/v1/connections/acme-1/token", headers, match_info={"id": "acme-1"}
    )
    async with accounts:
        assert route.before_router(request) is None
        with pytest.raises(Problem) as caught:
            await route.get(request)
    assert caught.value.status == 401
