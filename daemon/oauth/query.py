"""Query strings and forms of the authorization endpoint's two directions (RFC 6749 appendix B).

Building keeps what stands in an endpoint's own query byte for byte; reading accepts only
well-formed input and decodes strictly, so nothing ambiguous gets past this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote_plus, unquote_to_bytes, urlsplit, urlunsplit

# A form-encoded string holds printable ASCII only, and every "%" is followed by two hex digits.
_WELL_FORMED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*", re.ASCII)


def with_query(url: str, params: Mapping[str, str]) -> str:
    """Return ``url`` with ``params`` in its query, percent-encoded as UTF-8.

    The query that ``url`` already has is kept as it is (RFC 6749 3.1), less the parameters that
    ``params`` sets, for none may come twice. A fragment stays behind the query.
    """
    parts = urlsplit(url)
    kept = [
        segment
        for segment in parts.query.split("&")
        if segment and unquote_plus(segment.partition("=")[0]) not in params
    ]
    # %20 and not "+": every form decoder reads both, some servers' plain URI decoders only one.
    added = [f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in params.items()]
    return urlunsplit(parts._replace(query="&".join(kept + added)))


def is_well_formed(raw: str) -> bool:
    """Tell whether ``raw`` can be form-encoded: printable ASCII, no space, no bad escape."""
    return _WELL_FORMED.fullmatch(raw) is not None


def raw_pairs(raw: str) -> Iterator[tuple[str, str]]:
    """Yield names, decoded leniently, and values, still encoded, of a well-formed string."""
    for segment in raw.split("&"):
        name, _, value = segment.partition("=")
        if segment:
            yield unquote_plus(name), value


def decode(value: str) -> str | None:
    """Return a value decoded, or ``None`` where it is not UTF-8 or holds a control character."""
    try:
        text = unquote_to_bytes(value.replace("+", " ")).decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None
