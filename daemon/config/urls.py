"""Which URLs the configuration accepts, and why the others are refused."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from urllib.parse import SplitResult, parse_qsl, urlsplit

from daemon.config.values import InvalidValueError, is_host_name, is_loopback, text
from daemon.domain.allowed_hosts import HostNotAllowedError, Target, read_target
from daemon.domain.templates import Template, TemplateError, parse_url_template, stand_in

# RFC 3986 characters and nothing else: urlsplit would silently drop tabs and line breaks.
_URL = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?:/|\Z)", re.IGNORECASE)
_NO_DOT_SEGMENT = "must not contain . or .. as a part of its path"
_LONGEST = 2000
_DATABASE_SCHEMES = frozenset({"postgresql", "postgres"})
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_DATABASE_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\[\]:@]+)(?::(?P<port>[^:]*))?")
_DATABASE_WORDS = (
    "must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE; write special characters in user and "
    "password as %XX"
)


def endpoint(value: object) -> str:
    """Return a provider's endpoint: secure, its own query kept (RFC 6749 3.1, 3.2).

    It may hold ``{field}``; which fields there are is not looked at here.
    """
    template = _template(text(value))
    parts = _secure(stand_in(template))
    if template.names and _DOT_SEGMENT.search(parts.path):
        raise InvalidValueError(_NO_DOT_SEGMENT)
    return template.text


def issuer(value: object) -> str:
    """Return an issuer identifier, byte for byte (RFC 8414 2: neither query nor fragment)."""
    url = endpoint(value)
    _without_query(url)
    return url


def public_url(value: object) -> str:
    """Return the base of the redirect URI, without its trailing slashes."""
    url = text(value)
    parts = _secure(url)
    _without_query(url)
    if _DOT_SEGMENT.search(parts.path):
        raise InvalidValueError(_NO_DOT_SEGMENT)
    return url.rstrip("/")


def return_url(value: object) -> str:
    """Return an exact URL, or a prefix that ends in ``/*``."""
    url = text(value)
    prefix = url.removesuffix("/*")
    if "*" in prefix:
        raise InvalidValueError("may have one *, at its end, after a slash: https://app.example/*")
    parts = _secure(prefix)
    if prefix != url:
        _without_query(prefix)
    if _DOT_SEGMENT.search(parts.path):
        raise InvalidValueError(_NO_DOT_SEGMENT)
    return url


def api_base_url(value: object) -> Template:
    """Return the URL that paths of an API are below, without its trailing slashes."""
    url = text(value)
    template = _template(url.rstrip("/"))
    _without_query(url)
    _api_target(stand_in(template))
    return template


def api_url(value: object) -> Template:
    """Return the full URL of one request to an API."""
    template = _template(text(value))
    _api_target(stand_in(template))
    return template


def api_path(value: object) -> Template:
    """Return the path (and query) of one request, to be put behind ``api_base_url``."""
    path = text(value)
    if not path.startswith("/") or path.startswith("//"):
        raise InvalidValueError("must be a path that begins with one slash: /me")
    template = _template(path)
    _api_target("https://x.example" + stand_in(template))
    return template


def webhook_url(value: object) -> str:
    """Return where events are posted to; its own query is kept."""
    url = text(value)
    if "{" in url or "}" in url:
        raise InvalidValueError("must not have braces: nothing is put into it; write them as %XX")
    _api_target(url)
    return url


def api_target(template: Template) -> Target | None:
    """Return where a checked URL template leads with harmless values; ``None`` where nowhere.

    Names of it in :func:`host_names`, and an origin that a reply gives, are not known yet.
    """
    try:
        return read_target(stand_in(template))
    except HostNotAllowedError:
        return None


def _template(url: str) -> Template:
    try:
        return parse_url_template(url)
    except TemplateError as error:
        raise InvalidValueError(str(error)) from None


def _api_target(url: str) -> None:
    """Refuse what is not secure, and what would be refused at every use (``allowed_hosts``)."""
    if _DOT_SEGMENT.search(_secure(url).path):
        raise InvalidValueError(_NO_DOT_SEGMENT)
    try:
        read_target(url)
    except HostNotAllowedError:
        raise InvalidValueError(
            "must have a host that every program reads alike: a plain name of letters, digits and "
            "-, or an address in its shortest form"
        ) from None


def query_names(url: str) -> frozenset[str]:
    """Return the names of the parameters in the query of ``url``."""
    query = urlsplit(url).query
    return frozenset(name for name, _ in parse_qsl(query, keep_blank_values=True))


def database_url(value: object) -> str:
    """Return a PostgreSQL URL; several hosts and a Unix socket directory are possible."""
    url = text(value)
    scheme, separator, rest = url.partition("://")
    if scheme not in _DATABASE_SCHEMES or not separator:
        raise InvalidValueError("must begin with postgresql://")
    if "#" in rest or any(character.isspace() for character in rest) or _BAD_ESCAPE.search(rest):
        raise InvalidValueError(_DATABASE_WORDS)
    place = rest.partition("?")[0].partition("/")[0]
    hosts = place.rpartition("@")[2]
    if place.count("@") > 1 or not all(_is_database_host(host) for host in hosts.split(",")):
        raise InvalidValueError(_DATABASE_WORDS)
    try:
        # Each by itself: Python refuses an IPv6 address that stands behind another host.
        for host in hosts.split(","):
            urlsplit(f"{scheme}://{place.removesuffix(hosts)}{host}")
    except ValueError:
        raise InvalidValueError(_DATABASE_WORDS) from None
    return url


def has_password(url: str) -> bool:
    """Tell whether a database URL carries a password."""
    place = url.partition("://")[2].partition("?")[0].partition("/")[0]
    user = place.rpartition("@")[0]
    query = parse_qsl(url.partition("?")[2], keep_blank_values=True)
    return ":" in user or "password" in dict(query)


def _is_database_host(host: str) -> bool:
    if not host:
        return True
    match = _DATABASE_HOST.fullmatch(host)
    return match is not None and (match["port"] is None or _is_port(match["port"]))


def _is_port(port: str) -> bool:
    return _PORT.fullmatch(port) is not None and 0 < int(port) <= 65535  # noqa: PLR2004 - highest


def _secure(url: str) -> SplitResult:
    """Return the parts of an absolute URL that is https, or http to this machine."""
    if len(url) > _LONGEST:
        raise InvalidValueError(f"is longer than {_LONGEST} characters")
    if not _URL.fullmatch(url) or _BAD_ESCAPE.search(url):
        raise InvalidValueError(
            "must be a URL of ASCII characters without spaces; write others as %XX, and host names "
            "in their xn-- form"
        )
    parts, host = _split(url)
    if "@" in parts.netloc:
        raise InvalidValueError("must not contain a user name or password before the host")
    if "#" in url:
        raise InvalidValueError("must not have a fragment (#…)")
    if not host:
        raise InvalidValueError("must be a full URL with a valid host: https://HOST/…")
    if parts.scheme == "http" and not is_loopback(host):
        raise InvalidValueError(
            "must be https; http is allowed for localhost and loopback addresses only"
        )
    return parts


def _split(url: str) -> tuple[SplitResult, str]:
    """Return the parts and the host; an empty host where it, the port or the scheme is wrong."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidValueError("must be a URL with a valid host and port") from None
    if parts.scheme not in {"http", "https"} or not url.startswith(f"{parts.scheme}://"):
        raise InvalidValueError("must be a full URL that begins with https://")
    if port == 0 or parts.netloc.endswith(":"):
        raise InvalidValueError("must be a URL with a valid host and port")
    host = parts.hostname or ""
    return parts, host if _is_host(host) else ""


def _is_host(host: str) -> bool:
    if is_host_name(host.removesuffix(".")):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return not (isinstance(address, IPv6Address) and address.scope_id)


def _without_query(url: str) -> None:
    if "?" in url:
        raise InvalidValueError("must not have a query (?…)")
