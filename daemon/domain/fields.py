"""Fields: what a person adds when connecting, such as a region or a subdomain.

Few, optional unless said otherwise, and never a secret: they are shown and stored as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from daemon.domain.templates import is_label

# A label or a path segment, not a text: what is longer has no business in a URL.
LONGEST_VALUE = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field as configured. ``enum`` empty: free text; ``pattern`` matches the whole value.

    ``in_host`` says that a URL has it in its host, so that a value must be one label of it.
    """

    name: str
    title: str
    help: str = ""
    enum: tuple[str, ...] = ()
    default: str | None = None
    pattern: re.Pattern[str] | None = None
    required: bool = False
    in_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldValues:
    """Values that passed, defaults included, and what is wrong with the others, by name."""

    values: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)


def check_fields(
    fields: Mapping[str, Field], given: Mapping[str, object], *, complete: bool
) -> FieldValues:
    """Check ``given`` against a provider's fields; pure.

    ``complete`` says that nobody will be asked any more: defaults are filled in, and a required
    field without a value is an error. White space around a value is dropped; an empty value is
    none. A name is in at most one of the two results.
    """
    values: dict[str, str] = {}
    known = ", ".join(fields) or "none"
    errors = {
        name: f"is not a field of this provider; there are: {known}"
        for name in given
        if name not in fields
    }
    for name, wanted in fields.items():
        value = given.get(name)
        value = value.strip() if isinstance(value, str) else value
        if value is None or value == "":
            value = wanted.default if complete else None
        if value is None:
            if complete and wanted.required:
                errors[name] = "is required"
        elif (reason := why_not(wanted, value)) is not None:
            errors[name] = reason
        else:
            values[name] = str(value)
    return FieldValues(values=values, errors=errors)


def why_not(wanted: Field, value: object) -> str | None:
    """Return why ``value`` cannot be used for a field, in words for the person who typed it."""
    if not isinstance(value, str):
        return "must be text"
    if len(value) > LONGEST_VALUE:
        return f"must be at most {LONGEST_VALUE} characters"
    if not value.isprintable():
        return "must not contain line breaks or other characters that cannot be seen"
    if value in {".", ".."}:
        return "must not be . or .."
    return _misfit(wanted, value)


def _misfit(wanted: Field, value: str) -> str | None:
    if wanted.enum and value not in wanted.enum:
        return f"must be one of {', '.join(wanted.enum)}"
    if wanted.pattern is not None and not wanted.pattern.fullmatch(value):
        return wanted.help or f"must match the pattern {wanted.pattern.pattern}"
    if wanted.in_host and not is_label(value):
        return (
            "must be one part of a host name: letters, digits and -, without dots, https:// or "
            "anything else of an address"
        )
    return None
