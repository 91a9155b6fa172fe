"""[configure] ``/v1/providers``: what is configured, for whoever builds on it. Never a secret.

Values that a configuration may have put a secret into (static headers, queries, bodies) are shown
by their names alone.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from aiohttp import web

from daemon.config.settings import Permission, Settings
from daemon.domain.errors import Problem
from daemon.domain.fields import Field
from daemon.domain.provider import Provider, RequestValues, TestRequest
from daemon.domain.templates import Template
from daemon.sidecar.routing import json_response, require


class ProviderRoutes:
    """The handlers. ``settings`` gives the configuration in force."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings

    async def list(self, request: web.Request) -> web.Response:
        """``GET /v1/providers``."""
        require(request, Permission.READ)
        settings = self._settings()
        bodies = [provider_body(each, settings) for each in settings.providers.values()]
        return json_response({"providers": bodies})

    async def show(self, request: web.Request) -> web.Response:
        """``GET /v1/providers/{name}``."""
        require(request, Permission.READ)
        settings = self._settings()
        provider = settings.providers.get(request.match_info["name"])
        if provider is None:
            known = ", ".join(settings.providers) or "none yet"
            raise Problem(404, "unknown_provider", f"The configured providers are: {known}.")
        return json_response(provider_body(provider, settings))


def provider_body(provider: Provider, settings: Settings) -> dict[str, Any]:
    """Return what may be known of a provider. Times are in seconds."""
    return {
        "name": provider.name,
        "grant": provider.grant.value,
        "issuer": provider.issuer,
        "authorization_endpoint": provider.endpoints.authorization,
        "token_endpoint": provider.endpoints.token,
        "refresh_endpoint": provider.endpoints.refresh,
        "revocation_endpoint": provider.endpoints.revocation,
        "introspection_endpoint": provider.endpoints.introspection,
        "client_id": provider.client_id,
        "token_endpoint_auth_method": provider.token_endpoint_auth_method.value,
        "scopes": list(provider.scopes),
        "pkce": "S256" if provider.pkce else "off",
        "rotation": provider.rotation.kind.value,
        "default_lifetime": "never"
        if provider.tokens_never_expire
        else _seconds(provider.default_lifetime),
        "redirect_uri": settings.redirect_uri,
        "fields": {name: _field(each) for name, each in provider.fields.items()},
        "api_base_url": _url(provider.api_base_url),
        "allowed_hosts": list(provider.allowed_hosts),
        "allow_private_hosts": provider.allow_private_hosts,
        "test": None if provider.test is None else _test(provider.test),
        "label": None if provider.label is None else provider.label.text,
        "label_mask": provider.label_mask,
        "account_id": None if provider.account_id is None else provider.account_id.expression,
        "request": _request(provider.request),
    }


def _field(field: Field) -> dict[str, Any]:
    return {
        "title": field.title,
        "help": field.help,
        "enum": list(field.enum),
        "default": field.default,
        "pattern": None if field.pattern is None else field.pattern.pattern,
        "required": field.required,
    }


def _test(test: TestRequest) -> dict[str, Any]:
    return {
        "method": test.method,
        "path": _url(test.path),
        "url": _url(test.url),
        "interval": _seconds(test.interval),
        "only_unexpiring": test.only_unexpiring,
    }


def _request(request: RequestValues) -> dict[str, list[str]]:
    return {
        "headers": sorted(request.headers),
        "query": sorted(request.query),
        "body": sorted(request.body),
    }


def _url(template: Template | None) -> str | None:
    """Return a URL without its query, in which an API key may stand."""
    return None if template is None else template.text.partition("?")[0]


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()
