"""How errors are answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog
from aiohttp import web

from daemon.domain.errors import (
    DatabaseUnavailableError,
    KeyringError,
    Problem,
)
from daemon.sidecar.problems import problem_of, problem_response

SECRET = "rt-very-secret"


def _entropy(size: int) -> bytes:
    return b"\xab" * size


def _body_of(problem: Problem) -> dict[str, Any]:
    payload = problem_response(problem).body
    assert isinstance(payload, bytes)
    parsed: dict[str, Any] = json.loads(payload)
    return parsed


def test_a_problem_is_answered_as_rfc_9457_says() -> None:
    """Type, code, title, status and detail are there, further members too, nothing is cached."""
    problem = Problem(409, "disconnected", "Connect again.", connection="acme-1", gone=None)
    response = problem_response(problem)
    assert response.status == 409
    assert response.content_type == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert "Retry-After" not in response.headers
    assert _body_of(problem) == {
        "type": "urn:tokenward:problem:disconnected",
        "code": "disconnected",
        "title": "The connection was disconnected",
        "status": 409,
        "detail": "Connect again.",
        "connection": "acme-1",
    }


@pytest.mark.parametrize(
    ("retry_after", "seconds"), [(0, 1), (-3.0, 1), (0.2, 1), (1, 1), (2.01, 3), (120, 120)]
)
def test_retry_after_is_whole_seconds_and_at_least_one(retry_after: float, seconds: int) -> None:
    """The header and the member say the same, rounded up."""
    problem = Problem(503, "token_unavailable", "Try again.", retry_after=retry_after)
    assert problem_response(problem).headers["Retry-After"] == str(seconds)
    assert _body_of(problem)["retry_after"] == seconds


def test_members_cannot_hide_what_every_problem_has() -> None:
    """A further member that is named like one of RFC 9457's does not replace it."""
    problem = Problem(400, "bad_request", "Send less.", title="x", type="y")
    assert _body_of(problem)["title"] == "The request cannot be understood"
    assert _body_of(problem)["type"] == "urn:tokenward:problem:bad_request"


def test_headers_of_a_problem_are_sent() -> None:
    """A challenge reaches the caller."""
    problem = Problem(401, "unauthenticated", "Send a key.", headers={"WWW-Authenticate": "Bearer"})
    assert problem_response(problem).headers["WWW-Authenticate"] == "Bearer"


def test_an_unknown_code_has_the_status_phrase_as_title() -> None:
    """A code without a title of its own is titled like its status."""
    assert _body_of(Problem(418, "short_and_stout", "Pour."))["title"] == "I'm a Teapot"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Problem(404, "unknown_connection", "Check the id."), 404, "unknown_connection"),
        (DatabaseUnavailableError("host=secret"), 503, "database_unavailable"),
        (web.HTTPNotFound(), 404, "not_found"),
        (web.HTTPMethodNotAllowed("PUT", ["POST", "GET"]), 405, "method_not_allowed"),
        (web.HTTPRequestEntityTooLarge(10, 20), 413, "body_too_large"),
        (web.HTTPExpectationFailed(), 417, "expectation_failed"),
        (KeyringError("secret"), 500, "internal_error"),
        (ValueError(SECRET), 500, "internal_error"),
        (TimeoutError(), 500, "internal_error"),
    ],
)
def test_every_error_has_its_problem(error: Exception, status: int, code: str) -> None:
    """Each exception that can reach the boundary becomes one problem that says what to do."""
    with structlog.testing.capture_logs():
        problem = problem_of(error, _entropy)
    assert (problem.status, problem.code) == (status, code)
    assert len(problem.detail) > 10
    assert "secret" not in problem.detail


def test_the_allowed_methods_are_kept() -> None:
    """405 says which methods the route has (RFC 9110 15.5.6)."""
    problem = problem_of(web.HTTPMethodNotAllowed("PUT", ["POST", "GET"]), _entropy)
    assert problem.headers["Allow"] == "GET, POST"


def test_an_absent_database_says_when_to_ask_again() -> None:
    """503 carries Retry-After."""
    response = problem_response(problem_of(DatabaseUnavailableError(), _entropy))
    assert int(response.headers["Retry-After"]) >= 1


def test_an_unforeseen_error_is_a_reference_and_a_log_line_without_texts() -> None:
    """The answer has only a reference; the log has it too, with types and places, no messages."""

    def fails() -> None:
        try:
            int(SECRET)
        except ValueError as error:
            raise RuntimeError(f"cannot use {SECRET}") from error

    with pytest.raises(RuntimeError, match="cannot") as caught:
        fails()
    with structlog.testing.capture_logs() as lines:
        problem = problem_of(caught.value, _entropy)
    reference = "ab" * 8
    assert problem.members == {"reference": reference}
    assert reference in problem.detail
    (line,) = lines
    assert line["event"] == "request_failed"
    assert line["reference"] == reference
    assert line["error"] == ["RuntimeError", "ValueError"]
    assert any("test_problems.py" in frame and "fails" in frame for frame in line["frames"])
    assert SECRET not in repr(line) + problem.detail
