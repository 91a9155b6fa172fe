"""Fields: what a person adds when connecting, such as a region or a subdomain.

Few, optional unless said otherwise, and never a secret: they are shown and stored as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# A label or a path segment, not a text: what is longer has no business in a URL.
LONGEST_VALUE = 255
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field as configured. ``enum`` empty: free text; ``pattern`` matches the whole value."""

    name: str
    title: str
    help: str = ""
    enum: tuple[str, ...] = ()
    default: str | None = None
    pattern: re.Pattern[str] | None = None
    required: bool = False


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
    none.
    """
    values: dict[str, str] = {}
    errors: dict[str, str] = {}
    for name in given:
        if name not in fields:
            known = ", ".join(fields) or "none"
            errors[name] = f"is not a field of this provider; there are: {known}"
    for name, wanted in fields.items():
        value = given.get(name)
        if isinstance(value, str):
            value = value.strip()
        if value is None or value == "":
            if complete and wanted.default is not None:
                values[name] = wanted.default
            elif complete and wanted.required:
                errors[name] = "is required"
            continue
        reason = why_not(wanted, value)
        if reason is None and isinstance(value, str):
            values[name] = value
        else:
            errors[name] = reason or "must be text"
    return FieldValues(values=values, errors=errors)


def why_not(wanted: Field, value: object) -> str | None:
    """Return why ``value`` cannot be used for a field, in words for the person who typed it."""
    if not isinstance(value, str):
        return "must be text"
    if len(value) > LONGEST_VALUE:
        return f"must be at most {LONGEST_VALUE} characters"
    if _CONTROL.search(value):
        return "must not contain line breaks or other control characters"
    if wanted.enum and value not in wanted.enum:
        return f"must be one of {', '.join(wanted.enum)}"
    if wanted.pattern is not None and not wanted.pattern.fullmatch(value):
        return wanted.help or f"must match the pattern {wanted.pattern.pattern}"
    return None
