"""Text with ``{name}`` in it: ``{region}``, ``{fields.region}``, ``{token.instance_url}``, ….

The one hard idea: where a value lands decides what it may be. In a host it is one label, in a path
one segment, in a query one value; so no value can move a request to another host or place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

ROOTS = ("fields", "token", "me", "callback")
_STEP = r"[A-Za-z_][A-Za-z0-9_-]*"
NAME = re.compile(rf"{_STEP}(?:\.{_STEP}|\[[0-9]{{1,4}}\])*", re.ASCII)
_PLACE = re.compile(r"\{(" + NAME.pattern + r")\}", re.ASCII)
_STEPS = re.compile(rf"({_STEP})|\[([0-9]+)\]", re.ASCII)
# One label of a host name (RFC 1123 2.1): no dot, so it cannot become another host.
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_ORIGIN = re.compile(r"https?://[^/?#@\\\s]+(?:/[^?#\\\s]*)?", re.ASCII)
# What is left of "({me.email})" where there is no email, and of the space before it.
_EMPTY_BRACKETS = re.compile(r"\(\s*\)|\[\s*\]|<\s*>")
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
    """Return a template of a URL, in which every brace must belong to a ``{name}``.

    Raises:
        TemplateError: a brace is no placeholder, or a placeholder stands where none may: in the
            scheme, the port, before the host, or in the host's last two labels.
    """
    template = parse_template(text)
    rest = _PLACE.sub("", text)
    if "{" in rest or "}" in rest:
        raise TemplateError("holds a brace that is not a {name}")
    if _starts_with_origin(text):
        return template
    scheme, separator, after = text.partition("://")
    if "{" in scheme or not separator:
        if "{" in scheme and separator:
            raise TemplateError("must not have a {name} in its scheme")
        return template
    _check_authority(re.split(r"[/?#]", after, maxsplit=1)[0])
    return template


def _starts_with_origin(text: str) -> bool:
    match = _PLACE.match(text)
    return match is not None and not full_name(match[1]).startswith("fields.")


def _check_authority(authority: str) -> None:
    last = authority.rfind("}")
    if last < 0:
        return
    tail = authority[last + 1 :]
    labels = [label for label in tail.partition(":")[0].split(".")[1:] if label]
    is_local = labels[-1:] == ["localhost"]
    if "." not in tail or not (len(labels) > 1 or is_local):
        raise TemplateError(
            "must not have a {name} in the last two labels of its host or in its port: a value "
            "may choose a label, never a domain"
        )


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
    """Return a scalar as text; ``None`` where it is none, or empty."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            return value or None
        case _:
            return None


def render_label(template: Template, values: Mapping[str, str]) -> str | None:
    """Return a template as text for people: what is missing leaves no empty brackets behind.

    ``None`` where none of its names has a value.
    """
    if template.names and not any(values.get(name) for name in template.names):
        return None
    text = _fill(template.text, lambda name, _: values.get(name, ""))
    text = _SPACES.sub(" ", _EMPTY_BRACKETS.sub("", text)).strip()
    return text or None


def render_text(template: Template, values: Mapping[str, str]) -> str:
    """Return a template as plain text, for a header or a body.

    Raises:
        TemplateError: a name has no value.
    """
    return _fill(template.text, lambda name, _: _value(name, values))


def render_url(template: Template, values: Mapping[str, str]) -> str:
    """Return a template as a URL: values are percent-encoded for the place where they stand.

    Raises:
        TemplateError: a name has no value, or one that may not stand where it is wanted.
    """
    text = template.text

    def fill(name: str, at: int) -> str:
        value = _value(name, values)
        before = text[:at]
        if at == 0 and not name.startswith("fields."):
            return _origin(name, value)
        if "?" in before:
            return quote(value, safe="")
        if "://" in before and "/" not in before.partition("://")[2]:
            return _label(name, value)
        return _segment(name, value)

    return _fill(text, fill)


def _fill(text: str, value_of: Callable[[str, int], str]) -> str:
    return _PLACE.sub(lambda match: value_of(full_name(match[1]), match.start()), text)


def _value(name: str, values: Mapping[str, str]) -> str:
    value = values.get(name)
    if not value:
        raise TemplateError(f"{name} has no value", name=name)
    return value


def _label(name: str, value: str) -> str:
    if not _LABEL.fullmatch(value):
        raise TemplateError(
            f"{name} must be one label of a host name: letters, digits and -", name=name
        )
    return value.lower()


def _segment(name: str, value: str) -> str:
    if value in {".", ".."}:
        raise TemplateError(f"{name} must not be . or ..", name=name)
    return quote(value, safe="")


def _origin(name: str, value: str) -> str:
    """Return a URL that a provider gave us to build on, as Salesforce's ``instance_url``."""
    try:
        parts = urlsplit(value)
        host, _port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or not _ORIGIN.fullmatch(value):
        raise TemplateError(f"{name} must be a URL without user, query or fragment", name=name)
    return value.rstrip("/")
