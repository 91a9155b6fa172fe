"""What an authenticated request carries beside what the caller sends: token and ``request`` values.

Pure. The provider's values win over the caller's of the same name, and the credential is added
last, in one place: where the configuration puts ``{access_token}``, else in ``Authorization``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlencode

from daemon.domain.errors import Problem
from daemon.domain.provider import BodyTemplate, Provider, RequestValues
from daemon.domain.templates import ACCESS_TOKEN, Template, TemplateError, render_text, text_of

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
TOKEN_NAMES = (ACCESS_TOKEN, "token.access_token")
"""The names by which a template says where the token goes."""
_PARAMETER = "access_token"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UTF_8 = frozenset({"", "utf-8", "utf8", "us-ascii"})


@dataclass(frozen=True, slots=True)
class Credential:
    """What proves the connection's grant to an API (RFC 6750 2.1)."""

    token_type: str
    access_token: str = field(repr=False)

    @property
    def authorization(self) -> str:
        """Return the ``Authorization`` header's value."""
        scheme = "Bearer" if self.token_type.lower() == "bearer" else self.token_type
        return f"{scheme} {self.access_token}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """Rendered values. ``body`` holds JSON values. All may hold the token."""

    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)


def added(provider: Provider, values: Mapping[str, str], credential: Credential) -> Added:
    """Return what is added to a request of ``provider``; ``values`` are by full name.

    Raises:
        Problem: 409 ``value_missing`` where a template's name has no value.
    """
    request = provider.request
    if not has_values(provider):
        return Added(headers={"Authorization": credential.authorization})
    names = {**values, **dict.fromkeys(TOKEN_NAMES, credential.access_token)}
    try:
        headers = {name: _header(name, text, names) for name, text in request.headers.items()}
        query = {name: render_text(text, names) for name, text in request.query.items()}
        body = {name: filled(each, names) for name, each in request.body.items()}
    except TemplateError as error:
        raise Problem(
            409,
            "value_missing",
            f"A value that provider {provider.name} needs in every request cannot be used: "
            f"{error}. Set the field on the connection, or connect again.",
        ) from error
    if not _places_the_token(request):
        headers["Authorization"] = credential.authorization
    return Added(headers=headers, query=query, body=body)


def has_values(provider: Provider) -> bool:
    """Tell whether anything but the token is added to requests."""
    request = provider.request
    return bool(request.headers or request.query or request.body)


def filled(body: BodyTemplate, names: Mapping[str, str]) -> Any:
    """Return a body template with values in it.

    Raises:
        TemplateError: a name has no value.
    """
    match body:
        case Template():
            return render_text(body, names)
        case dict():
            return {name: filled(member, names) for name, member in body.items()}
        case list():
            return [filled(member, names) for member in body]
        case _:
            return body


def merged_query(query: str, values: Mapping[str, str]) -> str:
    """Return an encoded query with ``values``; what the caller sent of the same names is dropped.

    Everything else stays byte for byte.
    """
    if not values:
        return query
    kept = query_without(query, values)
    new = [f"{quote(name, safe='')}={quote(text, safe='')}" for name, text in values.items()]
    return "&".join([*([kept] if kept else []), *new])


def query_without(query: str, names: Collection[str]) -> str:
    """Return an encoded query without the parameters of these names, the others byte for byte."""
    if not names:
        return query
    return "&".join(part for part in query.split("&") if part and _name_of(part) not in names)


def merged_body(body: bytes, content_type: str, values: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return a body with ``values`` merged into its JSON object or form, and its content type.

    An empty body without a type becomes a JSON object.

    Raises:
        Problem: 415 for other types, 400 where the body is not what its type says.
    """
    kind, charset = read_content_type(content_type)
    if charset in _UTF_8:
        if kind == FORM:
            return _merged_form(body, values), content_type
        if kind == JSON or kind.endswith("+json"):
            return _merged_json(body, values), content_type
        if not kind and not body:
            return _merged_json(b"{}", values), JSON
    raise Problem(
        415,
        "unsupported_media_type",
        "This provider's request values go into the body too, which works for JSON objects and "
        f"forms only. Send the body as {JSON} or {FORM}, in UTF-8.",
    )


def read_content_type(content_type: str) -> tuple[str, str]:
    """Return media type and charset in lower case; empty where they are not said."""
    kind, *parameters = content_type.lower().split(";")
    named = dict(part.strip().partition("=")[::2] for part in parameters)
    return kind.strip(), named.get("charset", "").strip('"')


def refuse_token_parameter(pairs: str, *, where: str) -> None:
    """Return where no ``access_token`` stands in an encoded query or form.

    RFC 6750 2 allows one method in a request, and the token is ours to add (2.3: never in a URL).

    Raises:
        Problem: 400 ``bad_request``.
    """
    if _PARAMETER not in pairs.lower() and "%" not in pairs and "+" not in pairs:
        return
    names = (_name_of(part).strip().lower() for part in re.split("[&;]", pairs))
    if _PARAMETER in names:
        raise Problem(
            400,
            "bad_request",
            f"The {where} holds access_token, but the token is added here, in one place only "
            "(RFC 6750 2). Remove it.",
        )


def _places_the_token(request: RequestValues) -> bool:
    """Tell whether the configuration itself says where the token goes."""
    if any(name.lower() == "authorization" for name in request.headers):
        return True
    templates = (*request.headers.values(), *request.query.values(), *_templates(request.body))
    return any(name in TOKEN_NAMES for template in templates for name in template.names)


def _templates(body: object) -> Iterable[Template]:
    match body:
        case Template():
            yield body
        case Mapping():
            for member in body.values():
                yield from _templates(member)
        case list():
            for member in body:
                yield from _templates(member)


def _header(name: str, template: Template, names: Mapping[str, str]) -> str:
    value = render_text(template, names)
    if _CONTROL.search(value):
        raise TemplateError(f"the header {name} would hold a control character")
    return value


def _name_of(part: str) -> str:
    name = part.partition("=")[0].replace("+", " ")
    return unquote_to_bytes(name).decode("utf-8", "replace")


def _merged_form(body: bytes, values: Mapping[str, Any]) -> bytes:
    texts = {name: text_of(value) for name, value in values.items()}
    missing = [name for name, text in texts.items() if text is None]
    if missing:
        raise Problem(
            415,
            "unsupported_media_type",
            f"This provider's request value {missing[0]} is no text and cannot stand in a form. "
            f"Send the body as {JSON}.",
        )
    names = {name.encode() for name in texts}
    kept = [part for part in body.split(b"&") if part and _raw_name(part) not in names]
    return b"&".join([*kept, urlencode(texts).encode()])


def _raw_name(part: bytes) -> bytes:
    return unquote_to_bytes(part.partition(b"=")[0].replace(b"+", b" "))


def _merged_json(body: bytes, values: Mapping[str, Any]) -> bytes:
    try:
        # Not orjson: it would refuse or round numbers that an API may take.
        parsed = json.loads(body or b"{}")
        if isinstance(parsed, dict):
            merged = _merged(parsed, values)
            return json.dumps(merged, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise Problem(400, "bad_request", "The body is not well-formed JSON.") from error
    raise Problem(
        415,
        "unsupported_media_type",
        "This provider's request values go into the body too, which must be a JSON object for "
        "that, as in {}.",
    )


def _merged(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(mine)
    for name, value in theirs.items():
        old = result.get(name)
        is_deep = isinstance(old, dict) and isinstance(value, dict)
        result[name] = _merged(old, value) if is_deep and old is not None else value
    return result
