"""The fields of a connect page: which are asked, what was typed, what is wrong with it. Pure.

What the connection's creator gave, or somebody typed at an earlier time, is known and not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from daemon.domain.connection import Connection
from daemon.domain.fields import Field, FieldValues, check_fields
from daemon.domain.provider import Provider, provider_for
from daemon.domain.templates import TemplateError

_MOST_FIELDS = 100
_ROOT = "fields."
# A value that may stand anywhere in a URL.
_FITS = "x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One field as a page asks it. ``value`` is what stands in it; ``error`` a whole sentence."""

    name: str
    title: str
    help: str
    choices: tuple[str, ...]
    value: str
    pattern: str | None
    is_required: bool
    has_default: bool
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ConnectForm:
    """The fields of one connection: ``known`` ones have a value already, ``asked`` ones do not."""

    provider: Provider
    known: Mapping[str, str]
    asked: tuple[Field, ...]

    @property
    def can_be_skipped(self) -> bool:
        """Tell whether nothing is left to fill in: each field that is asked has a default."""
        return all(field.default is not None for field in self.asked)

    @property
    def stated(self) -> tuple[tuple[str, str], ...]:
        """Return titles and values of what is known."""
        fields = self.provider.fields
        return tuple((fields[name].title, value) for name, value in self.known.items())

    @property
    def tenant(self) -> Provider | None:
        """Return the provider with the values that are known so far; ``None`` where some lack."""
        known = check_fields(self.provider.fields, self.known, complete=True).values
        return None if _misfit(self.provider, known) else provider_for(self.provider, known)

    def judge(self, typed: Mapping[str, str]) -> FieldValues:
        """Return all values of the connection, or what is wrong with those that were typed.

        What was typed for anything but the fields that are asked does not count.
        """
        answers = {field.name: typed.get(field.name, "") for field in self.asked}
        checked = check_fields(self.provider.fields, {**self.known, **answers}, complete=True)
        errors = dict(checked.errors)
        probe = {**dict.fromkeys(errors, _FITS), **checked.values}
        while (error := _misfit(self.provider, probe)) and _field_of(error) not in errors:
            name = _field_of(error)
            reason = str(error).removeprefix(f"{error.name} ")
            errors[name] = reason if name in checked.values else "is required"
            probe[name] = _FITS
        # In the order of the fields, as the page has them.
        ordered = {
            name: errors[name] for name in (*self.provider.fields, *errors) if name in errors
        }
        values = {name: value for name, value in checked.values.items() if name not in errors}
        return FieldValues(values=values, errors=ordered)

    def questions(
        self, typed: Mapping[str, str] | None = None, errors: Mapping[str, str] | None = None
    ) -> tuple[Question, ...]:
        """Return the fields to ask, with what was ``typed`` in them, else with their defaults."""
        return tuple(
            _question(
                field,
                value=(field.default or "") if typed is None else typed.get(field.name, ""),
                error=(errors or {}).get(field.name),
                is_required=field.required or self._is_needed(field),
            )
            for field in self.asked
        )

    def _is_needed(self, field: Field) -> bool:
        """Tell whether there is no URL without a value of this field, whatever is said of it."""
        others = {name: _FITS for name in self.provider.fields if name != field.name}
        error = None if field.default is not None else _misfit(self.provider, others)
        return error is not None and _field_of(error) == field.name


def connect_form(provider: Provider, connection: Connection) -> ConnectForm:
    """Return the form of a connection.

    A stored value that the configuration does not allow any more is asked for again.
    """
    fields = provider.fields
    stored = {name: value for name, value in connection.fields.items() if name in fields}
    known = dict(check_fields(fields, stored, complete=False).values)
    while (error := _misfit(provider, known)) is not None and _field_of(error) in known:
        del known[_field_of(error)]
    asked = tuple(field for name, field in fields.items() if name not in known)
    return ConnectForm(provider, known, asked)


def read_typed(body: str) -> dict[str, str]:
    """Return what a form's body says, each name once.

    Raises:
        ValueError: it is no such form.
    """
    pairs = parse_qsl(
        body,
        keep_blank_values=True,
        strict_parsing=bool(body),
        errors="strict",
        max_num_fields=_MOST_FIELDS,
    )
    typed = dict(pairs)
    if len(typed) != len(pairs):
        raise ValueError("a name is repeated")
    return typed


def _misfit(provider: Provider, values: Mapping[str, str]) -> TemplateError | None:
    """Return why the provider's URLs cannot be made of ``values``."""
    try:
        provider_for(provider, values)
    except TemplateError as error:
        return error
    return None


def _field_of(error: TemplateError) -> str:
    return (error.name or "").removeprefix(_ROOT)


def _question(field: Field, *, value: str, error: str | None, is_required: bool) -> Question:
    return Question(
        name=field.name,
        title=field.title,
        help=field.help,
        choices=field.enum,
        value=value,
        pattern=field.pattern.pattern if field.pattern and not field.help else None,
        is_required=is_required,
        has_default=field.default is not None,
        error=None if error is None else _sentence(field.title, error),
    )


def _sentence(title: str, error: str) -> str:
    """Return what is wrong as a sentence: some reasons are one already."""
    text = f"{title} {error}" if error.startswith(("is ", "must ")) else error
    return text if text.endswith((".", "!", "?")) else text + "."
