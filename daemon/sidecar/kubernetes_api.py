"""The two questions that are put to a cluster: its public keys, and whether a token is good.

Our own token goes to the API server alone. It and the authority's certificate are read from their
files again, for the kubelet renews both.
"""

from __future__ import annotations

import re
import ssl
from http import HTTPStatus
from pathlib import Path

import orjson

from daemon.config.settings import Kubernetes
from daemon.domain.errors import VerificationUnavailableError
from daemon.domain.reply import NoReply, RawReply
from daemon.oauth.outbound import Outbound
from daemon.oauth.token_request import USER_AGENT

_LARGEST_FILE = 1024 * 1024
_OWN_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}", re.ASCII)
_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_KEYS = "/openid/v1/jwks"
_ROLES = {
    _REVIEWS: "bind the ClusterRole system:auth-delegator to tokenward's service account",
    _KEYS: "bind the ClusterRole system:service-account-issuer-discovery to tokenward's service "
    "account",
}
_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


class KubernetesApi:
    """Asks the API server, and whoever else publishes the keys. No connection is kept.

    ``timeout`` is for one whole answer, in seconds: a caller waits for it.
    """

    def __init__(self, *, timeout: float = 5.0) -> None:
        self._timeout = timeout
        self._trust: tuple[tuple[object, ...], ssl.SSLContext] | None = None

    async def key_set(self, kubernetes: Kubernetes) -> bytes:
        """Return the cluster's JWK Set as it is published.

        Raises:
            VerificationUnavailableError: it cannot be had.
        """
        if kubernetes.jwks_file is not None:
            return _content(kubernetes.jwks_file, "jwks_file")
        url = kubernetes.jwks_url or kubernetes.api_server + _KEYS
        reply = await self._ask("GET", url, None, kubernetes)
        if reply.status != HTTPStatus.OK:
            raise _unexpected(reply.status, _KEYS)
        return reply.body

    async def review(self, kubernetes: Kubernetes, token: str) -> bytes:
        """Return what the API server says of ``token``, a TokenReview in JSON.

        Raises:
            VerificationUnavailableError: it says nothing, or not to us.
        """
        question = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [kubernetes.audience]},
        }
        url = kubernetes.api_server + _REVIEWS
        reply = await self._ask("POST", url, orjson.dumps(question), kubernetes)
        if reply.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise _unexpected(reply.status, _REVIEWS)
        return reply.body

    async def _ask(
        self, method: str, url: str, body: bytes | None, kubernetes: Kubernetes
    ) -> RawReply:
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        if url.startswith(f"{kubernetes.api_server}/"):
            headers["Authorization"] = f"Bearer {_own_token(kubernetes.token_file)}"
        async with Outbound(ssl_context=self._context(kubernetes.ca_file)) as session:
            reply = await session.send(method, url, headers, body, hard_timeout=self._timeout)
        if isinstance(reply, NoReply):
            raise VerificationUnavailableError(f"no reply ({reply.fault})")
        return reply

    def _context(self, ca_file: Path | None) -> ssl.SSLContext:
        """Return what verifies the server's certificate, made again when its file has changed."""
        try:
            found = None if ca_file is None else ca_file.stat()
            place = (ca_file, found and (found.st_ino, found.st_mtime_ns, found.st_size))
            if self._trust is None or self._trust[0] != place:
                self._trust = (place, ssl.create_default_context(cafile=ca_file))
        except (OSError, ValueError) as error:
            raise VerificationUnavailableError(
                f"kubernetes.ca_file ({ca_file}) cannot be used: {_why(error)}"
            ) from error
        return self._trust[1]


def _own_token(path: Path) -> str:
    token = _content(path, "token_file").strip().decode("ascii", "replace")
    if _OWN_TOKEN.fullmatch(token) is None:
        raise VerificationUnavailableError(f"kubernetes.token_file ({path}) holds no token")
    return token


def _content(path: Path, key: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise VerificationUnavailableError(
            f"kubernetes.{key} ({path}) cannot be read: {_why(error)}"
        ) from error
    if len(content) > _LARGEST_FILE:
        raise VerificationUnavailableError(f"kubernetes.{key} ({path}) is larger than 1 MiB")
    return content


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


def _unexpected(status: int, path: str) -> VerificationUnavailableError:
    advice = f"; {_ROLES[path]}" if status in _REFUSED else ""
    return VerificationUnavailableError(f"status {status}{advice}")
