"""The public listener: connect pages and the redirect URI, for people's browsers (contract 5).

It holds no secret and serves no token. Every answer is a redirect or a page whose bytes do not
depend on what the request said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import hdrs, web

from daemon.domain.authorization import AuthorizationStore, Ticket
from daemon.domain.clock import Clock, Entropy
from daemon.domain.connection import Connection, Status, is_connection_id
from daemon.domain.errors import DiscoveryError, FieldError
from daemon.domain.provider import Provider
from daemon.oauth.authorization import Authorizer, fingerprint, is_secret
from daemon.oauth.authorization_errors import AuthorizationFailures, Failed, Fault
from daemon.oauth.authorization_response import (
    MAX_RESPONSE,
    CallbackRejection,
    parse_callback,
)
from daemon.oauth.completing import Completed
from daemon.oauth.query import with_query
from daemon.oauth.redirection import Redirection
from daemon.sidecar.bodies import BODY_DEADLINE
from daemon.sidecar.browser import (
    FORM_REFERRER_POLICY,
    PublicOrigin,
    content_security_policy,
    host_of,
    new_binding,
)
from daemon.sidecar.connect_form import ConnectForm, Question, connect_form, read_typed
from daemon.sidecar.pages import ConnectPage, Pages, load_assets, page_environment
from daemon.sidecar.protocol import awaiting_body
from daemon.sidecar.public_answers import (
    add_headers,
    asset_handler,
    boundary,
    failure_page,
    html,
    see_other,
)
from daemon.sidecar.return_url import is_allowed, with_outcome

_COMPLETED = "/connect/completed"
_SURVIVOR = "connection"
# Below /connect, so that an ingress which forwards /connect and /callback has forwarded all.
_STATIC = "/connect/static"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicParts:
    """What the public listener works with.

    ``providers`` and ``return_urls`` are asked at every request, for a reload may change them.
    """

    public_url: str
    store: AuthorizationStore
    authorizer: Authorizer
    redirection: Redirection
    failures: AuthorizationFailures
    providers: Callable[[str], Provider | None]
    return_urls: Callable[[], Iterable[str]]
    clock: Clock
    entropy: Entropy


def create_public_app(parts: PublicParts) -> web.Application:
    """Return the application of the public listener. It knows no other route than these."""
    origin = PublicOrigin(parts.public_url)
    assets = load_assets()
    pages = Pages(page_environment(), assets, static_path=origin.path + _STATIC)
    views = _Views(parts, origin, pages)
    errors = boundary(pages, hosts=origin.hosts, failures=parts.failures, entropy=parts.entropy)
    app = web.Application(middlewares=[errors], client_max_size=MAX_RESPONSE)
    app.on_response_prepare.append(add_headers)
    app.router.add_get(_COMPLETED, views.completed, allow_head=False)
    app.router.add_get(f"{_STATIC}/{{name}}", asset_handler(assets), allow_head=False)
    app.router.add_get("/connect/{ticket}", views.show, allow_head=False)
    app.router.add_post("/connect/{ticket}", views.connect)
    app.router.add_get("/callback", views.callback, allow_head=False)
    app.router.add_post("/callback", views.form_post)
    return app


@dataclass(frozen=True, slots=True)
class _Started:
    """What a live ticket leads to."""

    ticket: Ticket
    connection: Connection
    provider: Provider

    @property
    def targets(self) -> tuple[str | None, ...]:
        """Return the URLs that are known to follow when Connect is pressed."""
        return self.provider.endpoints.authorization, self.provider.issuer, self.ticket.return_url

    @property
    def form(self) -> ConnectForm:
        """Return the fields, known and asked."""
        return connect_form(self.provider, self.connection)

    def page(self, questions: tuple[Question, ...]) -> ConnectPage:
        """Return what the connect page says."""
        form = self.form
        place = form.tenant
        return ConnectPage(
            caller=self.ticket.caller,
            provider=self.provider.name,
            provider_host=host_of(place.endpoints.authorization or place.issuer) if place else None,
            connection=self.connection.id,
            label=self.connection.label,
            is_reconnect=self.connection.status is not Status.PENDING,
            scopes=self.connection.requested_scopes or self.provider.scopes,
            stated=form.stated,
            questions=questions,
        )


class _Views:
    """The handlers."""

    def __init__(self, parts: PublicParts, origin: PublicOrigin, pages: Pages) -> None:
        self._parts = parts
        self._origin = origin
        self._pages = pages

    async def show(self, request: web.Request) -> web.Response:
        """GET /connect/{ticket}: say who asks for what; with ``go=1``, go on at once."""
        started = await self._find(request)
        if isinstance(started, Failed):
            return failure_page(self._pages, started)
        form = started.form
        if "go=1" in _raw_query(request).split("&") and form.can_be_skipped:
            return await self._begin(request, started, form.judge({}).values)
        return self._ask(started, form.questions())

    async def connect(self, request: web.Request) -> web.Response:
        """POST /connect/{ticket}: the Connect button was pressed."""
        if not self._origin.is_own_page(request.headers):
            return self._fail(Fault("cross_site_request"))
        started = await self._find(request)
        if isinstance(started, Failed):
            return failure_page(self._pages, started)
        form = started.form
        typed = await _typed(request) if form.asked else {}
        values = form.judge(typed)
        if any(field.name in values.errors for field in form.asked):
            return self._ask(started, form.questions(typed, values.errors))
        # What is still wrong is a URL of the provider that needs what nobody can be asked for.
        return await self._begin(request, started, values.values)

    async def callback(self, request: web.Request) -> web.Response:
        """GET /callback: the redirect URI (RFC 6749 4.1.2)."""
        params = parse_callback(_raw_query(request))
        binding = self._origin.binding_of(request.cookies)
        return self._answer(await self._parts.redirection.complete(params, binding))

    async def form_post(self, request: web.Request) -> web.Response:
        """POST /callback: ``response_mode=form_post``, as a GET of the same answer.

        A cross-site POST carries no ``Lax`` cookie, so here nobody knows which browser this is.
        The redirect that answers it is a navigation to us, and carries it. The code thereby gets
        into a URL of ours, as it does with ``response_mode=query``, to be spent at once.
        """
        params = parse_callback(await _form(request))
        if isinstance(params, CallbackRejection):
            return self._answer(await self._parts.redirection.complete(params, None))
        return see_other(with_query(f"{self._origin.path}/callback", params.as_query()))

    async def completed(self, request: web.Request) -> web.Response:
        """GET /connect/completed: a clean URL without code or state (RFC 9700 4.2.4).

        It names a connection only where the account turned out to be connected already.
        """
        survivor = request.query.get(_SURVIVOR, "")
        return html(self._pages.completed(survivor if is_connection_id(survivor) else None))

    async def _find(self, request: web.Request) -> _Started | Failed:
        parts = self._parts
        secret = request.match_info["ticket"]
        found = None
        if is_secret(secret):
            found = await parts.store.ticket(fingerprint(secret), now=parts.clock.now())
        if found is None:
            return parts.failures.report(Fault("link_expired"))
        ticket, connection = found
        provider = parts.providers(connection.provider)
        if provider is None:
            return parts.failures.report(
                Fault("provider_not_configured"),
                connection=connection.id,
                provider=connection.provider,
            )
        return _Started(ticket, connection, provider)

    def _ask(self, started: _Started, questions: tuple[Question, ...]) -> web.Response:
        """Answer with the connect page: 422 where what was typed cannot stay."""
        page = started.page(questions)
        return html(
            self._pages.connect(page),
            status=HTTPStatus.UNPROCESSABLE_ENTITY if page.errors else HTTPStatus.OK,
            policy=content_security_policy(self._parts.public_url, *started.targets),
            referrer_policy=FORM_REFERRER_POLICY,
        )

    async def _begin(
        self, request: web.Request, started: _Started, fields: Mapping[str, str]
    ) -> web.Response:
        # One value for all transactions of a browser, so that two tabs do not end each other.
        binding = self._origin.binding_of(request.cookies)
        binding = binding or new_binding(self._parts.entropy)
        try:
            location = await self._parts.authorizer.begin(
                started.ticket, started.connection, started.provider, binding, fields=fields
            )
        except FieldError as error:
            return self._fail(Fault("fields_unusable", detail=str(error)), started)
        except DiscoveryError as error:
            return self._fail(Fault("provider_unavailable", detail=str(error)), started)
        if location is None:
            return self._fail(Fault("link_expired"))
        response = see_other(location)
        response.headers.add(hdrs.SET_COOKIE, self._origin.set_cookie(binding))
        return response

    def _answer(self, ended: Completed | Failed) -> web.Response:
        if isinstance(ended, Failed):
            return failure_page(self._pages, ended)
        url = ended.return_url
        if url is not None and is_allowed(url, self._parts.return_urls()):
            return see_other(with_outcome(url, ended.connection))
        completed = self._origin.path + _COMPLETED
        if ended.merged is not None:
            completed = with_query(completed, {_SURVIVOR: ended.connection.id})
        return see_other(completed)

    def _fail(self, fault: Fault, started: _Started | None = None) -> web.Response:
        failed = self._parts.failures.report(
            fault,
            connection=started.connection.id if started else None,
            provider=started.provider.name if started else None,
        )
        return failure_page(self._pages, failed)


async def _typed(request: web.Request) -> dict[str, str]:
    """Return what was typed into the connect page; nothing where no form was sent."""
    if not request.body_exists:
        return {}
    try:
        return read_typed(await _form(request))
    except ValueError as error:
        raise web.HTTPBadRequest from error


async def _form(request: web.Request) -> str:
    """Return the raw body of a form, within ``client_max_size`` and the deadline."""
    if request.content_type != "application/x-www-form-urlencoded":
        raise web.HTTPUnsupportedMediaType
    try:
        with awaiting_body(request):
            async with asyncio.timeout(BODY_DEADLINE):
                body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    except web.RequestPayloadError as error:
        raise web.HTTPBadRequest from error
    # What is not ASCII is no form either; the strict reader refuses its replacement.
    return body.decode("ascii", "replace")


def _raw_query(request: web.Request) -> str:
    """Return the query as it was sent: yarl would repair what must be refused."""
    return request.raw_path.partition("?")[2]
