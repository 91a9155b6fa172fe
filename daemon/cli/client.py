"""A caller of the api listener, in the standard library: quick to import, one request at a time."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from daemon.cli.exits import CommandError, Exit
from daemon.config.settings import Address

# Longer than any refresh.request_timeout that makes sense, plus the time for its answer.
_PATIENCE = 120.0
_ORDINARY_PORT = 80
_PERSON_MUST_ACT = frozenset({"reauthorization_required", "not_authorized_yet", "disconnected"})
_BAD_ARGUMENT = frozenset({"bad_request", "invalid_request"})


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A listener in the file system."""

    path: Path

    def __str__(self) -> str:
        """Return ``unix:PATH``."""
        return f"unix:{self.path}"


class RefusedError(CommandError):
    """The api listener answered with a problem (RFC 9457)."""

    def __init__(self, message: str, exit_code: Exit, *, code: str) -> None:
        super().__init__(message, exit_code)
        self.code = code


def parse_api(text: str) -> Address | UnixSocket:
    """Return the place that ``--api`` names: ``http://HOST:PORT``, ``HOST:PORT``, ``unix:PATH``.

    Raises:
        CommandError: it is none of these.
    """
    if text.startswith("unix:"):
        return UnixSocket(Path(text.removeprefix("unix:").removeprefix("//")).expanduser())
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme != "http" or not host or parts.path.strip("/") or parts.query or "@" in text:
        raise CommandError(
            "The address of the api listener is written http://127.0.0.1:7420 or "
            "unix:/run/tokenward/api.sock; correct --api or TOKENWARD_API.",
            Exit.USAGE,
        )
    return Address(host, port or _ORDINARY_PORT)


class ApiClient:
    """Sends requests to one listener. ``key`` is ``None`` where the peer's uid is enough."""

    def __init__(
        self, where: Address | UnixSocket, *, key: str | None = None, hint: str = ""
    ) -> None:
        self._where = where
        self._key = key
        self._hint = hint

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the JSON object at ``path``. Raises as ``post``."""
        return self._call("GET", f"{path}?{urlencode(query)}" if query else path, None)

    def post(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Send a JSON object and return the answer.

        Raises:
            RefusedError: the listener said no; its exit code follows the problem's code.
            CommandError: nobody answers there (exit code 5), or somebody else (1).
        """
        return self._call("POST", path, json.dumps(body).encode() if body is not None else None)

    def _call(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        status, content = self._exchange(method, path, body)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise CommandError(
                f"What answers at {self._where} is not tokenward's api listener. Correct --api, "
                "TOKENWARD_API or listen.api in the configuration."
            )
        if status >= http.client.BAD_REQUEST:
            raise refusal(status, answer, hint=self._hint)
        return answer

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Accept": "application/json", "Connection": "close"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = _connection_to(self._where)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError as error:
            raise CommandError(
                f"No answer came from {self._where} within {_PATIENCE:.0f} s. Look at the "
                "daemon's log, and try again.",
                Exit.UNAVAILABLE,
            ) from error
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise CommandError(
                f"Nothing listens at {self._where}. Is the daemon running? Start it with "
                "'tokenward run', or name another place with --api or --config.",
                Exit.UNAVAILABLE,
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise CommandError(
                f"The daemon at {self._where} cannot be reached ({reason}). Check --api and "
                "listen.api in the configuration, and try again.",
                Exit.UNAVAILABLE,
            ) from error
        finally:
            connection.close()


def connection_path(connection_id: str, *rest: str) -> str:
    """Return the path of a connection's route."""
    return "/".join(("/v1/connections", quote(connection_id, safe=":@"), *rest))


def refusal(status: int, problem: Mapping[str, Any], *, hint: str = "") -> RefusedError:
    """Return the error for a problem: one sentence, its code, and what to do here. Pure."""
    code = str(problem.get("code") or status)
    detail = str(problem.get("detail") or problem.get("title") or f"The status was {status}.")
    advice = _advice(status, code, problem, hint)
    text = f"{detail.rstrip()} ({code})"
    return RefusedError(
        f"{text}\n{advice}" if advice else text, _exit_code(status, code), code=code
    )


def _exit_code(status: int, code: str) -> Exit:
    if code == "unknown_connection":
        return Exit.NO_SUCH_CONNECTION
    if code in _PERSON_MUST_ACT:
        return Exit.REAUTHORIZE
    if status == http.client.SERVICE_UNAVAILABLE:
        return Exit.UNAVAILABLE
    return Exit.USAGE if code in _BAD_ARGUMENT else Exit.FAILED


def _advice(status: int, code: str, problem: Mapping[str, Any], hint: str) -> str:
    connection = problem.get("connection")
    if status == http.client.UNAUTHORIZED:
        return hint or (
            "Name a file that holds the caller's key with --key-file, or put the key into "
            "TOKENWARD_KEY."
        )
    if code in _PERSON_MUST_ACT and isinstance(connection, str):
        return (
            f"On the command line: tokenward connect PROVIDER --id {connection} "
            f"('tokenward show {connection}' names the provider)."
        )
    if isinstance(problem.get("retry_after"), int):
        return f"Retry-After: {problem['retry_after']} s."
    if code == "unknown_connection":
        return "'tokenward connections' lists those there are."
    return ""


def _connection_to(where: Address | UnixSocket) -> http.client.HTTPConnection:
    if isinstance(where, UnixSocket):
        return _UnixConnection(where.path)
    return http.client.HTTPConnection(where.host, where.port, timeout=_PATIENCE)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
