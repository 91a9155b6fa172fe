"""Series as promtool reads them, one value a minute, for cases in which alerts fire or do not.

``1+2x3`` is 1, 3, 5, 7 and ``1x3`` is 1, 1, 1, 1. ``J`` stands for the labels of a scrape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

J = 'job="tokenward",instance="a:7422"'
K = 'job="tokenward",instance="b:7422"'
CENTRAL = 'job="refreshers",instance="c:7422"'
ACME = {"job": "tokenward", "provider": "acme"}
AT = {"job": "tokenward", "instance": "a:7422"}
JOB = {"job": "tokenward"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is scraped, and what fires from minute ``at`` on: pairs of labels and value.

    A case that fires is quiet a minute earlier. ``adds`` says that the value is twice as much
    where two daemons tell the same; otherwise it is the same, or each has an alert of its own.
    """

    alert: str
    why: str
    series: Mapping[str, str]
    at: int
    fires: tuple[tuple[Mapping[str, str], float], ...] = ()
    adds: bool = False


def in_a_fleet(case: Case) -> Case:
    """Return the case with a second daemon that tells what the first does."""
    twins = {name.replace(J, K): values for name, values in case.series.items()}
    fires = [(labels, 2 * value if case.adds else value) for labels, value in case.fires]
    fires += [
        ({**labels, "instance": "b:7422"}, value)
        for labels, value in case.fires
        if "instance" in labels
    ]
    return replace(case, series={**twins, **case.series}, fires=tuple(fires))


def refreshes(outcome: str, values: str, *, scrape: str = J) -> dict[str, str]:
    """Return acme's refreshes by outcome."""
    return {f'tokenward_refreshes_total{{{scrape},provider="acme",outcome="{outcome}"}}': values}


def failures(reason: str, values: str, *, scrape: str = J) -> dict[str, str]:
    """Return acme's failed refreshes by reason."""
    name = "tokenward_refresh_failures_total"
    return {f'{name}{{{scrape},provider="acme",reason="{reason}"}}': values}


def connections(status: str, values: str, *, scrape: str = J) -> dict[str, str]:
    """Return acme's connections by status."""
    return {f'tokenward_connections{{{scrape},provider="acme",status="{status}"}}': values}


def reads(outcome: str, values: str) -> dict[str, str]:
    """Return token requests for acme by outcome."""
    return {f'tokenward_token_requests_total{{{J},provider="acme",outcome="{outcome}"}}': values}


def grants(name: str, labels: str, values: str) -> dict[str, str]:
    """Return one of acme's counters."""
    return {f'tokenward_{name}{{{J},provider="acme",{labels}}}': values}


def bare(name: str, values: str, *, scrape: str = J) -> dict[str, str]:
    """Return a series of the daemon as a whole."""
    return {f"{name}{{{scrape}}}": values}


def role(name: str, values: str, *, scrape: str = J) -> dict[str, str]:
    """Return whether a daemon has a role."""
    return {f'tokenward_role{{{scrape},role="{name}"}}': values}


def histogram(name: str, buckets: Mapping[str, str]) -> dict[str, str]:
    """Return the buckets of a histogram."""
    return {f'tokenward_{name}_bucket{{{J},le="{le}"}}': values for le, values in buckets.items()}


def keys_missing(needed: str, values: str) -> dict[str, str]:
    """Return how many encryption keys are missing at the first daemon."""
    return {f'tokenward_encryption_keys_missing{{{J},needed="{needed}"}}': values}


UP = bare("tokenward_database_up", "1x60")

# A busy fleet in which everything happens that may.
WELL = {
    **UP,
    **bare("up", "1x200"),
    **bare("process_start_time_seconds", "100x200"),
    **bare("process_open_fds", "90x200"),
    **bare("process_max_fds", "1000x200"),
    **bare("tokenward_database_up", "1x200"),
    **bare("tokenward_notification_listener_up", "1x200"),
    **bare("tokenward_journal_entries", "2x200"),
    **keys_missing("now", "0x200"),
    **keys_missing("soon", "0x200"),
    **bare("tokenward_log_lines_dropped_total", "0x200"),
    **bare("tokenward_refreshes_due", "30x200"),
    **grants("expired_connections", "", "0x200"),
    **grants("soonest_expiry_seconds", "", "100x200"),
    **connections("pending", "50x200"),
    **connections("active", "9000x200"),
    **connections("failing", "0x200"),
    **connections("reauthorization_required", "900x200"),
    **connections("disconnected", "400x200"),
    **refreshes("success", "0+600x200"),
    **refreshes("failed", "0+5x200"),
    **refreshes("rejected", "30x200"),
    **refreshes("superseded", "0+9x200"),
    **failures("network", "0+2x200"),
    **failures("timeout", "0+3x200"),
    **failures("rate_limited", "2x200"),
    **failures("invalid_client", "4x200"),
    **failures("invalid_grant", "30x200"),
    **reads("served", "0+5000x200"),
    **reads("refreshed", "0+50x200"),
    **reads("warned", "0+500x200"),
    **reads("unavailable", "0+1x200"),
    **reads("reauthorization_required", "0+500x200"),
    **reads("denied", "0+500x200"),
    **grants("authorizations_total", 'outcome="completed"', "0+4x200"),
    **grants("authorizations_total", 'outcome="denied"', "0+9x200"),
    **grants("authorizations_total", 'outcome="failed"', "0+1x200"),
    **grants("revocations_total", 'initiator="caller",result="revoked"', "0+3x200"),
    **grants("revocations_total", 'initiator="caller",result="queued"', "0+1x200"),
    **grants("revocations_total", 'initiator="provider",result="detected"', "3x200"),
    f'tokenward_webhook_deliveries_total{{{J},outcome="delivered"}}': "0+50x200",
    f'tokenward_webhook_deliveries_total{{{J},outcome="failed"}}': "0+1x200",
    f'tokenward_webhook_deliveries_total{{{J},outcome="dead"}}': "7x200",
    **histogram(
        "token_request_duration_seconds",
        {"0.0001": "0+6000x200", "1.0": "0+6050x200", "5.0": "0+6051x200", "+Inf": "0+6051x200"},
    ),
    **histogram(
        "refresh_lag_seconds", {"0.5": "0+590x200", "60.0": "0+599x200", "+Inf": "0+600x200"}
    ),
}  # fmt: skip
