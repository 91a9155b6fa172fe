"""Service account tokens as a cluster signs them, and as somebody who would like to be it does."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

import orjson
from joserfc import jws
from joserfc.jwk import ECKey, Key, RSAKey

from daemon.config.settings import Kubernetes, ServiceAccount
from daemon.domain.errors import VerificationUnavailableError

ISSUER = "https://kubernetes.default.svc.cluster.local"
AUDIENCE = "tokenward"
ACCOUNT = ServiceAccount("payments", "billing")
KUBERNETES = Kubernetes(audience=AUDIENCE, issuer=ISSUER)
_ALGORITHMS = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


def claims_of(
    account: ServiceAccount = ACCOUNT, *, now: float, life: float = 3600.0, **changes: Any
) -> dict[str, Any]:
    """Return the claims of a projected token issued ``now``; ``None`` takes a claim away."""
    namespace, name = account
    found = {
        "aud": [AUDIENCE],
        "exp": int(now + life),
        "iat": int(now),
        "iss": ISSUER,
        "jti": "0f7a3d0e-6a0b-4b8e-9a53-0d4a5c2f1b77",
        "kubernetes.io": {
            "namespace": namespace,
            "node": {"name": "node-1", "uid": "b7f5a2d1-9a80-4e0f-8c5a-3e8c8b8c2a11"},
            "pod": {"name": f"{name}-6d4b-x7k2p", "uid": "5f2e1c0a-77aa-4f4e-8d0a-9f0e1d2c3b4a"},
            "serviceaccount": {"name": name, "uid": "c1b2a3d4-0000-4000-8000-000000000001"},
        },
        "nbf": int(now),
        "sub": f"system:serviceaccount:{namespace}:{name}",
        **changes,
    }
    return {claim: value for claim, value in found.items() if value is not None}


def encoded(part: bytes | Mapping[str, Any]) -> str:
    """Return one part of a JWT."""
    octets = part if isinstance(part, bytes) else orjson.dumps(part)
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


@cache
def _rsa_key(name: str, bits: int) -> RSAKey:
    del name
    return RSAKey.generate_key(bits)


@dataclass(frozen=True, slots=True)
class Signer:
    """A key pair of a cluster."""

    key_id: str
    key: Key = field(repr=False)
    algorithm: str

    @classmethod
    def of_curve(cls, key_id: str = "ec-1", curve: str = "P-256") -> Self:
        """Return a new pair."""
        return cls(key_id, ECKey.generate_key(curve), _ALGORITHMS[curve])

    @classmethod
    def of_rsa(cls, key_id: str = "rsa-1", bits: int = 2048) -> Self:
        """Return the pair of this name: making one takes a while."""
        return cls(key_id, _rsa_key(key_id, bits), "RS256")

    def public(self, **more: object) -> dict[str, Any]:
        """Return the public key as the cluster publishes it."""
        names = {"use": "sig", "kid": self.key_id, "alg": self.algorithm}
        return {**self.key.as_dict(private=False), **names, **more}

    def sign(self, claims: Mapping[str, Any] | bytes, **header: Any) -> str:
        """Return a token; ``header`` adds to the usual members or takes one's place."""
        payload = claims if isinstance(claims, bytes) else orjson.dumps(claims)
        members = {"alg": self.algorithm, "kid": self.key_id, **header}
        shown = {name: value for name, value in members.items() if value is not None}
        first = f"{encoded(shown)}.{encoded(payload)}"
        model = jws.JWSRegistry.algorithms[self.algorithm]
        return f"{first}.{encoded(model.sign(first.encode(), self.key))}"


def key_set(*signers: Signer) -> bytes:
    """Return the JWK Set of these pairs."""
    return orjson.dumps({"keys": [signer.public() for signer in signers]})


class MemoryCluster:
    """Port: ``daemon.sidecar.service_accounts.Cluster``, in memory.

    ``published`` is the JWK Set, ``status`` what is said of every token; ``trouble`` is why
    nothing is answered.
    """

    def __init__(self, *signers: Signer) -> None:
        self.published = key_set(*signers)
        self.status: dict[str, Any] = {
            "authenticated": True,
            "audiences": [AUDIENCE],
            "user": {"username": "system:serviceaccount:payments:billing"},
        }
        self.trouble: str | None = None
        self.fetched = 0
        self.reviewed: list[str] = []

    async def key_set(self, kubernetes: Kubernetes) -> bytes:
        """Return the JWK Set."""
        del kubernetes
        self.fetched += 1
        if self.trouble is not None:
            raise VerificationUnavailableError(self.trouble)
        return self.published

    async def review(self, kubernetes: Kubernetes, token: str) -> bytes:
        """Return the TokenReview."""
        del kubernetes
        self.reviewed.append(token)
        if self.trouble is not None:
            raise VerificationUnavailableError(self.trouble)
        return orjson.dumps({"kind": "TokenReview", "status": self.status})
