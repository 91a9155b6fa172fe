"""Where a provider's token may go: a URL is read strictly, and its host is on the list or not.

The one hard idea: what a URL means must not depend on who reads it. Whatever two parsers could
read differently (user info, backslashes, escapes, odd addresses, foreign letters) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from daemon.domain.connection import Connection
from daemon.domain.errors import TokenwardError
from daemon.domain.provider import Provider
from daemon.domain.templates import TemplateError, begins_with_origin, render_url

_LONGEST = 8000
_LONGEST_HOST = 253
_HIGHEST_PORT = 65535
# Printable ASCII. A backslash is a slash to some readers; none of the others may stand in a URL.
_URL = re.compile(r"(?i:(https?)://)([^/?#]*)((?:[/?][!-~]*)?)")
_FORBIDDEN = re.compile(r"[^!-~]|[\\#]")
_AUTHORITY = re.compile(
    r"(?P<host>\[[0-9a-f:]+\]|[a-z0-9.-]+)(?::(?P<port>[1-9][0-9]{0,4}))?", re.IGNORECASE
)
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
# A last label that some readers take for a number makes the whole host an IPv4 address to them.
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)", re.ASCII)
_ENTRY = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>[0-9]{1,5}))?")
_DEFAULT_PORTS = {"https": 443, "http": 80}


class HostNotAllowedError(TokenwardError):
    """A token may not be sent there. The text is a sentence that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A URL that was read strictly. ``host`` is in lower case, an IPv6 address in brackets.

    ``path`` is path and query as given, still encoded, and begins with ``/``.
    """

    scheme: str
    host: str
    port: int
    path: str = "/"

    @property
    def authority(self) -> str:
        """Return ``host[:port]`` as in a ``Host`` header: the scheme's own port is left out."""
        if self.port == _DEFAULT_PORTS[self.scheme]:
            return self.host
        return f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        """Return ``scheme://host[:port]``."""
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        """Return the whole URL."""
        return self.origin + self.path


def target(url: str, provider: Provider, values: Mapping[str, str]) -> Target:
    """Return ``url`` as the place to send ``provider``'s token to.

    ``values`` are a connection's, by full name (:func:`template_values`).

    Raises:
        HostNotAllowedError: it is no URL that every reader reads alike, or its host and port are
            not on the provider's list.
    """
    found = read_target(url)
    allowed = provider.allowed_hosts or _default(provider, values)
    if not is_allowed(found, allowed):
        raise HostNotAllowedError(
            f"{found.authority} is not one of the hosts where the token of provider "
            f"{provider.name} may go ({', '.join(allowed)}). Ask another host, or add this one to "
            "the provider's allowed_hosts."
        )
    return found


def api_base(provider: Provider, values: Mapping[str, str]) -> Target:
    """Return ``api_base_url`` with a connection's values in it, checked like any other target.

    Raises:
        HostNotAllowedError: there is none, a value for it is missing, or it is not on the list.
    """
    return target(_rendered_base(provider, values), provider, values)


def template_values(connection: Connection) -> dict[str, str]:
    """Return what templates may use of a connection, by full name (``fields.region``, …)."""
    fields = {f"fields.{name}": value for name, value in connection.fields.items()}
    return {**connection.reply_values, **fields}


def read_target(url: str) -> Target:
    """Read an absolute URL, strictly. Pure.

    Raises:
        HostNotAllowedError: it is not one, or readers could differ on what it means.
    """
    if len(url) > _LONGEST:
        raise HostNotAllowedError(f"The URL is longer than {_LONGEST} characters.")
    match = None if _FORBIDDEN.search(url) else _URL.fullmatch(url)
    if match is None:
        raise HostNotAllowedError(
            "The URL must be https://HOST/PATH in printable ASCII, encoded, without a backslash "
            "and without a fragment (#)."
        )
    scheme, path = match[1].lower(), match[3]
    host, port = _read_authority(match[2])
    if scheme == "http" and not _is_loopback(host):
        raise HostNotAllowedError(
            "A token is sent over https only; http is allowed for localhost and loopback "
            "addresses. Write https://."
        )
    return Target(
        scheme=scheme,
        host=host,
        port=port or _DEFAULT_PORTS[scheme],
        path=path if path.startswith("/") else f"/{path}",
    )


def is_allowed(found: Target, allowed: Iterable[str]) -> bool:
    """Tell whether an entry matches: ``host`` or ``*.domain`` (whatever is below it).

    An entry may end in ``:port``. Without one it stands for the scheme's own: 443, or 80 for
    http to loopback.
    """
    return any(_matches(found, entry) for entry in allowed)


def _matches(found: Target, entry: str) -> bool:
    match = _ENTRY.fullmatch(entry.lower())
    if match is None or not match["host"]:
        return False
    if found.port != int(match["port"] or _DEFAULT_PORTS[found.scheme]):
        return False
    host = match["host"]
    if not host.startswith("*."):
        return found.host == host
    # The host is a checked name, so what stands before the suffix is whole labels.
    return found.host.endswith(host[1:]) and len(found.host) >= len(host)


def _read_authority(text: str) -> tuple[str, int | None]:
    if "@" in text:
        raise HostNotAllowedError(
            "The URL must not have a user name or password before its host. Remove it, with the @."
        )
    match = _AUTHORITY.fullmatch(text)
    host = "" if match is None else match["host"].lower()
    if match is None or not _is_host(host):
        raise HostNotAllowedError(
            "The URL's host must be a plain ASCII name without a trailing dot, or an address in "
            "its usual notation, with a port from 1 to 65535 or none."
        )
    port = match["port"]
    if port is not None and int(port) > _HIGHEST_PORT:
        raise HostNotAllowedError("The URL's port must be from 1 to 65535.")
    return host, None if port is None else int(port)


def _is_host(host: str) -> bool:
    try:
        if host.startswith("["):
            address = IPv6Address(host[1:-1])
            # Python's versions write a mapped address in different ways.
            return address.ipv4_mapped is None and str(address) == host[1:-1]
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            return str(IPv4Address(host)) == host
    except AddressValueError:
        return False
    return len(host) <= _LONGEST_HOST and _NAME.fullmatch(host) is not None


def _is_loopback(host: str) -> bool:
    """Tell whether a checked host can only be this machine."""
    if host.startswith("["):
        return IPv6Address(host[1:-1]).is_loopback
    try:
        return IPv4Address(host).is_loopback
    except AddressValueError:
        return host == "localhost"


def _rendered_base(provider: Provider, values: Mapping[str, str]) -> str:
    if provider.api_base_url is None:
        raise HostNotAllowedError(
            f"The provider {provider.name} has no api_base_url. Configure it, and allowed_hosts "
            "for further hosts."
        )
    try:
        return render_url(provider.api_base_url, values)
    except TemplateError as error:
        raise HostNotAllowedError(
            f"The api_base_url of provider {provider.name} cannot be used: {error}. Set the value "
            "on the connection, or connect again."
        ) from error


def _default(provider: Provider, values: Mapping[str, str]) -> tuple[str, ...]:
    """Return the list where none is configured: the host and port of ``api_base_url``."""
    base = _rendered_base(provider, values)
    if provider.api_base_url is not None and begins_with_origin(provider.api_base_url.text):
        # A reply would choose where the token goes.
        raise HostNotAllowedError(
            f"The api_base_url of provider {provider.name} begins with a value of a reply, so "
            "allowed_hosts must say which hosts are meant. Configure it."
        )
    found = read_target(base)
    return (f"{found.host}:{found.port}",)
