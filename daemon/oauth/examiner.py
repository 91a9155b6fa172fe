"""[test] Sends the test request, or introspects the token where there is none.

Whatever goes wrong is a result, never an exception: a test may not cost anybody a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from daemon.domain.allowed_hosts import HostNotAllowedError
from daemon.domain.clock import Clock
from daemon.domain.provider import Provider, TestRequest
from daemon.domain.reply import NoReply, RawReply
from daemon.domain.templates import TemplateError
from daemon.oauth.api_session import ApiRequest
from daemon.oauth.examination import Examined, judge, unsendable
from daemon.oauth.introspection import introspect, judge_introspection
from daemon.oauth.testing import request_for
from daemon.oauth.token_endpoint import TokenSession

# A person may be waiting, and an API that takes longer to say who somebody is does not work.
TEST_TIMEOUT = 10.0


class ApiSender(Protocol):
    """What sends to APIs. ``daemon.oauth.api_session.ApiSession`` is the one that does."""

    async def send(self, request: ApiRequest, *, hard_timeout: float) -> RawReply | NoReply:
        """Send once; never raises for what a server or network does."""


def is_testable(provider: Provider) -> bool:
    """Tell whether anything can be asked about a token of ``provider`` (with its metadata)."""
    return provider.test is not None or provider.endpoints.introspection is not None


class Examiner:
    """Examines access tokens."""

    def __init__(self, *, api: ApiSender, session: TokenSession, clock: Clock) -> None:
        self._api = api
        self._session = session
        self._clock = clock

    async def examine(
        self,
        provider: Provider,
        access_token: str,
        *,
        fields: Mapping[str, str],
        reply_values: Mapping[str, str],
    ) -> Examined | None:
        """Ask once what the token is good for; ``None`` where nothing can be asked.

        ``provider`` is a connection's (``provider_for``), with its metadata where the introspection
        endpoint is to be found there. ``reply_values`` are by full name. Takes at most 10 s.
        """
        if provider.test is not None:
            values = {**reply_values, **{f"fields.{name}": text for name, text in fields.items()}}
            return await self._test(provider, provider.test, access_token, values)
        url = provider.endpoints.introspection
        if url is None:
            return None
        reply = await introspect(
            self._session, provider, url, access_token, hard_timeout=TEST_TIMEOUT
        )
        return judge_introspection(reply, access_token=access_token, now=self._clock.now())

    async def _test(
        self, provider: Provider, test: TestRequest, access_token: str, values: Mapping[str, str]
    ) -> Examined:
        try:
            request = request_for(provider, test, access_token=access_token, values=values)
        except (TemplateError, HostNotAllowedError) as error:
            return unsendable(error, now=self._clock.now())
        reply = await self._api.send(request, hard_timeout=TEST_TIMEOUT)
        return judge(reply, test, access_token=access_token, now=self._clock.now())
