"""What happens in a drill, and which alerts that must cause. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ACME, GLOBEX = "acme", "globex"

# Minutes after the start: what begins then. The last one is the end.
REVOKED, OUTAGE, HEALED, STOPPED, STARTED, END = 1.5, 2, 9, 14.5, 17, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What was done, from when to when (minutes), and the alerts that it must cause."""

    name: str
    begins: float
    ends: float
    alerts: frozenset[tuple[str, str]]
    """Pairs of alert and provider; no provider where it is about the daemon."""
    may: frozenset[tuple[str, str]] = frozenset()
    """Alerts that depend on when tokens happen to end."""
    clears_within: float = 11.0


INCIDENTS = (
    Incident(
        name="acme answers 503",
        begins=OUTAGE,
        ends=HEALED,
        alerts=frozenset(
            (name, ACME)
            for name in (
                "TokenwardProviderCircuitOpen",
                "TokenwardTokensAboutToExpire",
                "TokenwardConnectionsExpired",
                "TokenwardTokensUnavailable",
                "TokenwardRefreshesFailing",
            )
        ),
    ),
    Incident(
        name="a grant is revoked at globex",
        begins=REVOKED,
        ends=REVOKED,
        alerts=frozenset({("TokenwardReauthorizationRequired", GLOBEX)}),
        clears_within=18.0,
    ),
    Incident(
        name="PostgreSQL is stopped",
        begins=STOPPED,
        ends=STARTED,
        alerts=frozenset(
            {
                ("TokenwardDatabaseDown", ""),
                ("TokenwardTokensAboutToExpire", ACME),
                ("TokenwardTokensAboutToExpire", GLOBEX),
            }
        ),
        may=frozenset(
            (name, provider)
            for name in ("TokenwardTokensUnavailable", "TokenwardConnectionsExpired")
            for provider in (ACME, GLOBEX)
        ),
    ),
)


@dataclass(kw_only=True)
class Firing:
    """One alert that fired, in minutes after the start."""

    alert: str
    provider: str
    labels: Mapping[str, str]
    spans: list[tuple[float, float]] = field(default_factory=list)


def firing_of(series: Mapping[str, Any], began: float, *, every: float) -> Firing:
    """Return a series of ``ALERTS`` that has a value each ``every`` s, as spans of minutes."""
    labels = series["metric"]
    firing = Firing(alert=labels["alertname"], provider=labels.get("provider", ""), labels=labels)
    for at, _ in series["values"]:
        minute = (float(at) - began) / 60
        if firing.spans and minute - firing.spans[-1][1] < 2.5 * every / 60:
            firing.spans[-1] = (firing.spans[-1][0], minute)
        else:
            firing.spans.append((minute, minute))
    return firing


def judge(firings: Sequence[Firing], *, end: float) -> list[str]:
    """Return what did not fire, fired for nothing, or did not clear. Pure."""
    faults = []
    for incident in INCIDENTS:
        seen = {
            (one.alert, one.provider)
            for one in firings
            for since, _ in one.spans
            if incident.begins <= since <= incident.ends + incident.clears_within
        }
        faults += [
            f"{incident.name}: {name} {p} did not fire" for name, p in incident.alerts - seen
        ]
    for one in firings:
        for since, until in one.spans:
            if not any(_explains(incident, one, since, until) for incident in INCIDENTS):
                faults.append(f"{one.alert} {one.provider} fired from {since:.1f} to {until:.1f}")
            if until > end - 0.5:
                faults.append(f"{one.alert} {one.provider} has not cleared")
    return faults


def _explains(incident: Incident, firing: Firing, since: float, until: float) -> bool:
    is_its_own = (firing.alert, firing.provider) in incident.alerts | incident.may
    return (
        is_its_own and incident.begins <= since and until <= incident.ends + incident.clears_within
    )
