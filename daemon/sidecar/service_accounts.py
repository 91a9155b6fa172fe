"""Callers that are known by a Kubernetes service account token: verified once a minute, remembered.

The one hard idea: what costs is done in an order in which strangers can cause little of it. A token
is read, its claims judged, its account looked up; only then a signature is verified or the API
server asked. Then its SHA-256 stands for it, until it expires and for a minute at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import structlog

from daemon.config.settings import Kubernetes, ServiceAccount, Verification
from daemon.domain.clock import Clock
from daemon.domain.errors import VerificationUnavailableError
from daemon.sidecar.known_keys import KnownKeys
from daemon.sidecar.service_account_token import (
    Claims,
    Presented,
    Reason,
    check_claims,
    is_jwt,
    read_token,
    refused,
)
from daemon.sidecar.signing_keys import verify
from daemon.sidecar.token_reviews import TokenReviews

log = structlog.get_logger()

REMEMBERED_FOR = 60.0
"""Seconds: a pod or account that is gone is known for no longer, where the API server is asked."""
# Some 200 bytes each. A node has at most a few hundred pods, each with one token at a time.
_MOST_REMEMBERED = 4096
# Headers as they came: at most 8 KB each, mostly one.
_MOST_HEADERS = 512
# Withdrawn keys count for no longer; an API server hands its keys out with a lifetime of an hour.
KEYS_LIVE = 600.0
_KEYS_RETRY = 30.0


class Cluster(Protocol):
    """Who is asked: ``daemon.sidecar.kubernetes_api.KubernetesApi``."""

    async def key_set(self, kubernetes: Kubernetes) -> bytes:
        """Return the JWK Set. Raises VerificationUnavailableError."""

    async def review(self, kubernetes: Kubernetes, token: str) -> bytes:
        """Return the TokenReview. Raises VerificationUnavailableError."""


@dataclass(frozen=True, slots=True)
class _Verified:
    account: ServiceAccount
    until: float


class ServiceAccounts:
    """Verifies tokens. An async context manager; ``kubernetes`` is asked at each use."""

    def __init__(
        self, kubernetes: Callable[[], Kubernetes | None], *, cluster: Cluster, clock: Clock
    ) -> None:
        self._kubernetes = kubernetes
        self._cluster = cluster
        self._clock = clock
        self._keys = KnownKeys(self._key_set, clock=clock)
        self._reviews = TokenReviews(cluster.review, clock=clock)
        self._verified: dict[bytes, _Verified] = {}
        self._by_header: dict[str, _Verified] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._keys.close()
        await self._reviews.close()

    def lately(self, authorization: str) -> ServiceAccount | None:
        """Return whose token is in this header, where the very same came before and still counts.

        Hashing a token of a kilobyte costs several times what a caller key costs; most requests
        bring the header that the last one brought.
        """
        found = self._by_header.get(authorization)
        if found is None or self._clock.boottime() >= found.until:
            return None
        return found.account

    def remembered(self, digest: bytes, authorization: str | None = None) -> ServiceAccount | None:
        """Return whose token has this SHA-256, where that was verified and still counts.

        ``authorization`` is the header that it came in, for :meth:`lately`.
        """
        found = self._verified.get(digest)
        if found is None or self._clock.boottime() >= found.until:
            return None
        if authorization is not None:
            if len(self._by_header) >= _MOST_HEADERS:
                self._by_header.clear()
            self._by_header[authorization] = found
        return found.account

    async def verify(
        self, token: str, digest: bytes, is_caller: Callable[[ServiceAccount], bool]
    ) -> ServiceAccount | None:
        """Return whose token this is; ``None`` where it is none, or none are taken.

        ``digest`` is the token's SHA-256. ``is_caller`` tells which accounts are callers; others
        are not asked about.

        Raises:
            Problem: 401 ``unauthenticated`` with the kind of reason; 503
                ``verification_unavailable``.
        """
        kubernetes = self._kubernetes()
        if kubernetes is None or not is_jwt(token):
            return None
        presented = read_token(token)
        claims = presented.claims
        check_claims(claims, kubernetes, self._clock.now().timestamp())
        if kubernetes.verification is Verification.JWKS:
            await self._by_key(presented, is_caller)
        else:
            await self._by_review(
                token, digest, claims=claims, kubernetes=kubernetes, is_caller=is_caller
            )
        if self._kubernetes() == kubernetes:
            self._remember(digest, claims)
        return claims.account

    def reconfigured(self) -> None:
        """Forget what was verified, and by what: the configuration has changed."""
        self._verified.clear()
        self._by_header.clear()
        self._keys.forget()
        self._reviews.forget()

    async def run(self) -> None:
        """Read the cluster's keys, now and again every ten minutes. Never returns."""
        while True:
            kubernetes = self._kubernetes()
            is_by_keys = kubernetes is not None and kubernetes.verification is Verification.JWKS
            if is_by_keys:
                await self._keys.refresh()
            is_well = self._keys.are_good or not is_by_keys
            await self._clock.sleep(KEYS_LIVE if is_well else _KEYS_RETRY)

    async def _key_set(self) -> bytes:
        kubernetes = self._kubernetes()
        if kubernetes is None:
            raise VerificationUnavailableError("the section kubernetes is gone")
        return await self._cluster.key_set(kubernetes)

    async def _by_key(
        self, presented: Presented, is_caller: Callable[[ServiceAccount], bool]
    ) -> None:
        verify(presented, await self._keys.find(presented.key_id))
        # After the signature: only those who are somebody learn who is a caller.
        if not is_caller(presented.claims.account):
            raise refused(Reason.UNKNOWN_ACCOUNT)

    async def _by_review(
        self,
        token: str,
        digest: bytes,
        *,
        claims: Claims,
        kubernetes: Kubernetes,
        is_caller: Callable[[ServiceAccount], bool],
    ) -> None:
        # Before the question: nobody makes us ask about tokens that could be nobody's here.
        if not is_caller(claims.account):
            raise refused(Reason.UNKNOWN_ACCOUNT)
        await self._reviews.confirm(
            token, digest, claims.account, kubernetes, was_good=digest in self._verified
        )

    def _remember(self, digest: bytes, claims: Claims) -> None:
        now = self._clock.boottime()
        # No token stays in memory for long after its minute.
        self._by_header = {h: each for h, each in self._by_header.items() if each.until > now}
        left = claims.expires_at - self._clock.now().timestamp()
        if digest not in self._verified:
            log.info(
                "service_account_recognised",
                namespace=claims.account.namespace,
                name=claims.account.name,
                pod=claims.pod,
                pod_uid=claims.pod_uid,
            )
            self._make_room(now)
        self._verified[digest] = _Verified(claims.account, now + min(left, REMEMBERED_FOR))

    def _make_room(self, now: float) -> None:
        if len(self._verified) < _MOST_REMEMBERED:
            return
        self._verified = {d: each for d, each in self._verified.items() if each.until > now}
        if len(self._verified) >= _MOST_REMEMBERED:
            self._verified.clear()
