"""[test] The request that tells whether a token works and whose it is: what is sent and when. Pure.

It looks like every authenticated request of its provider, and goes only where those may go.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

from daemon.domain.allowed_hosts import api_base, target
from daemon.domain.provider import BodyTemplate, Provider, TestRequest
from daemon.domain.templates import (
    ACCESS_TOKEN,
    ACCESS_TOKENS,
    Template,
    render_text,
    render_url,
    text_of,
)
from daemon.oauth.api_session import ApiRequest
from daemon.oauth.query import with_query
from daemon.oauth.token_request import USER_AGENT

_T = TypeVar("_T", Template, BodyTemplate)

_JSON, _FORM, _TEXT = (
    "application/json",
    "application/x-www-form-urlencoded",
    "text/plain; charset=utf-8",
)
_SPREAD = 0.1


def request_for(
    provider: Provider, test: TestRequest, *, access_token: str, values: Mapping[str, str]
) -> ApiRequest:
    """Return the test request of a connection, as every authenticated request of its provider.

    ``values`` are by full name (``fields.region``, ``token.instance_url``). What ``test`` says
    wins over what ``provider.request`` says; of that, what only this test's own reply will tell
    (``me.``) is left out. The token goes where either puts ``{access_token}``, else into
    ``Authorization``.

    Raises:
        TemplateError: a name has no value, or one that may not stand where it is wanted.
        HostNotAllowedError: the URL is not on the provider's list.
    """
    names = {**values, ACCESS_TOKEN: access_token}
    url = _url(provider, test, names)
    queries = {**_known(provider.request.query, names), **test.query}
    query = {name: render_text(template, names) for name, template in queries.items()}
    templates = _header_templates(provider, test, names)
    headers = _headers(templates, names)
    body: BodyTemplate = test.body
    if isinstance(body, dict):
        body = {**_known(provider.request.body, names), **body}
    if not any(_places_token(each) for each in (templates, queries, body)):
        headers["Authorization"] = f"Bearer {access_token}"
    content, content_type = _encoded(_filled(body, names), headers)
    return ApiRequest(
        method=test.method,
        url=target(with_query(url, query) if query else url, provider, names).url,
        headers={**headers, **content_type},
        body=content,
        allow_private_hosts=provider.allow_private_hosts,
    )


def next_test_at(
    test: TestRequest | None, *, expires_at: datetime | None, now: datetime, chance: float
) -> datetime | None:
    """Return when a connection is to be tested next by itself; ``None``: not at all.

    ``chance`` (0 to 1) spreads tests by a tenth of the interval to either side, so that
    connections that were made together are not tested together for ever.
    """
    if test is None or test.interval is None:
        return None
    if test.only_unexpiring and expires_at is not None:
        return None
    return now + test.interval * (1 - _SPREAD + 2 * _SPREAD * chance)


def _url(provider: Provider, test: TestRequest, names: Mapping[str, str]) -> str:
    if test.url is not None:
        return render_url(test.url, names)
    base = api_base(provider, names).url.rstrip("/")
    path = "/" if test.path is None else render_url(test.path, names)
    return f"{base}/{path.removeprefix('/')}"


def _known(templates: Mapping[str, _T], names: Mapping[str, str]) -> dict[str, _T]:
    """Return the templates of every request less those that need a reply nobody has seen yet."""
    return {
        key: template
        for key, template in templates.items()
        if not any(name.startswith("me.") and name not in names for name in _names_in(template))
    }


def _places_token(templates: BodyTemplate | Mapping[str, Template]) -> bool:
    return not ACCESS_TOKENS.isdisjoint(_names_in(templates))


def _names_in(body: object) -> Iterator[str]:
    match body:
        case Template():
            yield from body.names
        case Mapping():
            for member in body.values():
                yield from _names_in(member)
        case list():
            for member in body:
                yield from _names_in(member)


def _header_templates(
    provider: Provider, test: TestRequest, names: Mapping[str, str]
) -> dict[str, Template]:
    given = {name.lower() for name in test.headers}
    known = _known(provider.request.headers, names)
    return {name: each for name, each in known.items() if name.lower() not in given} | dict(
        test.headers
    )


def _headers(templates: Mapping[str, Template], names: Mapping[str, str]) -> dict[str, str]:
    headers = {"Accept": _JSON, "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
    given = {name.lower() for name in templates}
    headers = {name: text for name, text in headers.items() if name.lower() not in given}
    return headers | {name: render_text(template, names) for name, template in templates.items()}


def _filled(body: BodyTemplate, names: Mapping[str, str]) -> Any:
    match body:
        case Template():
            return render_text(body, names)
        case dict():
            return {name: _filled(member, names) for name, member in body.items()}
        case list():
            return [_filled(member, names) for member in body]
        case _:
            return body


def _encoded(body: Any, headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """Return a body, and the header for its type where there is none yet."""
    types = [text for name, text in headers.items() if name.lower() == "content-type"]
    if body is None:
        return b"", {}
    if isinstance(body, dict) and types and types[0].partition(";")[0].strip().lower() == _FORM:
        members = {name: text_of(member) or "" for name, member in body.items()}
        return urlencode(members).encode("ascii"), {}
    content = body if isinstance(body, str) else json.dumps(body)
    is_text = isinstance(body, str) and not body.lstrip().startswith(("{", "["))
    return content.encode(), {} if types else {"Content-Type": _TEXT if is_text else _JSON}
