"""A provider's published metadata (RFC 8414, OpenID Connect Discovery 1.0). Pure.

The one hard idea: metadata tells where secrets are sent, so a document counts whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit, urlunsplit

from daemon.domain.errors import DiscoveryError

_OAUTH = "/.well-known/oauth-authorization-server"
_OPENID = "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a provider says of itself; ``None`` where it does not say."""

    issuer: str
    token_endpoint: str
    authorization_endpoint: str | None = None
    iss_parameter_supported: bool = False
    code_challenge_methods: tuple[str, ...] | None = None
    token_endpoint_auth_methods: tuple[str, ...] | None = None
    revocation_endpoint: str | None = None
    revocation_endpoint_auth_methods: tuple[str, ...] | None = None
    introspection_endpoint: str | None = None
    introspection_endpoint_auth_methods: tuple[str, ...] | None = None


def metadata_urls(issuer: str) -> tuple[str, ...]:
    """Return where ``issuer`` may publish its metadata, in the order to try.

    RFC 8414 3.1 puts the well-known part before the issuer's path, OpenID Connect Discovery 4
    behind it, and RFC 8414 5 lets the OpenID name stand in either place.
    """
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    paths = dict.fromkeys((_OAUTH + path, path + _OPENID, _OPENID + path))
    return tuple(urlunsplit((parts.scheme, parts.netloc, path, "", "")) for path in paths)


def read_metadata(issuer: str, document: bytes) -> Metadata:
    """Return the metadata of ``issuer``. Raises DiscoveryError, and then nothing of it counts.

    The document's issuer must equal ``issuer`` byte for byte (RFC 8414 3.3), and each endpoint in
    it must be a URL to which a secret may be sent.
    """
    try:
        members = json.loads(document.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DiscoveryError("it is not JSON") from error
    if not isinstance(members, dict):
        raise DiscoveryError("it is not a JSON object")
    if members.get("issuer") != issuer:
        raise DiscoveryError(
            "its issuer is not the configured one; they must be equal to the last character"
        )
    token = _endpoint(members, "token_endpoint")
    if token is None:
        raise DiscoveryError("it names no token_endpoint")
    return Metadata(
        issuer=issuer,
        token_endpoint=token,
        authorization_endpoint=_endpoint(members, "authorization_endpoint"),
        iss_parameter_supported=_flag(members, "authorization_response_iss_parameter_supported"),
        code_challenge_methods=_names(members, "code_challenge_methods_supported"),
        token_endpoint_auth_methods=_names(members, "token_endpoint_auth_methods_supported"),
        revocation_endpoint=_endpoint(members, "revocation_endpoint"),
        revocation_endpoint_auth_methods=_names(
            members, "revocation_endpoint_auth_methods_supported"
        ),
        introspection_endpoint=_endpoint(members, "introspection_endpoint"),
        introspection_endpoint_auth_methods=_names(
            members, "introspection_endpoint_auth_methods_supported"
        ),
    )


def is_safe_endpoint(url: str) -> bool:
    """Tell whether a secret may be sent to ``url``: https, or http to a loopback host.

    No user info, no fragment (RFC 6749 3.2), no white space or other character outside printable
    ASCII.
    """
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or "#" in url:
        return False
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return False
    # A name has no escapes: what they would mean depends on who reads them.
    if not host or "@" in parts.netloc or "%" in parts.netloc:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _endpoint(members: Mapping[str, object], name: str) -> str | None:
    url = members.get(name)
    if url is None:
        return None
    if not isinstance(url, str) or not is_safe_endpoint(url):
        raise DiscoveryError(f"its {name} is not an https URL")
    return url


def _flag(members: Mapping[str, object], name: str) -> bool:
    value = members.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise DiscoveryError(f"its {name} is not a boolean")
    return value


def _names(members: Mapping[str, object], name: str) -> tuple[str, ...] | None:
    values = members.get(name)
    if values is None:
        return None
    names = (
        [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    )
    if not isinstance(values, list) or len(names) != len(values):
        raise DiscoveryError(f"its {name} is not a list of strings")
    return tuple(names)
