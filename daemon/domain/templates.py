"""Text with ``{name}`` in it: ``{region}``, ``{fields.region}``, ``{token.instance_url}``, ….

The one hard idea: where a value lands decides what it may be. In a host it is part of one label, in
a path of one segment, in a query of one value; so no value can move a request to another host,
port, path or parameter. Only a reply's value that begins a URL is a whole origin.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

ROOTS = ("fields", "token", "me", "callback")
# ``{access_token}`` and ``{token.access_token}``, by which headers and queries of ``request`` and
# ``test`` say where the token goes: a value under either name serves both.
ACCESS_TOKEN = "fields.access_token"
ACCESS_TOKENS = frozenset({ACCESS_TOKEN, "token.access_token"})
_STEP = r"[A-Za-z_][A-Za-z0-9_-]*"
NAME = re.compile(rf"{_STEP}(?:\.{_STEP}|\[[0-9]{{1,4}}\])*", re.ASCII)
_PLACE = re.compile(r"\{(" + NAME.pattern + r")\}", re.ASCII)
_STEPS = re.compile(rf"({_STEP})|\[([0-9]+)\]", re.ASCII)
# One label of a host name (RFC 1123 2.1): no dot, so it cannot become another host.
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_LONGEST_LABEL, _LONGEST_HOST = 63, 253
# What must follow the last placeholder in a host: the end of its label, and a domain of two labels
# that is no number. Names below localhost are this machine's (RFC 6761 6.3).
_DOMAIN = re.compile(
    r"[A-Za-z0-9_.-]*\.(?:[A-Za-z0-9_-]+\.[A-Za-z_][A-Za-z0-9_-]*|localhost)\.?(?::[0-9]{1,5})?",
    re.ASCII,
)
_IN_HOST = re.compile(r"[A-Za-z0-9_.-]*", re.ASCII)
# No user, query or fragment, and of each other part only what every reader reads alike.
_ORIGIN = re.compile(
    rf"https?://{_LABEL.pattern}(?:\.{_LABEL.pattern})*(?::[0-9]{{1,5}})?"
    r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?",
    re.ASCII,
)
_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?=/|\Z)", re.IGNORECASE)
# Header and line breaks, and what neither UTF-8 nor PostgreSQL can hold.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# No name, id, region or URL of an account is longer; a document that is has no place in a URL.
_LONGEST_VALUE = 4096
_MOST_BITS = 256
# Up to here a float is exactly the whole number that it looks like.
_LARGEST_EXACT = 2**53
_LONGEST_LABEL_TEXT = 200
# Stands where a label has no value, until what only surrounded it is gone, too.
_GAP = "\x00"
_EMPTY_BRACKETS = re.compile(rf"[(\[<][\s{_GAP}]*{_GAP}[\s{_GAP}]*[)\]>]")
_JOINTS = " \t-\u2013\u2014/|,:;\u00b7"
_SPACES = re.compile(r"\s+")


class TemplateError(Exception):
    """A template cannot be used, or not with these values. The text never holds a value."""

    def __init__(self, message: str, *, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. ``names`` are full (``fields.region`` for a bare ``{region}``)."""

    text: str
    names: tuple[str, ...] = ()


def parse_template(text: str) -> Template:
    """Return a template of plain text: only ``{name}`` is a placeholder, other braces are text."""
    return Template(text, tuple(dict.fromkeys(full_name(name) for name in _PLACE.findall(text))))


def parse_url_template(text: str) -> Template:
    """Return a template of a URL, or of a path, in which every brace must belong to a ``{name}``.

    What is wrong with a URL in other ways is not looked at (:func:`stand_in` makes it checkable).

    Raises:
        TemplateError: a brace is no placeholder, or a placeholder stands where none may: in the
            scheme, the port, before the host, in the host's last two labels, or in the name of a
            query parameter.
    """
    template = parse_template(text)
    rest = _PLACE.sub("", text)
    if "{" in rest or "}" in rest:
        raise TemplateError(
            "has a brace that is not part of a {name}; write a name of letters, digits, _ and - "
            "between two braces, or %7B and %7D for the braces themselves"
        )
    if template.names:
        _check_places(text)
    return template


