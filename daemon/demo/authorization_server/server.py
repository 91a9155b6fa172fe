"""The authorization server as an object: configured, started, asked, stopped."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from daemon.demo.authorization_server.child import Event, LineChild
from daemon.demo.authorization_server.installation import SOURCES, install
from daemon.demo.authorization_server.node import AuthorizationServerError, find_node
from daemon.domain.clock import Entropy
from daemon.domain.provider import ClientAuthentication

_DISCOVERY_PATH = "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client registration in the words of RFC 7591; no ``client_secret`` for method ``none``."""

    client_id: str
    client_secret: str | None = field(repr=False)
    redirect_uris: tuple[str, ...]
    grant_types: tuple[str, ...] = ("authorization_code", "refresh_token")
    token_endpoint_auth_method: ClientAuthentication = ClientAuthentication.CLIENT_SECRET_BASIC


def confidential_client(client_id: str, redirect_uri: str, *, entropy: Entropy) -> Client:
    """Return a registration with a new secret of 43 characters."""
    secret = base64.urlsafe_b64encode(entropy(32)).decode("ascii").rstrip("=")
    return Client(client_id=client_id, client_secret=secret, redirect_uris=(redirect_uri,))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the server is to behave.

    It binds to 127.0.0.1 whatever ``issuer_host`` says; port 0 lets the system choose. The
    default host differs from the ``localhost`` of our redirect URI on purpose: cookies do not
    know ports, and across hosts the browser treats the two as the strangers that they are in
    production. ``rotate`` makes every refresh rotate and every reuse revoke the grant; without
    it refresh tokens stay as they are. ``state_file`` keeps grants across restarts, tokens
    included, readable by the owner alone; without it they live in memory.
    """

    clients: tuple[Client, ...]
    port: int = 0
    issuer_host: str = "127.0.0.1"
    access_token_lifetime: timedelta = timedelta(seconds=60)
    refresh_token_lifetime: timedelta = timedelta(days=14)
    rotate: bool = True
    state_file: Path | None = None


class AuthorizationServer:
    """oidc-provider as a child process.

    ``directory`` receives the npm packages at the first start. Methods block (the first start
    for seconds, later ones for some tenths of one): call them in a thread where an event loop
    is running. ``on_event`` is called in a thread of its own. It cannot outlive this process.
    """

    def __init__(
        self,
        settings: ServerSettings,
        directory: Path,
        *,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._on_event = on_event
        self._child: LineChild | None = None
        self._issuer: str | None = None

    @property
    def issuer(self) -> str:
        """Return the issuer identifier (RFC 8414 section 2), known from the first start on."""
        if self._issuer is None:
            raise AuthorizationServerError("The authorization server was never started.")
        return self._issuer

    @property
    def client_id(self) -> str:
        """Return the id of the first client."""
        return self._settings.clients[0].client_id

    @property
    def client_secret(self) -> str | None:
        """Return the secret of the first client."""
        return self._settings.clients[0].client_secret

    def start(self) -> None:
        """Install where needed, start, and return when discovery is answered.

        After :meth:`stop` it starts again on the same port.

        Raises:
            AuthorizationServerError: with what to do about it.
        """
        node = find_node()
        packages = install(self._directory, node)
        program = str(SOURCES / "server.mjs")
        child = LineChild(
            "authorization server", [str(node.executable), program], on_event=self._on_event
        )
        listening = child.start(_configuration(self._settings, packages)).members
        port = int(str(listening["port"]))
        try:
            issuer = _discovered_issuer(port)
        except BaseException:
            child.stop()
            raise
        self._child, self._issuer = child, issuer
        self._settings = replace(self._settings, port=port)

    def command(self, name: str, **members: object) -> object:
        """Send one of the commands of ``server.mjs``; return its result."""
        if self._child is None:
            raise AuthorizationServerError("The authorization server is not running.")
        return self._child.command(name, **members)

    def stop(self) -> None:
        """End the server; nothing happens where it is not running."""
        if self._child is not None:
            self._child.stop()
        self._child = None

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()


def _configuration(settings: ServerSettings, packages: Path) -> dict[str, object]:
    return {
        "nodeModules": str(packages),
        "port": settings.port,
        "issuerHost": settings.issuer_host,
        "clients": [_registration(client) for client in settings.clients],
        "accessTokenLifetime": int(settings.access_token_lifetime.total_seconds()),
        "refreshTokenLifetime": int(settings.refresh_token_lifetime.total_seconds()),
        "rotate": settings.rotate,
        "stateFile": str(settings.state_file) if settings.state_file else None,
    }


def _registration(client: Client) -> dict[str, object]:
    secret = {} if client.client_secret is None else {"client_secret": client.client_secret}
    return {
        "client_id": client.client_id,
        "redirect_uris": client.redirect_uris,
        "grant_types": client.grant_types,
        "token_endpoint_auth_method": client.token_endpoint_auth_method,
        **secret,
    }


def _discovered_issuer(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", _DISCOVERY_PATH)
        document = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AuthorizationServerError(
            "The authorization server does not answer its discovery document."
        ) from error
    finally:
        connection.close()
    return str(document["issuer"])
