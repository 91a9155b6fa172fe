"""Each event is one log line and its count, and tells no secret."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from daemon.domain.events import Events
from daemon.domain.outcome import FailureReason, Granted, Outcome, OutcomeKind
from daemon.domain.revocation import Initiator, RevocationResult
from daemon.telemetry.events import TelemetryEvents
from daemon.telemetry.metrics import Metrics
from tests.support.telemetry import CANARY, StoppedClock, captured_log, claim_with_secrets

CLAIM = claim_with_secrets()
GRANTED = Outcome(
    kind=OutcomeKind.OK,
    granted=Granted(
        access_token=f"at-{CANARY}-new", refresh_token=f"rt-{CANARY}-new", expires_in=3600
    ),
    warnings=("scope_narrowed",),
)
REFUSED = Outcome(
    kind=OutcomeKind.REFUSED,
    reason=FailureReason.RATE_LIMITED,
    error="slow_down",
    description="The provider asks for fewer requests.",
    salvaged_refresh_token=f"rt-{CANARY}-salvaged",
)
DEAD = Outcome(
    kind=OutcomeKind.REAUTHORIZE, reason=FailureReason.INVALID_GRANT, error="invalid_grant"
)
SPEECHLESS = Outcome(kind=OutcomeKind.IN_DOUBT)

Tell = Callable[[Events], None]
ACME = {"connection": "con_1", "provider": "acme"}
REFRESHES = "tokenward_refreshes_total"
FAILURES = "tokenward_refresh_failures_total"
AUTHORIZATIONS = "tokenward_authorizations_total"
REVOCATIONS = "tokenward_revocations_total"
TESTS = "tokenward_connection_tests_total"
DELIVERIES = "tokenward_webhook_deliveries_total"
EVT = {"id": "evt_7", "connection": "con_1"}

# What is told; the line's level and keys; the samples that move, with their new values.
TABLE: dict[str, tuple[Tell, str, dict[str, Any], list[tuple[str, dict[str, str]]]]] = {
    "connection_created": (
        lambda e: e.connection_created("con_1", "acme"),
        "info",
        ACME,
        [],
    ),
    "connection_authorized": (
        lambda e: e.connection_authorized("con_1", "acme", has_refresh_token=True),
        "info",
        {**ACME, "has_refresh_token": True},
        [(AUTHORIZATIONS, {"outcome": "completed"})],
    ),
    "authorization_failed": (
        lambda e: e.authorization_failed("con_1", "acme", code="server_error", reference="R7"),
        "warning",
        {**ACME, "error": "server_error", "reference": "R7"},
        [(AUTHORIZATIONS, {"outcome": "failed"})],
    ),
    "authorization_failed, denied": (
        lambda e: e.authorization_failed("con_1", "acme", code="access_denied", reference="R7"),
        "warning",
        {**ACME, "error": "access_denied", "reference": "R7"},
        [(AUTHORIZATIONS, {"outcome": "denied"})],
    ),
    "authorization_failed, of nobody": (
        lambda e: e.authorization_failed(None, None, code="unknown_state", reference="R7"),
        "warning",
        {"connection": None, "provider": None, "error": "unknown_state", "reference": "R7"},
        [(AUTHORIZATIONS, {"provider": "unknown", "outcome": "failed"})],
    ),
    "token_refreshed": (
        lambda e: e.token_refreshed(CLAIM, GRANTED, duration=0.12345, lag=2.0),
        "info",
        {
            **ACME,
            "generation": 5,
            "duration": 0.123,
            "lag": 2.0,
            "expires_in": 3600,
            "warnings": ["scope_narrowed"],
        },
        [
            (REFRESHES, {"outcome": "success"}),
            ("tokenward_refresh_duration_seconds_count", {}),
            ("tokenward_refresh_lag_seconds_count", {"provider": ""}),
        ],
    ),
    "token_refreshed, asked for": (
        lambda e: e.token_refreshed(CLAIM, replace(GRANTED, warnings=()), duration=1, lag=None),
        "info",
        {
            **ACME,
            "generation": 5,
            "duration": 1,
            "lag": None,
            "expires_in": 3600,
            "warnings": [],
        },
        [
            (REFRESHES, {"outcome": "success"}),
            ("tokenward_refresh_duration_seconds_count", {}),
        ],
    ),
    "refresh_failed": (
        lambda e: e.refresh_failed(CLAIM, REFUSED, duration=0.5, retry_in=12.3456),
        "warning",
        {
            **ACME,
            "generation": 4,
            "outcome": "refused",
            "reason": "rate_limited",
            "error": "slow_down",
            "description": "The provider asks for fewer requests.",
            "failures": 3,
            "duration": 0.5,
            "retry_in": 12.346,
        },
        [
            (REFRESHES, {"outcome": "failed"}),
            (FAILURES, {"reason": "rate_limited"}),
            ("tokenward_refresh_duration_seconds_count", {}),
        ],
    ),
    "refresh_failed, for good": (
        lambda e: e.refresh_failed(CLAIM, DEAD, duration=0.5, retry_in=None),
        "warning",
        {
            **ACME,
            "generation": 4,
            "outcome": "reauthorize",
            "reason": "invalid_grant",
            "error": "invalid_grant",
            "description": "",
            "failures": 3,
            "duration": 0.5,
            "retry_in": None,
        },
        [
            (REFRESHES, {"outcome": "rejected"}),
            (FAILURES, {"reason": "invalid_grant"}),
            ("tokenward_refresh_duration_seconds_count", {}),
        ],
    ),
    "refresh_failed, without a reason": (
        lambda e: e.refresh_failed(CLAIM, SPEECHLESS, duration=0.5, retry_in=1),
        "warning",
        {
            **ACME,
            "generation": 4,
            "outcome": "in_doubt",
            "reason": "other",
            "error": None,
            "description": "",
            "failures": 3,
            "duration": 0.5,
            "retry_in": 1,
        },
        [
            (REFRESHES, {"outcome": "failed"}),
            (FAILURES, {"reason": "other"}),
            ("tokenward_refresh_duration_seconds_count", {}),
        ],
    ),
    "refresh_superseded": (
        lambda e: e.refresh_superseded("con_1", "acme"),
        "info",
        ACME,
        [(REFRESHES, {"outcome": "superseded"})],
    ),
    "reauthorization_required": (
        lambda e: e.reauthorization_required("con_1", "acme", cause=FailureReason.INVALID_GRANT),
        "warning",
        {**ACME, "reason": "invalid_grant"},
        [],
    ),
    "connection_recovered": (
        lambda e: e.connection_recovered("con_1", "acme"),
        "info",
        ACME,
        [],
    ),
    "provider_circuit_changed": (
        lambda e: e.provider_circuit_changed("acme", is_open=True, reason="invalid_client"),
        "warning",
        {"provider": "acme", "is_open": True, "reason": "invalid_client"},
        [],
    ),
    "connection_tested": (
        lambda e: e.connection_tested("con_1", "acme", ok=True, status=200, code=None),
        "info",
        {**ACME, "ok": True, "status": 200, "error": None},
        [(TESTS, {"outcome": "ok"})],
    ),
    "connection_tested, refused": (
        lambda e: e.connection_tested("con_1", "acme", ok=False, status=401, code="unauthorized"),
        "warning",
        {**ACME, "ok": False, "status": 401, "error": "unauthorized"},
        [(TESTS, {"outcome": "unauthorized"})],
    ),
    "connection_tested, in vain": (
        lambda e: e.connection_tested("con_1", "acme", ok=False, status=500, code="failed"),
        "warning",
        {**ACME, "ok": False, "status": 500, "error": "failed"},
        [(TESTS, {"outcome": "failed"})],
    ),
    "connection_tested, with no answer": (
        lambda e: e.connection_tested("con_1", "acme", ok=False, status=None, code="network"),
        "warning",
        {**ACME, "ok": False, "status": None, "error": "network"},
        [(TESTS, {"outcome": "unreachable"})],
    ),
    "connection_disconnected": (
        lambda e: e.connection_disconnected(
            "con_1", "acme", initiator=Initiator.OPERATOR, is_purged=True
        ),
        "info",
        {**ACME, "initiator": "operator", "is_purged": True},
        [],
    ),
    "connection_merged": (
        lambda e: e.connection_merged("con_1", "acme", merged="con_2"),
        "info",
        {**ACME, "merged": "con_2"},
        [],
    ),
    "revocation_ended": (
        lambda e: e.revocation_ended(
            "con_1", "acme", initiator=Initiator.CALLER, result=RevocationResult.QUEUED
        ),
        "info",
        {**ACME, "initiator": "caller", "result": "queued"},
        [(REVOCATIONS, {"initiator": "caller", "result": "queued"})],
    ),
    "revocation_abandoned": (
        lambda e: e.revocation_abandoned(
            "con_1", "acme", initiator=Initiator.CALLER, error="No reply."
        ),
        "warning",
        {**ACME, "initiator": "caller", "error": "No reply."},
        [],
    ),
    "webhook_delivered": (
        lambda e: e.webhook_delivered("evt_7", "con_1", attempts=1),
        "debug",
        {**EVT, "attempts": 1},
        [(DELIVERIES, {"provider": "", "outcome": "delivered"})],
    ),
    "webhook_delivery_failed": (
        lambda e: e.webhook_delivery_failed(
            "evt_7", "con_1", attempts=2, error="Status 500.", retry_in=300.12345
        ),
        "warning",
        {**EVT, "attempts": 2, "error": "Status 500.", "retry_in": 300.123},
        [(DELIVERIES, {"provider": "", "outcome": "failed"})],
    ),
    "webhook_delivery_dead": (
        lambda e: e.webhook_delivery_dead("evt_7", "con_1", attempts=10, error="Status 410."),
        "warning",
        {**EVT, "attempts": 10, "error": "Status 410."},
        [(DELIVERIES, {"provider": "", "outcome": "dead"})],
    ),
}


def _moved(registry: CollectorRegistry) -> dict[str, float]:
    lines = generate_latest(registry).decode().splitlines()
    counted = ("_total{", "_count{", "_count ")
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("tokenward_")
        and any(part in line for part in counted)
        and not line.endswith(" 0.0")
    }


@pytest.mark.parametrize("name", TABLE)
def test_an_event_is_one_line_and_its_counts(name: str) -> None:
    """The line has the event's name, level and stable keys; exactly its counts move, by one."""
    tell, level, keys, samples = TABLE[name]
    registry = CollectorRegistry()
    metrics = Metrics(registry, providers=["acme"], clock=StoppedClock(), version="1")
    with captured_log() as captured:
        tell(TelemetryEvents(metrics))
        (line,) = captured.lines()
    del line["timestamp"]
    assert line == {"event": name.partition(",")[0], "level": level, **keys}
    for sample, labels in samples:
        named = {"provider": "acme", **labels}
        assert registry.get_sample_value(sample, {k: v for k, v in named.items() if v}) == 1
    assert len(_moved(registry)) == len(samples)


