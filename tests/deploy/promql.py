"""What an expression of PromQL names: series with their matchers, and labels it groups by.

No parser, ``promtool`` is one. This finds enough to compare names with a real registry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from daemon.domain.clock import SystemClock
from daemon.telemetry.metrics import Metrics
from daemon.telemetry.sinks import SinkTelemetry
from daemon.telemetry.token_reads import TokenReads
from tests.deploy.prometheus import Rule

SCRAPED = frozenset({"job", "instance"})
"""Labels that Prometheus puts on everything it scrapes."""

_SELECTOR = re.compile(r"(?<![\w:$\"])([A-Za-z_:][\w:]*)\s*(?:\{([^}]*)\})?(?!\w)")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
# A template's variable, or a pattern that can mean anything.
_OPEN = re.compile(r"[$*+?.\[(\\]")
_WORDS = frozenset(
    {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool"}
    | {"sum", "min", "max", "avg", "count", "topk", "rate", "increase", "changes", "absent"}
    | {"min_over_time", "max_over_time", "histogram_quantile"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """A series in an expression. ``values`` are literal values of a label that it compares with."""

    name: str
    values: Mapping[str, frozenset[str]]


def selectors(expr: str) -> Iterator[Selector]:
    """Yield every series that an expression reads."""
    bare = _GROUPING.sub(" ", expr)
    for match in _SELECTOR.finditer(bare):
        name, matchers = match.groups()
        if name in _WORDS or bare[match.start() - 1 : match.start()] == "[":
            continue
        yield Selector(
            name=name,
            values={
                label: _literals(value) for label, _, value in _MATCHER.findall(matchers or "")
            },
        )


def grouped_by(expr: str) -> set[str]:
    """Return every label that an expression groups or matches by."""
    lists = _GROUPING.findall(expr)
    return {label.strip() for names in lists for label in names.split(",") if label.strip()}


def _literals(value: str) -> frozenset[str]:
    return frozenset() if _OPEN.search(value) else frozenset(value.split("|"))


def exposed() -> dict[str, dict[str, set[str]]]:
    """Return what a real registry exposes: by series its labels, by label its values."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, providers=["acme"], clock=SystemClock(), version="0")
    metrics.watch_log(lambda: 0)
    metrics.watch_journal(lambda: 0)
    TokenReads(registry, providers=["acme"])
    SinkTelemetry(registry)
    # What Prometheus adds by itself.
    found: dict[str, dict[str, set[str]]] = {"up": {}}
    for family in registry.collect():
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def recorded(rules: list[Rule]) -> dict[str, dict[str, set[str]]]:
    """Return the series that recording rules make; their labels are what their name begins with."""
    return {
        rule.name: {label: set() for label in rule.name.partition(":")[0].split("_")}
        for rule in rules
        if not rule.is_alert
    }


def strangers(expr: str, known: Mapping[str, Mapping[str, set[str]]]) -> list[str]:
    """Return what an expression names and nothing exposes: series, labels, values of labels."""
    found: list[str] = []
    labels = set(SCRAPED)
    for selector in selectors(expr):
        series = known.get(selector.name)
        if series is None:
            found.append(selector.name)
            continue
        labels |= set(series)
        for label, values in selector.values.items():
            if label not in series and label not in SCRAPED:
                found.append(f"{selector.name}{{{label}}}")
            elif label in series and label != "provider":
                found += [f"{label}={value}" for value in sorted(values - series[label])]
    return found + sorted(grouped_by(expr) - labels)
