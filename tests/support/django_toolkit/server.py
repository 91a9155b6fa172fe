"""django-oauth-toolkit as a program: two users, one confidential client, JSON lines on its pipes.

Run as a script by ``tests.support.django_toolkit.provider``. The first line of stdin is the
configuration; stdout carries the token requests as they arrive; it ends when stdin does.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path, re_path
from django.views.decorators.csrf import csrf_exempt

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_LOGIN_PAGE = """<!DOCTYPE html><title>Log in</title>
<form method="post">{% csrf_token %}{{ form.as_p }}<button>Log in</button></form>"""
_OUTPUT = threading.Lock()

urlpatterns: list[Any] = []


def main() -> None:
    """Serve until stdin ends."""
    wanted = json.loads(sys.stdin.readline())
    _configure(wanted)
    application = _application()
    call_command("migrate", run_syncdb=True, verbosity=0, interactive=False)
    _add_client_and_user(wanted)
    with make_server(
        "127.0.0.1", wanted["port"], _counted(application), _ThreadingServer, _QuietHandler
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _emit("listening", port=server.server_port)
        for line in sys.stdin:
            _obey(json.loads(line))
    # Without waiting for requests in flight: a test that ends must not hang here.
    os._exit(0)


def _configure(wanted: dict[str, Any]) -> None:
    settings.configure(
        DEBUG=False,
        SECRET_KEY=wanted["client_secret"],
        ALLOWED_HOSTS=["127.0.0.1", "localhost"],
        ROOT_URLCONF=__name__,
        USE_TZ=True,
        # Tables straight from the models: the history of migrations would cost a second a start.
        MIGRATION_MODULES=dict.fromkeys(("auth", "contenttypes", "sessions", "oauth2_provider")),
        STATIC_URL="/static/",
        LOGIN_URL="/login/",
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "oauth2_provider",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        TEMPLATES=[_templates()],
        DATABASES={"default": _database(wanted["database"])},
        # Slow hashes guard passwords that are worth something, at each token request.
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        OAUTH2_PROVIDER={
            "ACCESS_TOKEN_EXPIRE_SECONDS": wanted["access_token_seconds"],
            "ALLOWED_REDIRECT_URI_SCHEMES": ["http"],
            "PKCE_REQUIRED": True,
            "ROTATE_REFRESH_TOKEN": wanted["rotate"],
            "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": wanted["grace_seconds"],
            "REFRESH_TOKEN_REUSE_PROTECTION": wanted["reuse_protection"],
            "SCOPES": {"read": "Read your things", "write": "Change your things"},
        },
    )


def _templates() -> dict[str, Any]:
    loaders = [
        ("django.template.loaders.locmem.Loader", {"login.html": _LOGIN_PAGE}),
        "django.template.loaders.app_directories.Loader",
    ]
    return {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "loaders": loaders,
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
            ],
        },
    }


def _database(file: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": file,
        "OPTIONS": {
            # One writer at a time, the others wait: no request fails because of another.
            "timeout": 30,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF",
        },
    }


def _application() -> Application:
    """Set Django up and return its WSGI application. Its views can be imported only now."""
    django.setup()
    from django.contrib.auth.views import LoginView  # noqa: PLC0415
    from oauth2_provider.decorators import protected_resource  # noqa: PLC0415

    urlpatterns.extend(
        [
            path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
            path("login/", LoginView.as_view(template_name="login.html")),
            path("me", protected_resource(scopes=["read"])(_me)),
            re_path("^echo(?P<rest>/.*)?$", csrf_exempt(protected_resource()(_echo))),
        ]
    )
    application: Application = get_wsgi_application()
    return application


def _me(request: HttpRequest) -> HttpResponse:
    user = request.resource_owner
    return JsonResponse({"id": user.pk, "name": user.username, "email": user.email})


def _echo(request: HttpRequest, rest: str | None = None) -> HttpResponse:
    """Answer with what came, but for the token: its digest."""
    headers = dict(request.headers)
    token = headers.pop("Authorization", "").removeprefix("Bearer ")
    answer = JsonResponse(
        {
            "method": request.method,
            "path": rest or "",
            "query": dict(request.GET.lists()),
            "headers": headers,
            "body": request.body.decode("utf-8", "replace"),
            "token_sha256": _digest(token),
            "user": request.resource_owner.username,
        }
    )
    answer["Set-Cookie"] = "echo=1"
    answer["X-Echo"] = "yes"
    return answer


def _add_client_and_user(wanted: dict[str, Any]) -> None:
    from django.contrib.auth import get_user_model  # noqa: PLC0415
    from oauth2_provider.models import get_application_model  # noqa: PLC0415

    applications = get_application_model().objects
    if applications.exists():
        return
    for name in ("alice", "bob"):
        get_user_model().objects.create_user(name, f"{name}@example.com", wanted["password"])
    applications.create(
        name="tokenward",
        client_id=wanted["client_id"],
        client_secret=wanted["client_secret"],
        client_type="confidential",
        authorization_grant_type="authorization-code",
        redirect_uris=" ".join(wanted["redirect_uris"]),
    )


def _obey(message: dict[str, Any]) -> None:
    """Carry out a command and say so.

    ``revoke_grants`` is as if the users had, ``expire_access_tokens`` ends what is live before its
    time, ``sync`` does nothing.
    """
    result = None
    if message["command"] == "expire_access_tokens":
        from oauth2_provider.models import get_access_token_model  # noqa: PLC0415

        now = django.utils.timezone.now()
        result = get_access_token_model().objects.filter(expires__gt=now).update(expires=now)
    if message["command"] == "revoke_grants":
        from oauth2_provider.models import get_refresh_token_model  # noqa: PLC0415

        tokens = get_refresh_token_model().objects.filter(revoked=None)
        result = len([token.revoke() for token in tokens])
    _emit("command.done", id=message["id"], result=result)


def _counted(application: Application) -> Application:
    """Report every token request before Django sees it, and its status afterwards."""

    def report(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith(("/me", "/echo")):
            return application(environ, _as_rfc6750(start_response))
        if environ["PATH_INFO"] != "/o/token/":
            return application(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        form = parse_qs(body.decode())
        members = {
            "grant_type": form.get("grant_type", [None])[0],
            "refresh_token": _digest(form.get("refresh_token", [None])[0]),
        }
        _emit("token_request.received", **members)

        def start(status: str, *others: object) -> object:
            _emit("token_request.ended", **members, status=int(status[:3]))
            return start_response(status, *others)

        return application(environ, start)

    return report


def _as_rfc6750(start_response: Callable[..., Any]) -> Callable[..., Any]:
    """Answer 401 to a token that is not good (RFC 6750 3.1), where the toolkit says 403."""

    def start(status: str, *others: object) -> object:
        return start_response("401 Unauthorized" if status[:3] == "403" else status, *others)

    return start


def _digest(token: str | None) -> str | None:
    return None if token is None else hashlib.sha256(token.encode()).hexdigest()


def _emit(event: str, **members: object) -> None:
    at = django.utils.timezone.now().timestamp()
    with _OUTPUT:
        sys.stdout.write(json.dumps({"event": event, "at": at, **members}) + "\n")
        sys.stdout.flush()


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        """Say nothing: stdout belongs to events, stderr to errors."""


if __name__ == "__main__":
    main()
