"""The example of the outside documents loads as it is printed there."""

from __future__ import annotations

from datetime import timedelta

from daemon.domain.provider import Rotation, RotationKind
from tests.support.configuration import Desk

_TEXT = """
state_dir: ~/.local/state/tokenward
public_url: http://localhost:7421
return_urls: []
listen:
  api:    {address: 127.0.0.1:7420, unix_socket: null, allowed_uids: []}
  public: {address: 127.0.0.1:7421, allow_non_loopback: false}
  ops:    {address: 127.0.0.1:7422, allow_non_loopback: false}
database:
  url: null
encryption:
  keys: []
callers:
  - name: billing
    key_sha256: "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"
    connections: ["acme-*"]
    permissions: [token, proxy, read]
refresh:
  at: 0.75
  jitter: 0.1
  margin: 60s
  concurrency: 64
  request_timeout: 30s
  default_lifetime: 1h
events:
  webhook: {url: null, secret: null}
log: {format: json, level: info}
providers:
  acme:
    issuer: https://auth.acme.example
    authorization_endpoint: https://{region}.acme.example/oauth/authorize
    token_endpoint: https://{region}.acme.example/oauth/token
    refresh_endpoint: null
    revocation_endpoint: https://acme.example/oauth/revoke
    introspection_endpoint: null
    grant: authorization_code
    client_id: xyz
    client_secret: {file: /run/secrets/acme}
    token_endpoint_auth_method: client_secret_basic
    scopes: [read, write]
    scope_separator: " "
    pkce: S256
    authorization_params: {access_type: offline}
    token_params: {}
    refresh_params: {}
    token_request_format: form
    token_response: {}
    default_lifetime: null
    rotation: strict
    fields:
      region: {title: Region, enum: [us, eu], default: us}
    api_base_url: https://api.{region}.acme.example
    allowed_hosts: [api.us.acme.example, "*.acme-files.example"]
    allow_private_hosts: false
    test: {method: GET, path: /me}
    label: "{me.name} ({me.email})"
    label_mask: false
    account_id: me.id
    request:
      headers: {X-Api-Version: "2"}
      query: {}
      body: {}
    concurrency: 8
    rate: 10/s
"""


def test_the_printed_configuration_loads(desk: Desk) -> None:
    """Every key of it is read; the one warning is right: tokens for eu may not go to its API."""
    desk.write("acme", "hush\n")
    settings = desk.load(_TEXT.replace("/run/secrets/", f"{desk.directory}/"))
    (warning,) = settings.warnings
    assert warning.startswith("providers.acme.allowed_hosts: does not list")
    assert settings.refresh.margin == timedelta(minutes=1)
    acme = settings.providers["acme"]
    assert acme.endpoints.token == "https://{region}.acme.example/oauth/token"
    assert acme.allowed_hosts == ("api.us.acme.example", "*.acme-files.example")
    assert (acme.fields["region"].enum, acme.fields["region"].required) == (("us", "eu"), False)
    assert acme.rotation == Rotation(kind=RotationKind.STRICT)
    assert acme.test is not None
    assert acme.test.method == "GET"
    assert (acme.concurrency, acme.rate) == (8, 10.0)
