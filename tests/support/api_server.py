"""As much of a Kubernetes API server as tokenward asks: keys and token reviews, over real TLS.

It verifies what it is asked about, knows audiences and pods that are gone, and lets nobody in
without a token of its own, as the real one does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web
from joserfc import jws
from joserfc.errors import JoseError

from tests.support.raw_server import certificates
from tests.support.service_account_tokens import AUDIENCE, ISSUER, Signer, key_set
from tests.support.tokenward import free_ports

OWN_TOKEN = "own-token-canary-of-tokenward"
KEYS, REVIEWS = "/openid/v1/jwks", "/apis/authentication.k8s.io/v1/tokenreviews"


class ApiServer:
    """Listens on one loopback port, with its files in ``directory``; may go away and come back.

    ``signers`` are the keys in force. ``asked`` counts requests by path, ``most`` is how many
    reviews were under way at once. While ``gate`` is closed all wait. ``answer``, where set, is
    what everybody gets instead.
    """

    def __init__(self, directory: Path, *signers: Signer) -> None:
        self.directory = directory
        self.signers = list(signers)
        self.own_token = OWN_TOKEN
        self.deleted_pods: set[str] = set()
        self.knows_audiences = True
        self.answer: Callable[[], web.Response] | None = None
        self.asked: Counter[str] = Counter()
        self.credentials: list[str | None] = []
        self.under_way = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        (self.port,) = free_ports(1)
        self._runner: web.AppRunner | None = None
        self.renew()
        self.write_own_token()

    @property
    def url(self) -> str:
        """Return where it is."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        """Return the file with its certificate."""
        return self.directory / "127.0.0.1.pem"

    @property
    def token_file(self) -> Path:
        """Return the file that a kubelet would write for tokenward."""
        return self.directory / "own-token"

    def section(self, **more: Any) -> dict[str, Any]:
        """Return the section ``kubernetes`` for this cluster."""
        return {
            "audience": AUDIENCE,
            "issuer": ISSUER,
            "api_server": self.url,
            "ca_file": str(self.ca_file),
            "token_file": str(self.token_file),
            **more,
        }

    def renew(self) -> None:
        """Make another certificate; it is used from the next start."""
        self._tls = certificates(str(self.directory)).server

    def write_own_token(self, token: str | None = None) -> None:
        """Write what tokenward presents, and know it from now on."""
        self.own_token = token or self.own_token
        self.token_file.write_text(self.own_token + "\n")

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes([web.get(KEYS, self._keys), web.post(REVIEWS, self._review)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Go away."""
        self.gate.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _keys(self, request: web.Request) -> web.Response:
        return await self._answered(request, key_set(*self.signers))

    async def _review(self, request: web.Request) -> web.Response:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            question = orjson.loads(await request.read())["spec"]
            status = self._judged(question["token"], question["audiences"])
            review = {"kind": "TokenReview", "spec": question, "status": status}
            return await self._answered(request, orjson.dumps(review), status=201)
        finally:
            self.under_way -= 1

    async def _answered(
        self, request: web.Request, body: bytes, *, status: int = 200
    ) -> web.Response:
        self.asked[request.path] += 1
        self.credentials.append(request.headers.get("Authorization"))
        await self.gate.wait()
        if self.answer is not None:
            return self.answer()
        if request.headers.get("Authorization") != f"Bearer {self.own_token}":
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        return web.Response(body=body, status=status, content_type="application/json")

    def _judged(self, token: str, audiences: list[str]) -> dict[str, Any]:
        claims = self._verified(token)
        pod = claims.get("kubernetes.io", {}).get("pod", {}).get("name")
        common = [each for each in audiences if each in claims.get("aud", [])]
        if not claims or pod in self.deleted_pods or not common:
            return {"user": {}, "error": "[invalid bearer token, canary-of-the-api-server]"}
        shown = {"audiences": common} if self.knows_audiences else {}
        return {"authenticated": True, "user": {"username": claims["sub"]}, **shown}

    def _verified(self, token: str) -> dict[str, Any]:
        for signer in self.signers:
            try:
                signed = jws.deserialize_compact(token, signer.key, [signer.algorithm])
            except (JoseError, ValueError):
                continue
            claims: dict[str, Any] = orjson.loads(signed.payload or b"{}")
            return claims
        return {}
