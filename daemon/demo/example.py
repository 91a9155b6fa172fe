"""The files of a demonstration: a configuration with comments to read, and a client secret.

The configuration is the real thing: the daemon runs from it, and so do the commands that the
demonstration suggests.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from daemon.demo.authorization_server.server import (
    AuthorizationServer,
    Client,
    ServerSettings,
    confidential_client,
)
from daemon.domain.clock import Entropy
from daemon.domain.errors import StorageError

PROVIDER = "demo"
_CLIENT_ID = "tokenward-demo"
# A sixth of a lifetime: ten seconds of the usual minute.
_MARGIN_FRACTION = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where everything listens, all on 127.0.0.1."""

    api: int = 7420
    public: int = 7421
    ops: int = 7422
    authorization_server: int = 7423


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One demonstration: a directory of its own, ports, and how long access tokens live."""

    state_dir: Path
    ports: Ports = Ports()
    token_lifetime: timedelta = timedelta(seconds=60)

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.state_dir / "tokenward.yaml"

    @property
    def log(self) -> Path:
        """The daemon's log."""
        return self.state_dir / "demo.log"

    @property
    def server_directory(self) -> Path:
        """Where the authorization server keeps its packages and its grants."""
        return self.state_dir / "authorization-server"

    @property
    def secret(self) -> Path:
        """The file with our client secret at the authorization server."""
        return self.state_dir / "client.secret"

    @property
    def public_url(self) -> str:
        """Where the browser reaches the daemon."""
        return f"http://localhost:{self.ports.public}"


def prepare(example: Example, *, entropy: Entropy) -> AuthorizationServer:
    """Write the configuration, keep or make the secret, and return the server, not started yet.

    Raises:
        StorageError: the directory cannot be used.
    """
    try:
        example.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        client = _client(example, entropy)
        _write_private(example.config, configuration(example))
        example.server_directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The demonstration cannot keep its files in {example.state_dir}: {error.strerror}. "
            "Choose another directory with --state-dir."
        ) from error
    return AuthorizationServer(
        ServerSettings(
            clients=(client,),
            port=example.ports.authorization_server,
            access_token_lifetime=example.token_lifetime,
            state_file=example.server_directory / "state",
        ),
        example.server_directory,
    )


def configuration(example: Example) -> str:
    """Return the configuration file of a demonstration. Pure."""
    seconds = int(example.token_lifetime.total_seconds())
    margin = max(1, seconds // _MARGIN_FRACTION)
    ports = example.ports
    return f"""\
# The configuration of `tokenward demo`. It is written anew at each start of the demonstration:
# copy it before you change it. config.example.yaml describes every key.

# Keys, the embedded database and the API key of the command line.
state_dir: {json.dumps(str(example.state_dir))}

# The redirect URI, which every provider must know, is this and /callback.
public_url: {example.public_url}

listen:
  api: {{address: "127.0.0.1:{ports.api}"}}       # programs ask for tokens here
  public: {{address: "127.0.0.1:{ports.public}"}}    # browsers come here to connect
  ops: {{address: "127.0.0.1:{ports.ops}"}}       # metrics and probes

# Tokens live {seconds} s here. By default a refresh comes after three quarters of that, and never
# later than a minute before the end, which is too long for tokens of a minute.
refresh: {{margin: {margin}s}}

log: {{format: console, level: info}}

providers:
  {PROVIDER}:
    # The server publishes its endpoints below this URL (OpenID Connect Discovery).
    issuer: http://127.0.0.1:{ports.authorization_server}
    client_id: {_CLIENT_ID}
    client_secret: {{file: {example.secret.name}}}
    # Without offline_access and consent this server gives no refresh token.
    scopes: [openid, profile, email, offline_access]
    authorization_params: {{prompt: consent}}
    # Each refresh spends its refresh token, and using one twice ends the grant.
    rotation: strict
    # Its API, to which the proxy and the test request may take a token. It is on this machine.
    api_base_url: http://127.0.0.1:{ports.authorization_server}
    allow_private_hosts: true
    # Who a token belongs to: asked when connecting, and by `tokenward test`.
    test: {{path: /me}}
    label: "{{me.name}} ({{me.email}})"
    account_id: me.sub
"""


def _client(example: Example, entropy: Entropy) -> Client:
    """Return our registration, with the secret of the last time where there was one."""
    redirect_uri = f"{example.public_url}/callback"
    client = confidential_client(_CLIENT_ID, redirect_uri, entropy=entropy)
    if not example.secret.exists():
        _write_private(example.secret, f"{client.client_secret}\n")
        return client
    kept = example.secret.read_text("ascii").strip()
    return Client(client_id=_CLIENT_ID, client_secret=kept, redirect_uris=(redirect_uri,))


def _write_private(path: Path, text: str) -> None:
    """Replace a file by one that only its owner may read; it is there whole or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)
