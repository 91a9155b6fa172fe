"""Operator pages as answers: templates, one stylesheet, one small script, and strict headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from urllib.parse import urlsplit

from aiohttp import web
from jinja2 import Environment

from daemon.domain.errors import Problem
from daemon.sidecar.browser import FORM_REFERRER_POLICY, SECURITY_HEADERS
from daemon.sidecar.operator.sessions import Session
from daemon.sidecar.operator.words import Badge
from daemon.sidecar.pages import Asset

STATIC = "/static"

_TITLES: Mapping[str, str] = MappingProxyType(
    {
        "bad_request": "That address or form cannot be read",
        "cross_origin": "Open this page yourself",
        "database_unavailable": "The database cannot be used right now",
        "internal_error": "Something went wrong here",
        "method_not_allowed": "That does not work here",
        "misdirected_request": "Wrong address",
        "not_found": "There is no page here",
        "permission_denied": "This key may not do that",
        "provider_not_configured": "The provider is not configured any more",
        "unknown_connection": "There is no such connection",
    }
)
_PAGE_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "cross_origin": "Another site sent your browser here, so nothing was done. Type this"
        " address yourself, or use a bookmark.",
        "not_found": "This address does not belong to any page. Start again at the list.",
        "method_not_allowed": "This address is only used by buttons. Start again at the list.",
        "unknown_connection": "It does not exist, or your key may not see it. Its id may have been"
        " mistyped, or the connection removed.",
    }
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A page that says why there is no other one."""

    title: str
    text: str
    code: str
    merged_into: str | None = None


def trouble_of(problem: Problem) -> Trouble:
    """Return a problem as people read it."""
    merged = problem.members.get("merged_into")
    phrase = _TITLES.get(problem.code) or HTTPStatus(problem.status).phrase
    text = problem.detail if merged else _PAGE_WORDS.get(problem.code, problem.detail)
    return Trouble(phrase, text, problem.code, None if merged is None else str(merged))


class OperatorPages:
    """Renders pages. ``public_url`` is where Connect buttons lead."""

    def __init__(
        self, environment: Environment, assets: Mapping[str, Asset], *, public_url: str
    ) -> None:
        self._environment = environment
        self._assets = {name: f"{STATIC}/{name}?v={one.version}" for name, one in assets.items()}
        self._policy = content_security_policy(public_url)

    def page(
        self,
        template: str,
        *,
        session: Session | None = None,
        flash: Badge | None = None,
        status: int = HTTPStatus.OK,
        **values: object,
    ) -> web.Response:
        """Return a page; ``values`` are what its template lays out."""
        text = self._environment.get_template(f"operator/{template}").render(
            assets=self._assets, session=session, flash=flash, **values
        )
        return web.Response(
            text=text,
            status=status,
            content_type="text/html",
            charset="utf-8",
            headers={
                **SECURITY_HEADERS,
                "Content-Security-Policy": self._policy,
                "Referrer-Policy": FORM_REFERRER_POLICY,
            },
        )

    def trouble(self, problem: Problem, session: Session | None = None) -> web.Response:
        """Return the page of a request that led nowhere."""
        response = self.page(
            "trouble.html", session=session, status=problem.status, trouble=trouble_of(problem)
        )
        for name in ("Allow", "Retry-After"):
            if name in problem.headers:
                response.headers[name] = problem.headers[name]
        return response


def content_security_policy(public_url: str) -> str:
    """Return the policy of every operator page: our own files only, and no code in the page.

    Chromium holds the redirect that answers a form against ``form-action``: Connect and
    Reconnect lead to the public listener.
    """
    parts = urlsplit(public_url)
    # A source expression cannot name an IPv6 address (CSP 3 2.3.1): then the scheme has to do.
    origin = f"{parts.scheme}:" if "[" in parts.netloc else f"{parts.scheme}://{parts.netloc}"
    return (
        "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; "
        f"form-action 'self' {origin}; frame-ancestors 'none'; base-uri 'none'"
    )
