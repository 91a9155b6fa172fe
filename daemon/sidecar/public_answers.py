"""What the public listener answers with: pages, redirects, assets, and a page for every error.

Nothing here shows what a request said. The page of a given error is the same for everybody, but
for its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from daemon.domain.clock import Entropy
from daemon.domain.errors import DatabaseUnavailableError
from daemon.oauth.authorization_errors import AuthorizationFailures, Failed, Fault, explain
from daemon.sidecar.browser import SECURITY_HEADERS, content_security_policy
from daemon.sidecar.guard import is_accepted_host
from daemon.sidecar.pages import Asset, Notice, Pages
from daemon.sidecar.problems import let_go, problem_of, unless_gone

_NOTICES: Mapping[int, Notice] = MappingProxyType(
    {
        404: Notice(
            title="There is no page here",
            happened="This address does not belong to anything that this service shows.",
            action="Open the connect link that you were given, exactly as it was given.",
        ),
        405: Notice(
            title="That does not work here",
            happened="This page can be opened, but not used in this way.",
            action="Open the connect link that you were given, in a browser.",
        ),
        421: Notice(
            title="Wrong address",
            happened="This service does not go by the host name in the address bar.",
            action="Open the connect link exactly as you were given it. Operators: the host of"
            " public_url is the one that browsers must use.",
        ),
    }
)
_OTHER_NOTICE = Notice(
    title="That request could not be understood",
    happened="The browser sent something that this service cannot read. Nothing was changed.",
    action="Go back to where you started and connect again.",
)


def failure_page(pages: Pages, failed: Failed) -> web.Response:
    """Answer with why an authorization ended."""
    return html(pages.failed(failed), status=failed.status)


def notice_page(pages: Pages, status: int, *, allow: str | None = None) -> web.Response:
    """Answer a request that leads nowhere."""
    response = html(pages.notice(_NOTICES.get(status, _OTHER_NOTICE)), status=status)
    if allow is not None:
        response.headers[hdrs.ALLOW] = allow
    return response


def html(
    text: str, *, status: int = HTTPStatus.OK, policy: str = "", referrer_policy: str = ""
) -> web.Response:
    """Answer with a page; unless ``policy`` says otherwise, one without a form."""
    headers = {"Content-Security-Policy": policy or content_security_policy()}
    if referrer_policy:
        headers["Referrer-Policy"] = referrer_policy
    return web.Response(
        text=text, status=status, content_type="text/html", charset="utf-8", headers=headers
    )


def see_other(location: str) -> web.Response:
    """Answer 303: the next request is a GET, whatever this one was (RFC 9110 15.4.4)."""
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={hdrs.LOCATION: location})


def boundary(
    pages: Pages, *, hosts: frozenset[str], failures: AuthorizationFailures, entropy: Entropy
) -> Middleware:
    """Return the middleware below which there are exceptions and above which only pages.

    ``hosts`` are the names to answer to, beside loopback addresses.
    """

    @web.middleware
    async def answer_with_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_accepted_host(request.headers.get(hdrs.HOST, ""), hosts):
            return notice_page(pages, HTTPStatus.MISDIRECTED_REQUEST)
        try:
            return await handler(request)
        except web.HTTPException as error:
            # Nothing below raises a redirect.
            let_go(error, request)
            return notice_page(pages, error.status, allow=error.headers.get(hdrs.ALLOW))
        except DatabaseUnavailableError:
            return failure_page(pages, failures.report(Fault("database_unavailable")))
        except Exception as error:  # noqa: BLE001 - the HTTP boundary; problem_of logs the cause
            unless_gone(error, request)
            failed = _unforeseen(error, entropy)
            let_go(error, request)
            return failure_page(pages, failed)

    return answer_with_pages


def _unforeseen(error: Exception, entropy: Entropy) -> Failed:
    reference = problem_of(error, entropy).members.get("reference")
    return explain(Fault("internal_error"), provider=None, reference=str(reference or ""))


def asset_handler(assets: Mapping[str, Asset]) -> Handler:
    """Return the handler of ``{name}``, a file in memory."""

    async def asset(request: web.Request) -> web.Response:
        # The links on our pages carry a version, so what they lead to may be kept.
        found = assets.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        return web.Response(
            body=found.body,
            content_type=found.content_type,
            charset="utf-8",
            headers={hdrs.CACHE_CONTROL: "public, max-age=86400"},
        )

    return asset


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Complete the headers of every answer, the server's own errors included (a signal)."""
    del request
    for name, value in SECURITY_HEADERS.items():
        if name == hdrs.SERVER or name not in response.headers:
            response.headers[name] = value
