"""Where a finished authorization may send a browser: only where the configuration says.

Whoever may choose a redirect's target freely can lend this service's name to a phishing page
(RFC 9700 4.11). So a URL either stands in the list or lies below an entry that ends in ``/*``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from daemon.domain.connection import Connection
from daemon.oauth.query import with_query

_LONGEST = 2048
# Printable ASCII without space, quotes that end an attribute, angle brackets, and the backslash,
# which browsers read as a slash. They also drop tabs and line breaks wherever those stand.
_URL = re.compile(r"https?://[!#-;=?-\[\]-~]+", re.ASCII)
_PREFIX_MARK = "/*"
# More layers of percent-encoding than any server peels off by mistake.
_MOST_DECODINGS = 4


def is_allowed(url: str, return_urls: Iterable[str]) -> bool:
    """Tell whether ``url`` is one of ``return_urls``, byte for byte, or lies below one of them.

    An entry that ends in ``/*`` allows every URL which begins with what stands before the ``*``
    and whose path, however it is decoded, does not climb out again. Only absolute ``http`` and
    ``https`` URLs without userinfo ever match.
    """
    if len(url) > _LONGEST or _URL.fullmatch(url) is None or "@" in _authority(url):
        return False
    return any(
        _is_below(url, entry) if entry.endswith(_PREFIX_MARK) else url == entry
        for entry in return_urls
    )


def with_outcome(return_url: str, connection: Connection) -> str:
    """Return ``return_url`` with ``connection`` and ``status`` in its query, each once."""
    return with_query(return_url, {"connection": connection.id, "status": connection.status.value})


def _is_below(url: str, entry: str) -> bool:
    prefix = entry.removesuffix("*")
    if _URL.fullmatch(prefix) is None or not _authority(prefix):
        return False
    return url.startswith(prefix) and not _climbs(url)


def _authority(url: str) -> str:
    """Return what stands between ``//`` and the next delimiter, as a browser would see it."""
    return re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]


def _climbs(url: str) -> bool:
    """Tell whether a path has a dot segment after any number of decodings.

    ``;x`` counts as part of neither, for some servers cut path parameters off first.
    """
    path = urlsplit(url).path
    for _ in range(_MOST_DECODINGS):
        segments = re.split(r"[/\\]", path)
        if any(segment.partition(";")[0] in {".", ".."} for segment in segments):
            return True
        decoded = unquote(path)
        if decoded == path:
            return False
        path = decoded
    return True
