"""The body of a token reply as members of RFC 6749 5.1 and 5.2, whatever wraps them. Pure.

The ``Content-Type`` is not asked: servers lie about it. A JSON object is tried first, then a form
(GitHub's default). Whatever could be read in two ways is not read at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl

from jmespath.exceptions import JMESPathError
from jmespath.parser import ParsedResult

_MEMBERS = ("access_token", "token_type", "expires_in", "refresh_token", "scope", "error")
# A form has no spaces, no controls and, unlike a page without white space, no angle brackets.
_FORM = re.compile(r"[!-;=?-~]+", re.ASCII)
_MAX_FORM_MEMBERS = 1_000
# What a selector's functions raise on values they were not made for.
_SELECTOR_ERRORS = (
    JMESPathError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
# int() refuses more than 4,300 digits with a plain ValueError: one silly number would make the
# whole reply unreadable.
_MAX_INTEGER_DIGITS = 25


def read_document(body: bytes, *, whole: bool) -> Mapping[str, object] | None:
    """Return the body of a token reply as an object, or ``None`` where unreadable.

    ``whole`` tells that the body's end was announced: without that a form may have been cut
    anywhere and still look complete, so it is not read. Members given twice make it unreadable.
    """
    try:
        text = body.decode("utf-8-sig").strip()
        return _json_object(text) if text.startswith("{") else _form(text) if whole else None
    except (ValueError, RecursionError):
        return None


def members_of(
    document: Mapping[str, object], selectors: Mapping[str, ParsedResult]
) -> Mapping[str, object]:
    """Return the members of RFC 6749 in a reply; absent ones are ``None``.

    ``selectors`` override where a member is found: one that finds nothing makes its member absent.
    """
    members = {name: document.get(name) for name in _MEMBERS}
    return members | {name: select(found, document) for name, found in selectors.items()}


def select(selector: ParsedResult, document: object) -> object:
    """Return what a selector finds; ``None`` where it finds nothing or cannot be applied."""
    try:
        found: object = selector.search(document)
    except _SELECTOR_ERRORS:
        return None
    return found


def json_value(data: bytes) -> object:
    """Read any JSON. Raises ValueError or RecursionError."""
    found: object = json.loads(data.decode("utf-8-sig"), parse_int=_integer)
    return found


def json_object(data: bytes) -> Mapping[str, object]:
    """Read a JSON object. Raises ValueError or RecursionError."""
    return _json_object(data.decode("utf-8"))


def _json_object(text: str) -> Mapping[str, object]:
    document = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - the text is wrong, not a type
    return document


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        _refuse_duplicates([name for name, _ in pairs])
    return members


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= _MAX_INTEGER_DIGITS else float(digits)


def _form(text: str) -> Mapping[str, object] | None:
    if not _FORM.fullmatch(text):
        return None
    pairs = parse_qsl(
        text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FORM_MEMBERS
    )
    _refuse_duplicates([name for name, _ in pairs])
    members: dict[str, object] = dict(pairs)
    return members if any(name in members for name in _MEMBERS) else None


def _refuse_duplicates(names: Sequence[str]) -> None:
    for name in _MEMBERS:
        if names.count(name) > 1:
            raise ValueError("a member is given twice")
