"""Headers, query and body of the requests that carry a token: maps of templates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from daemon.config.names import Names, Use
from daemon.config.reading import OpenSection
from daemon.config.trail import Trail
from daemon.config.values import InvalidValueError, text
from daemon.domain.provider import BodyTemplate
from daemon.domain.templates import ACCESS_TOKENS, Template, parse_template

# What belongs to the connection and not to the request (RFC 9110 7.6.1), or says whose it is.
_CONNECTION_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_COOKIES = frozenset({"cookie", "cookie2", "set-cookie", "set-cookie2"})
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", re.ASCII)  # token of RFC 9110 5.6.2
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_FORM = "application/x-www-form-urlencoded"
_MOST_HEADERS = 50
# A body of settings, not of data; also the end of YAML aliases that multiply.
_MOST_VALUES = 500
_DEEPEST = 20


def headers(section: OpenSection, names: Names, use: Use) -> dict[str, Template]:
    """Return the headers under ``headers``; none that transport or callers depend on."""
    found = _templates(section, "headers", _header, names=names, use=use)
    reading, spelled = section.reading, dict[str, str]()
    for name, template in found.items():
        trail = (*section.at("headers"), name)
        if (first := spelled.setdefault(name.lower(), name)) != name:
            reading.find(trail, f"is the same header as {first}; remove one of them")
        if (problem := _header_problem(name, template)) is not None:
            reading.find(trail, problem)
    if len(found) > _MOST_HEADERS:
        reading.find(section.at("headers"), f"has more than {_MOST_HEADERS} headers")
    return found


def query(section: OpenSection, names: Names, use: Use) -> dict[str, Template]:
    """Return the query parameters under ``query``."""
    found = _templates(section, "query", _parameter, names=names, use=use)
    if "" in found:
        section.reading.find((*section.at("query"), ""), "a parameter must have a name")
    return found


def body(section: OpenSection, names: Names, use: Use) -> BodyTemplate:
    """Return the JSON value under ``body``, its texts as templates."""
    return _Body(section, names, use).value(section.at("body"), section.raw("body"), 0)


def members(section: OpenSection, names: Names, use: Use) -> dict[str, BodyTemplate]:
    """Return the members under ``body``, which join those of a JSON object or form."""
    found = _Body(section, names, use)
    trail = section.at("body")
    return {
        name: found.value(place, member, 1)
        for place, name, member in section.reading.members(trail, section.raw("body"))
    }


def is_form(found: Mapping[str, Template]) -> bool:
    """Tell whether headers say that the body is a form."""
    types = (value.text for name, value in found.items() if name.lower() == "content-type")
    return any(each.partition(";")[0].strip().lower() == _FORM for each in types)


def is_flat(value: BodyTemplate) -> bool:
    """Tell whether a body can be written as a form."""
    if not isinstance(value, dict):
        return False
    return not any(isinstance(member, dict | list) for member in value.values())


def _templates(
    section: OpenSection,
    key: str,
    reader: Callable[[object], str],
    *,
    names: Names,
    use: Use,
) -> dict[str, Template]:
    found: dict[str, Template] = {}
    for trail, name, value in section.reading.members(section.at(key), section.raw(key)):
        read = section.reading.read(trail, value, reader)
        if read is not None:
            found[name] = parse_template(read)
            names.check(trail, found[name], use)
    return found


def _header_problem(name: str, template: Template) -> str | None:
    folded = name.lower()
    if not _HEADER_NAME.fullmatch(name):
        return "a header's name must be letters, digits and -, without spaces"
    if folded in _CONNECTION_HEADERS:
        return "is set by tokenward itself for each connection; remove it"
    if folded in _COOKIES:
        return "cookies are never sent with a token; remove it"
    if folded.startswith("tokenward-"):
        return "is a header between callers and tokenward; remove it"
    if folded == "authorization" and not ACCESS_TOKENS.intersection(template.names):
        return (
            "is Bearer and the access token by itself; remove it, or write the token into it: "
            '"token {access_token}"'
        )
    return None


def _header(value: object) -> str:
    header = _scalar(value)
    if not _HEADER_VALUE.fullmatch(header):
        raise InvalidValueError(
            "must be printable ASCII without spaces around it, and not empty: it is a header"
        )
    return header


def _parameter(value: object) -> str:
    return "" if value == "" else _scalar(value)


def _scalar(value: object) -> str:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else text(value)


class _Body:
    """Reads one body and counts its values."""

    def __init__(self, section: OpenSection, names: Names, use: Use) -> None:
        self._reading = section.reading
        self._names = names
        self._use = use
        self._left = _MOST_VALUES
        self._is_full = False

    def value(self, trail: Trail, value: object, depth: int) -> BodyTemplate:
        """Return ``value`` as a body; ``None`` and a finding where it cannot be one."""
        if self._left == 0 or depth > _DEEPEST:
            if not self._is_full:
                message = f"must hold at most {_MOST_VALUES} values, at most {_DEEPEST} levels deep"
                self._reading.find(trail, message)
            self._is_full = True
            return None
        self._left -= 1
        if isinstance(value, Mapping):
            entries = self._reading.members(trail, value)
            return {name: self.value(place, each, depth + 1) for place, name, each in entries}
        if isinstance(value, list | tuple):
            found = self._reading.entries(trail, value)
            return [self.value(place, each, depth + 1) for place, each in found]
        return self._leaf(trail, value)

    def _leaf(self, trail: Trail, value: object) -> BodyTemplate:
        if value is None or isinstance(value, bool | int | float):
            return value
        if not isinstance(value, str) or _CONTROL.search(value):
            self._reading.find(trail, "must be text without control characters, or a JSON value")
            return None
        template = parse_template(value)
        self._names.check(trail, template, self._use)
        return template