def _check_places(text: str) -> None:
    before, _, query = text.partition("?")
    if "#" in text:
        raise TemplateError("must not have a fragment (#…)")
    if any("{" in part.partition("=")[0] for part in query.split("&")):
        raise TemplateError(
            "must not have a {name} in the name of a query parameter; write NAME={name}"
        )
    if before.startswith("/") and not before.startswith("//"):
        return
    if begins_with_origin(text):
        _check_after_origin(before)
        return
    scheme, separator, after = before.partition("://")
    if not separator or "{" in scheme:
        raise TemplateError(
            "must begin with https://; only a value of a reply, such as {token.instance_url}, may "
            "stand for the beginning of a URL"
        )
    _check_authority(after.partition("/")[0])


def begins_with_origin(text: str) -> bool:
    """Tell whether a reply's value, and not the template, says which host is meant."""
    match = _PLACE.match(text)
    return match is not None and not full_name(match[1]).startswith("fields.")


def _check_after_origin(before: str) -> None:
    rest = before[before.index("}") + 1 :]
    if rest and (not rest.startswith("/") or rest.startswith("//")):
        raise TemplateError(
            "must go on with a / after the {name} that it begins with, or end there: what follows "
            "directly would become a part of the host"
        )


def _check_authority(authority: str) -> None:
    *before, tail = _PLACE.split(authority)[::2]
    if not before:
        return
    if not _DOMAIN.fullmatch(tail) or not all(_IN_HOST.fullmatch(part) for part in before):
        raise TemplateError(
            "must not have a {name} in the last two labels of its host, in its port or before an "
            "@: a value may choose a label, never a domain"
        )


def host_names(template: Template) -> tuple[str, ...]:
    """Return the names that stand in the host of a URL template, where a value must be a label."""
    path_at, _ = _bounds(template.text)
    places = _PLACE.finditer(template.text, 0, path_at)
    return tuple(dict.fromkeys(full_name(place[1]) for place in places))


def stand_in(template: Template) -> str:
    """Return a URL template with harmless values in it, for the checks of a whole URL."""
    origin = "https://x.example" if begins_with_origin(template.text) else None
    return _fill(template.text, lambda _, at: origin if origin and not at else "x")


def full_name(name: str) -> str:
    """Return the name with its root: a bare name is a field's."""
    root = name.partition(".")[0].partition("[")[0]
    return name if root in ROOTS and root != name else f"fields.{name}"


def look_up(name: str, documents: Mapping[str, Any]) -> str | None:
    """Return the text of what ``name`` leads to in ``documents``; ``None`` where nothing is there.

    ``documents`` has an entry for each root. Objects and lists are no text.
    """
    value: Any = documents
    for key, index in _STEPS.findall(name):
        if key:
            value = value.get(key) if isinstance(value, Mapping) else None
        else:
            place = int(index)
            value = value[place] if isinstance(value, list) and place < len(value) else None
    return text_of(value)


def text_of(value: object) -> str | None:
    """Return a scalar as text; ``None`` where it is none, or empty, or no text of any use.

    Of no use is what is not finite, longer than 4096 characters, or cannot be stored: a NUL, half
    of a surrogate pair. A whole number is written as one, however it came.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if value.bit_length() <= _MOST_BITS else None
        case float() if math.isfinite(value):
            is_whole = value.is_integer() and abs(value) < _LARGEST_EXACT
            return str(int(value)) if is_whole else str(value)
        case str() if len(value) <= _LONGEST_VALUE and not _UNSTORABLE.search(value):
            return value or None
        case _:
            return None


def render_label(template: Template, values: Mapping[str, str]) -> str | None:
    """Return a template as one line for people, at most 200 characters.

    What is missing leaves neither empty brackets nor a dangling separator behind; what cannot be
    seen is dropped. ``None`` where none of its names has a value.
    """
    if template.names and not any(values.get(name) for name in template.names):
        return None
    text = _fill(template.text, lambda name, _: _visible(values.get(name) or "") or _GAP)
    filled = _EMPTY_BRACKETS.sub(_GAP, text)
    line = _SPACES.sub(" ", filled.replace(_GAP, " ")).strip()
    if _GAP in filled:
        line = line.strip(_JOINTS)
    if len(line) > _LONGEST_LABEL_TEXT:
        line = line[: _LONGEST_LABEL_TEXT - 1].rstrip() + "…"
    return line or None


def _visible(value: str) -> str:
    """Return ``value`` without what breaks a line, a terminal or the order of reading."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else ""
        for character in value
    ).strip()


