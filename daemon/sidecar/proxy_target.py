"""Where a proxied request goes: what stands behind ``/proxy`` in the path, read strictly. Pure.

The one hard idea: path and query go on byte for byte, so they are judged as any server behind
might read them: decoded once, twice, with ``;`` parameters. None of these readings may leave the
base path. ``%2F`` inside a segment stays as it is: many APIs have ids with a slash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote_to_bytes

from daemon.domain.allowed_hosts import HostNotAllowedError, Target, api_base, target
from daemon.domain.errors import Problem
from daemon.domain.provider import Provider

PREFIX = "/v1/connections/"
_PROXY = "proxy"
_BAD = re.compile(r"[^!-~]|[\\#]|%(?![0-9A-Fa-f]{2})")
_DOTS = re.compile(rb"(?:^|/)\.{1,2}(?:;[^/]*)?(?:/|\Z)")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f\\]")
# What is still encoded after so many times was not meant to be read.
_MOST_DECODINGS = 4


def split_proxy_path(raw_path: str) -> tuple[str, str, str] | None:
    """Return connection id, path below ``/proxy`` (empty, or from its ``/``) and query, all raw.

    ``None`` where the request target is not that of a proxied request.
    """
    if not raw_path.startswith(PREFIX):
        return None
    path, _, query = raw_path.partition("?")
    connection_id, _, rest = path[len(PREFIX) :].partition("/")
    name, slash, below = rest.partition("/")
    return (connection_id, slash + below, query) if name == _PROXY else None


def check_path(path: str) -> None:
    """Return where no reading of ``path`` leaves the place that it is put below.

    Raises:
        Problem: 400 ``bad_request``.
    """
    if _BAD.search(path) or path.startswith("//"):
        raise _bad_path()
    if "." not in path and "%" not in path:
        return
    decoded = path.encode("ascii")
    for _ in range(_MOST_DECODINGS):
        if _DOTS.search(decoded) or _CONTROL.search(decoded):
            raise _bad_path()
        before, decoded = decoded, unquote_to_bytes(decoded)
        if before == decoded:
            return
    raise _bad_path()


def check_query(query: str) -> None:
    """Return where a raw query holds nothing but printable ASCII.

    Raises:
        Problem: 400 ``bad_request``.
    """
    if re.search(r"[^!-~]|[\\#]", query):
        raise Problem(
            400,
            "bad_request",
            "The query holds characters that must be encoded. Write them as %XX.",
        )


def destination(provider: Provider, values: Mapping[str, str], origins: Sequence[str]) -> Target:
    """Return what a request's path is put below: ``api_base_url``, or another origin.

    ``origins`` are the values of ``Tokenward-Target``: none or one.

    Raises:
        Problem: 400 for several, 403 ``host_not_allowed``.
    """
    if len(origins) > 1:
        raise Problem(400, "bad_request", "Send the header Tokenward-Target once.")
    try:
        place = target(origins[0], provider, values) if origins else api_base(provider, values)
    except HostNotAllowedError as error:
        raise host_not_allowed(str(error)) from error
    if origins and place.path != "/":
        raise host_not_allowed(
            "Tokenward-Target takes an origin only, as https://HOST. Put the path behind /proxy."
        )
    return place


def prefix_of(place: Target) -> str:
    """Return the URL that a path (empty, or from its ``/``) is put behind."""
    return place.origin + place.path.partition("?")[0].rstrip("/")


def host_not_allowed(why: str) -> Problem:
    """Return the answer where a token may not go; nothing was sent."""
    return Problem(403, "host_not_allowed", why)


def _bad_path() -> Problem:
    return Problem(
        400,
        "bad_request",
        "The path behind /proxy must be printable ASCII with well-formed escapes, must not begin "
        "with //, and must not hold dot segments, backslashes or control characters, encoded or "
        "not.",
    )
