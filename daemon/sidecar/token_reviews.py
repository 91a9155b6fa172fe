"""Asking the API server about a token (TokenReview), so that nobody can make us ask too much.

The one hard idea: whoever reaches this listener can make up a token that looks like a caller's,
and only the API server can tell. So few are asked about at a time, none twice at once, and after a
row of refusals only those that were good before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from functools import partial

import orjson
import structlog

from daemon.config.settings import Kubernetes, ServiceAccount
from daemon.domain.clock import Clock
from daemon.domain.errors import VerificationUnavailableError
from daemon.sidecar.flights import Flights
from daemon.sidecar.service_account_token import Reason, refused, unavailable, username

log = structlog.get_logger()

# Questions under way, and with those that wait for their turn.
AT_ONCE = 8
_MOST = 64
# Seconds until a token has an answer, waiting for its turn included.
_PATIENCE = 10.0
# A token that was refused is refused again without a question, for so many seconds.
_REFUSED_FOR = 30.0
_REMEMBERED = 1024
# After so many refusals in so many seconds strangers wait: a pod's tokens are good, one and all.
MOST_REFUSALS = 50
REFUSAL_WINDOW = 10.0


class _Answer(Enum):
    """What a question ends with, beside a reason to refuse."""

    GOOD = auto()
    NONE = auto()


Review = Callable[[Kubernetes, str], Awaitable[bytes]]
"""``daemon.sidecar.kubernetes_api.KubernetesApi.review``."""


class TokenReviews:
    """Asks, and remembers refusals. What is good is remembered by who asks."""

    def __init__(self, review: Review, *, clock: Clock) -> None:
        self._review = review
        self._clock = clock
        self._flights: Flights[tuple[int, bytes], Reason | _Answer] = Flights()
        # Answers to questions from before a change of the configuration count for nothing after it.
        self._epoch = 0
        self._places = asyncio.Semaphore(AT_ONCE)
        self._refused: dict[bytes, tuple[Reason, float]] = {}
        self._refusals: deque[float] = deque(maxlen=MOST_REFUSALS)
        self._is_away = False

    async def confirm(
        self,
        token: str,
        digest: bytes,
        account: ServiceAccount,
        kubernetes: Kubernetes,
        *,
        was_good: bool,
    ) -> None:
        """Return where the API server says that ``token`` is of ``account`` and for us.

        ``digest`` is the token's SHA-256; ``was_good``: it was confirmed before.

        Raises:
            Problem: 401, it says no; 503, it says nothing, or too many are asked about.
        """
        now = self._clock.boottime()
        reason, until = self._refused.get(digest, (None, 0.0))
        if reason is not None and now < until:
            raise refused(reason)
        flight = (self._epoch, digest)
        if flight not in self._flights and (
            len(self._flights) >= _MOST or not (was_good or self._hears_strangers(now))
        ):
            raise unavailable()
        ask = partial(self._ask, token, digest, account, kubernetes)
        answer = await self._flights.join(flight, ask)
        if answer is _Answer.NONE:
            raise unavailable()
        if isinstance(answer, Reason):
            raise refused(answer)

    def forget(self) -> None:
        """Forget refusals: the configuration has changed."""
        self._epoch += 1
        self._refused.clear()
        self._refusals.clear()

    async def close(self) -> None:
        """End the questions under way."""
        await self._flights.close()

    def _hears_strangers(self, now: float) -> bool:
        is_full = len(self._refusals) == MOST_REFUSALS
        return not is_full or now - self._refusals[0] > REFUSAL_WINDOW

    async def _ask(
        self, token: str, digest: bytes, account: ServiceAccount, kubernetes: Kubernetes
    ) -> Reason | _Answer:
        epoch = self._epoch
        try:
            async with asyncio.timeout(_PATIENCE), self._places:
                body = await self._review(kubernetes, token)
            reason = read_review(body, kubernetes.audience, account)
        except (VerificationUnavailableError, TimeoutError) as error:
            self._told(str(error) or "no reply in time")
            return _Answer.NONE
        self._told(None)
        if reason is None:
            return _Answer.GOOD
        if epoch == self._epoch:
            self._remember(digest, reason)
        return reason

    def _remember(self, digest: bytes, reason: Reason) -> None:
        now = self._clock.boottime()
        self._refusals.append(now)
        if len(self._refused) >= _REMEMBERED:
            self._refused.clear()
        self._refused[digest] = (reason, now + _REFUSED_FOR)

    def _told(self, trouble: str | None) -> None:
        """Log that the API server is away, or back, once each."""
        if trouble is not None and not self._is_away:
            log.warning("token_review_unavailable", reason=trouble)
        elif trouble is None and self._is_away:
            log.info("token_review_available")
        self._is_away = trouble is not None


def read_review(body: bytes, audience: str, account: ServiceAccount) -> Reason | None:
    """Return why a TokenReview's answer speaks against the token; ``None``: it does not.

    An API server that knows no audiences leaves ``status.audiences`` out: then the token is good
    for the API server, and that is not us.

    Raises:
        VerificationUnavailableError: it is no TokenReview.
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise VerificationUnavailableError("the answer is no TokenReview") from error
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(status, dict):
        raise VerificationUnavailableError("the answer is no TokenReview")
    if status.get("authenticated") is not True:
        return Reason.REFUSED
    audiences = status.get("audiences")
    if not isinstance(audiences, list) or audience not in audiences:
        return Reason.AUDIENCE
    user = status.get("user")
    if not isinstance(user, dict) or user.get("username") != username(account):
        return Reason.REFUSED
    return None
