"""What the api listener's answers and addresses mean on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.cli.client import UnixSocket, connection_path, parse_api, refusal
from daemon.cli.exits import CommandError, Exit, exit_code_of
from daemon.config.settings import Address
from daemon.domain.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    Finding,
    KeyringError,
    TokenwardError,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://127.0.0.1:7420", Address("127.0.0.1", 7420)),
        ("http://127.0.0.1:7420/", Address("127.0.0.1", 7420)),
        ("localhost:7420", Address("localhost", 7420)),
        ("http://[::1]:7420", Address("::1", 7420)),
        ("http://localhost", Address("localhost", 80)),
        ("unix:/run/tokenward/api.sock", UnixSocket(Path("/run/tokenward/api.sock"))),
        ("unix:///run/api.sock", UnixSocket(Path("/run/api.sock"))),
    ],
)
def test_api_addresses(text: str, expected: object) -> None:
    """--api takes a URL, a host with port, or a Unix socket."""
    assert parse_api(text) == expected


@pytest.mark.parametrize(
    "text", ["https://a:1", "ftp://a", "http://", "http://a/v1", "http://a:x", "http://u:p@a:1"]
)
def test_other_addresses_are_usage_errors(text: str) -> None:
    """Anything else is refused with an example of what to write."""
    with pytest.raises(CommandError, match="is written http://127") as caught:
        parse_api(text)
    assert caught.value.exit_code is Exit.USAGE


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "unknown_connection", Exit.NO_SUCH_CONNECTION),
        (404, "unknown_provider", Exit.FAILED),
        (409, "reauthorization_required", Exit.REAUTHORIZE),
        (409, "not_authorized_yet", Exit.REAUTHORIZE),
        (409, "disconnected", Exit.REAUTHORIZE),
        (409, "connection_exists", Exit.FAILED),
        (503, "token_unavailable", Exit.UNAVAILABLE),
        (503, "database_unavailable", Exit.UNAVAILABLE),
        (401, "unauthenticated", Exit.FAILED),
        (403, "permission_denied", Exit.FAILED),
        (400, "bad_request", Exit.USAGE),
        (422, "invalid_request", Exit.USAGE),
        (500, "internal_error", Exit.FAILED),
    ],
)
def test_exit_codes_of_problems(status: int, code: str, expected: Exit) -> None:
    """Every problem code leads to the exit code that contract 7 gives it, and is shown."""
    error = refusal(status, {"code": code, "detail": "Something is so. Do this."})
    assert error.exit_code is expected
    assert str(error).startswith(f"Something is so. Do this. ({code})")


@pytest.mark.parametrize(
    ("status", "problem", "expected"),
    [
        (401, {"code": "unauthenticated", "detail": "No."}, "--key-file"),
        (409, {"code": "disconnected", "detail": "No.", "connection": "a"}, "PROVIDER --id a"),
        (404, {"code": "unknown_connection", "detail": "No."}, "tokenward connections"),
        (503, {"code": "token_unavailable", "detail": "No.", "retry_after": 7}, "7 s"),
        (502, {}, "The status was 502. (502)"),
    ],
)
def test_advice_of_problems(status: int, problem: dict[str, Any], expected: str) -> None:
    """Where the command line offers a way out, the error names it."""
    assert expected in str(refusal(status, problem))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CommandError("x", Exit.UNAVAILABLE), Exit.UNAVAILABLE),
        (ConfigurationError([Finding("a", "b")]), Exit.USAGE),
        (KeyringError("x"), Exit.USAGE),
        (DatabaseUnavailableError("x"), Exit.UNAVAILABLE),
    ],
)
def test_exit_codes_of_errors(error: TokenwardError, expected: Exit) -> None:
    """Configuration and keys end with 2, what may be there again later with 5."""
    assert exit_code_of(error) is expected


def test_ids_are_quoted_in_paths() -> None:
    """An id cannot reach another route."""
    assert connection_path("../a?b", "token") == "/v1/connections/..%2Fa%3Fb/token"
    assert connection_path("a:b@c") == "/v1/connections/a:b@c"