def test_the_table_has_every_event() -> None:
    """A new event cannot be forgotten here."""
    events = {name for name in vars(Events) if not name.startswith("_")}
    assert events == {name.partition(",")[0] for name in TABLE}


@pytest.mark.parametrize(
    "echo",
    [
        CLAIM.tokens.access_token,
        CLAIM.tokens.refresh_token,
        REFUSED.salvaged_refresh_token,
        f"bad token {CLAIM.tokens.refresh_token}",
        (CLAIM.tokens.refresh_token or "")[:-4],
    ],
)
def test_a_provider_that_echoes_a_token_in_its_error_is_not_quoted(echo: str) -> None:
    """An error code that holds a token, whole or cut, is not logged."""
    registry = CollectorRegistry()
    events = TelemetryEvents(
        Metrics(registry, providers=["acme"], clock=StoppedClock(), version="1")
    )
    with captured_log() as captured:
        events.refresh_failed(CLAIM, replace(REFUSED, error=echo), duration=1, retry_in=1)
        (line,) = captured.lines()
    assert line["error"] == "[redacted]"


def test_no_event_tells_a_secret() -> None:
    """Tokens planted in claims and outcomes reach neither the log nor the metrics nor a repr."""
    registry = CollectorRegistry()
    events = TelemetryEvents(
        Metrics(registry, providers=["acme"], clock=StoppedClock(), version="1")
    )
    with captured_log() as captured:
        for tell, _, _, _ in TABLE.values():
            tell(events)
        log = captured.text()
    assert log.count("\n") == len(TABLE)
    assert CANARY not in log + generate_latest(registry).decode() + repr((CLAIM, GRANTED, REFUSED))
