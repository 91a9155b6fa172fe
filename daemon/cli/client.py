"""A caller of the api listener, in the standard library: quick to import, one request at a time."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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
    """The api listener answered with a problem (RFC 9457).

    ``merged_into`` is the connection that the one asked for has given way to, if it has.
    """

    def __init__(
        self, message: str, exit_code: Exit, *, code: str, merged_into: str | None = None
    ) -> None:
        super().__init__(message, exit_code)
        self.code = code
        self.merged_into = merged_into


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

    def delete(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Send a DELETE and return the answer. Raises as ``post``."""
        return self._call("DELETE", f"{path}?{urlencode(query)}" if query else path, None)

    def follow(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the data of server-sent events as they come, until the listener ends the stream.

        Raises as ``post``, also when nothing is heard for two minutes: a stream has heartbeats.
        """
        where = f"{path}?{urlencode(query)}" if query else path
        with self._answered("GET", where, None, accept="text/event-stream") as response:
            if response.status >= http.client.BAD_REQUEST:
                raise refusal(response.status, self._object(response.read()), hint=self._hint)
            yield from _event_data(response)

    def _call(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        with self._answered(method, path, body, accept="application/json") as response:
            status, content = response.status, response.read()
        answer = self._object(content)
        if status >= http.client.BAD_REQUEST:
            raise refusal(status, answer, hint=self._hint)
        return answer

    def _object(self, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise CommandError(
                f"What answers at {self._where} is not tokenward's api listener. Correct --api, "
                "TOKENWARD_API or listen.api in the configuration."
            )
        return answer

    @contextmanager
    def _answered(
        self, method: str, path: str, body: bytes | None, *, accept: str
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {"Accept": accept, "Connection": "close"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = _connection_to(self._where)
        try:
            connection.request(method, path, body=body, headers=headers)
            yield connection.getresponse()
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


def _event_data(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the ``data`` of each event; comments and other fields are for browsers."""
    for line in lines:
        name, _, value = line.rstrip(b"\r\n").partition(b":")
        if name == b"data":
            yield json.loads(value)


def connection_path(connection_id: str, *rest: str) -> str:
    """Return the path of a connection's route."""
    return "/".join(("/v1/connections", quote(connection_id, safe=":@"), *rest))


def refusal(status: int, problem: Mapping[str, Any], *, hint: str = "") -> RefusedError:
    """Return the error for a problem: one sentence, its code, and what to do here. Pure."""
    code = str(problem.get("code") or status)
    detail = str(problem.get("detail") or problem.get("title") or f"The status was {status}.")
    advice = _advice(status, code, problem, hint)
    text = f"{detail.rstrip()} ({code})"
    survivor = problem.get("merged_into")
    return RefusedError(
        f"{text}\n{advice}" if advice else text,
        _exit_code(status, code),
        code=code,
        merged_into=survivor if isinstance(survivor, str) else None,
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
    if isinstance(problem.get("merged_into"), str):
        return f"'tokenward show {problem['merged_into']}' shows the connection that it became."
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
