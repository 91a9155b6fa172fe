"""The fields of a provider: what a person adds when connecting (a region, a subdomain)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace

from daemon.config.reading import OpenSection, Reading
from daemon.config.schema import FIELD
from daemon.config.trail import Trail, render
from daemon.config.values import InvalidValueError, boolean, text
from daemon.domain.fields import Field, why_not
from daemon.domain.templates import ROOTS

# More is a form, and nobody fills one in just to connect.
MOST_FIELDS = 20
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)
# Roots of names in templates, and the name that stands for the access token.
_RESERVED = (*ROOTS, "access_token")
_SECRET = re.compile(r"password|passwd|passphrase|secret|api_?key|private_?key|(?:^|_)token(?:$|_)")
_LONGEST_TITLE = 100
_LONGEST_HELP = 500
_LONGEST_PATTERN = 300


def fields(reading: Reading, trail: Trail, value: object) -> dict[str, Field]:
    """Return the fields by name, in the order in which they are asked."""
    found = {
        name: _field(OpenSection(reading, place, entry, FIELD), name)
        for place, name, entry in reading.members(trail, value)
    }
    if len(found) > MOST_FIELDS:
        message = f"has more than {MOST_FIELDS} fields; ask only for what URLs and requests need"
        reading.find(trail, message)
    return found


def with_hosts(
    reading: Reading, trail: Trail, found: Mapping[str, Field], in_hosts: Mapping[str, str]
) -> dict[str, Field]:
    """Return the fields, with those marked that stand in the host of a URL.

    ``in_hosts`` has the key of such a URL by field. What the field offers must fit into it.
    """
    marked = {name: replace(each, in_host=name in in_hosts) for name, each in found.items()}
    for name, key in in_hosts.items():
        wanted = Field(name=name, title=name, in_host=True)
        places: list[tuple[Trail, str | None]] = [((*trail, name, "default"), found[name].default)]
        places += [((*trail, name, "enum", i), each) for i, each in enumerate(found[name].enum)]
        for place, offered in places:
            if offered is not None and why_not(wanted, offered) is not None:
                message = (
                    f"stands in the host of {key}, so it must be one part of a host name: letters, "
                    "digits and -"
                )
                reading.find(place, message)
    return marked


def _field(section: OpenSection, name: str) -> Field:
    reading = section.reading
    if not _NAME.fullmatch(name):
        message = (
            "a field's name must be 1 to 63 lower-case letters, digits or _, and begin with a "
            "letter"
        )
        reading.find(section.trail, message)
    elif name in _RESERVED:
        message = "is a name that templates use for something else; choose another for the field"
        reading.find(section.trail, message)
    elif _SECRET.search(name):
        message = "fields are shown and stored as they are; none should be a secret"
        reading.warn(section.trail, message)
    wanted = Field(
        name=name,
        title=section.get("title", _title, name.replace("_", " ").capitalize()),
        help=section.get("help", _help, ""),
        enum=section.each("enum", _choice),
        default=section.optional("default", _choice),
        pattern=section.optional("pattern", _pattern),
        required=section.get("required", boolean, default=False),
    )
    if section.raw("enum") == []:
        reading.find(section.at("enum"), "is an empty list; name the choices, or remove it")
    _check_offers(section, wanted)
    return wanted


def _check_offers(section: OpenSection, wanted: Field) -> None:
    """Find a default or a choice that nobody could use."""
    offers = [((*section.at("enum"), i), choice) for i, choice in enumerate(wanted.enum)]
    for place, choice in offers:
        if wanted.pattern is not None and not wanted.pattern.fullmatch(choice):
            section.reading.find(place, _no_match(section))
    default = wanted.default
    if default is None:
        return
    if wanted.enum and default not in wanted.enum:
        message = f"must be one of the choices in {render(section.at('enum'))}"
        section.reading.find(section.at("default"), message)
    if wanted.pattern is not None and not wanted.pattern.fullmatch(default):
        section.reading.find(section.at("default"), _no_match(section))


def _no_match(section: OpenSection) -> str:
    return f"does not match {render(section.at('pattern'))}, which is compared with the whole value"


def _choice(value: object) -> str:
    choice = text(value)
    if choice != choice.strip():
        raise InvalidValueError("must not begin or end with a space")
    if (reason := why_not(Field(name="", title=""), choice)) is not None:
        raise InvalidValueError(reason)
    return choice


def _title(value: object) -> str:
    return _shown(value, _LONGEST_TITLE)


def _help(value: object) -> str:
    return "" if value is None or value == "" else _shown(value, _LONGEST_HELP)


def _shown(value: object, longest: int) -> str:
    shown = text(value).strip()
    if not shown.isprintable() or not 0 < len(shown) <= longest:
        raise InvalidValueError(f"must be 1 to {longest} characters that can be seen")
    return shown


def _pattern(value: object) -> re.Pattern[str]:
    expression = text(value)
    if len(expression) > _LONGEST_PATTERN:
        raise InvalidValueError(f"must be at most {_LONGEST_PATTERN} characters")
    try:
        with warnings.catch_warnings():
            # Notations that may mean something else one day mean what they do now.
            warnings.simplefilter("ignore")
            return re.compile(expression)
    except (re.error, OverflowError, RecursionError):
        raise InvalidValueError(
            "is not a regular expression; an example is [a-z0-9-]{2,40}, compared with the whole "
            "value"
        ) from None