def render_text(template: Template, values: Mapping[str, str]) -> str:
    """Return a template as plain text, for a header or a body.

    Raises:
        TemplateError: a name has no value, or one with line breaks or other control characters.
    """
    return _fill(template.text, lambda name, _: _value(name, values))


def render_url(template: Template, values: Mapping[str, str]) -> str:
    """Return a template (of :func:`parse_url_template`) as a URL, its values percent-encoded.

    Scheme, port, number of path segments and names of query parameters are the template's, and so
    is the host but for the labels that hold a name. Where a reply's value begins it, scheme, host,
    port and first segments are that value's: the caller must look at where it leads.

    Raises:
        TemplateError: a name has no value, or one that may not stand where it is wanted.
    """
    text = template.text
    path_at, query_at = _bounds(text)

    def fill(name: str, at: int) -> str:
        value = _value(name, values)
        if at == 0 and not name.startswith("fields."):
            return _origin(name, value)
        if at < path_at:
            return _label(name, value)
        return quote(value, safe="") if at > query_at else _segment(name, value)

    url = _fill(text, fill)
    if host_names(template):
        _check_host(url)
    return url


def _bounds(text: str) -> tuple[int, int]:
    """Return where the path of a URL or path begins, and where its query does."""
    end = len(text)
    query_at = text.find("?") if "?" in text else end
    scheme_at = text.find("://", 0, query_at)
    if scheme_at < 0 or text.startswith(("/", "{")):
        return 0, query_at
    path_at = text.find("/", scheme_at + 3, query_at)
    return (query_at if path_at < 0 else path_at), query_at


def _fill(text: str, value_of: Callable[[str, int], str]) -> str:
    return _PLACE.sub(lambda match: value_of(full_name(match[1]), match.start()), text)


def _value(name: str, values: Mapping[str, str]) -> str:
    value = values.get(name)
    if name in ACCESS_TOKENS:
        value = next((values[each] for each in ACCESS_TOKENS if values.get(each)), None)
    if not value:
        raise TemplateError(f"{_shown(name)} has no value", name=name)
    if _CONTROL.search(value):
        raise TemplateError(
            f"{_shown(name)} must not contain line breaks or other control characters", name=name
        )
    return value


def _shown(name: str) -> str:
    return f"the field {name.removeprefix('fields.')}" if name.startswith("fields.") else name


def is_label(value: str) -> bool:
    """Tell whether ``value`` may stand in a host: one label of letters, digits and ``-``."""
    return _LABEL.fullmatch(value) is not None


def _label(name: str, value: str) -> str:
    if not is_label(value):
        raise TemplateError(
            f"{_shown(name)} must be one part of a host name: letters, digits and -, without dots",
            name=name,
        )
    return value.lower()


def _segment(name: str, value: str) -> str:
    if value in {".", ".."}:
        raise TemplateError(f"{_shown(name)} must not be . or ..", name=name)
    return quote(value, safe="")


def _origin(name: str, value: str) -> str:
    """Return a URL that a provider gave us to build on, as Salesforce's ``instance_url``."""
    if not _ORIGIN.fullmatch(value) or _DOT_SEGMENT.search(value):
        raise TemplateError(
            f"{_shown(name)} must be a URL without user, query or fragment", name=name
        )
    return value.rstrip("/")


def _check_host(url: str) -> None:
    """Refuse a host that several values together made too long for DNS (RFC 1035 2.3.4)."""
    host = url.partition("://")[2].partition("/")[0].partition("?")[0].partition(":")[0]
    if len(host) > _LONGEST_HOST or any(len(part) > _LONGEST_LABEL for part in host.split(".")):
        raise TemplateError("the values in the host make it longer than a host name may be")
