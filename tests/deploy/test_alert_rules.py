"""The rules of deploy/prometheus: what they name exists, and each fires when it should."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.deploy.alert_cases import CASES
from tests.deploy.alert_series import WELL, Case, in_a_fleet
from tests.deploy.prometheus import MISSING, RULES, Rule, find, rules
from tests.deploy.promql import exposed, recorded, strangers

ALL = rules()
ALERTS = {rule.name: rule for rule in ALL if rule.is_alert}
PROMTOOL = find("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason=MISSING)

_FIELD = re.compile(r"\{\{ (.*?) \}\}")
_FORMAT = re.compile(r'\$value \| printf "(%\.\df)"')


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.name)
def test_what_a_rule_names_is_exposed(rule: Rule) -> None:
    """Every series, label and value of a label in a rule is one of a real registry's."""
    assert strangers(rule.expr, exposed() | recorded(ALL)) == []


@pytest.mark.parametrize(
    ("expr", "stranger"),
    [
        ("tokenward_refreshs_total > 0", "tokenward_refreshs_total"),
        (
            'rate(tokenward_refreshes_total{result="failed"}[5m])',
            "tokenward_refreshes_total{result}",
        ),
        ('rate(tokenward_refreshes_total{outcome=~"failed|lost"}[5m])', "outcome=lost"),
        ("sum by (job, provider) (tokenward_refreshes_due)", "provider"),
        ("sum by (le) (rate(tokenward_refresh_lag_seconds[5m]))", "tokenward_refresh_lag_seconds"),
    ],
)
def test_a_name_that_nothing_exposes_is_found(expr: str, stranger: str) -> None:
    """A misspelt series, label or value does not pass."""
    assert stranger in strangers(expr, exposed())


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_what_a_person_needs(rule: Rule) -> None:
    """Severity, summary, description, impact, and where its section of the runbook is."""
    assert rule.labels["severity"] in {"critical", "warning", "info"}
    assert set(rule.annotations) == {"summary", "description", "impact", "runbook_url"}
    assert all(text.strip() for text in rule.annotations.values())
    assert rule.annotations["runbook_url"] == f"docs/runbook.md#{rule.name.lower()}"


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_both_cases(name: str) -> None:
    """There is a case in which it fires, and one in which it stays quiet."""
    own = [case for case in CASES if case.alert == name]
    assert {bool(case.fires) for case in own} == {True, False}


@needs_promtool
def test_promtool_accepts_the_files() -> None:
    """Expressions, durations and templates are well-formed, and the example can be loaded."""
    for check, file in (
        ("rules", "tokenward.rules.yml"),
        ("rules", "tokenward.alerts.yml"),
        ("config", "prometheus.example.yml"),
    ):
        done = _promtool("check", check, str(RULES / file))
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """In every case promtool finds exactly the alerts that are expected, in the right words."""
    document = {
        "rule_files": [str(RULES / "tokenward.alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            *(_promtool_test(case, begins=bool(case.fires)) for case in CASES),
            *(_promtool_test(in_a_fleet(case)) for case in CASES if case.fires),
            _all_is_well(),
        ],
    }
    file = tmp_path / "alerts.test.yml"
    file.write_bytes(orjson.dumps(document))
    done = _promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def _promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run(  # noqa: S603 - found on this machine
        [PROMTOOL, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def _promtool_test(case: Case, *, begins: bool = False) -> dict[str, Any]:
    rule = ALERTS[case.alert]
    expected = {case.at: [_expected(rule, labels, value) for labels, value in case.fires]}
    if begins:
        expected[case.at - 1] = []
    return {
        "name": f"{case.alert}: {case.why}",
        "interval": "1m",
        "input_series": [{"series": s, "values": v} for s, v in case.series.items()],
        "alert_rule_test": [
            {"eval_time": f"{at}m", "alertname": case.alert, "exp_alerts": alerts}
            for at, alerts in sorted(expected.items())
        ],
    }


def _all_is_well() -> dict[str, Any]:
    case = Case(alert=next(iter(ALERTS)), why="all is well", series=WELL, at=180)
    quiet = [{"eval_time": "180m", "alertname": name, "exp_alerts": []} for name in ALERTS]
    return {**_promtool_test(case), "alert_rule_test": quiet}


def _expected(rule: Rule, labels: Mapping[str, str], value: float) -> dict[str, Any]:
    def rendered(text: str) -> str:
        return _FIELD.sub(lambda found: _field(found[1], labels, value), text)

    return {
        "exp_labels": {**labels, **rule.labels},
        "exp_annotations": {name: rendered(text) for name, text in rule.annotations.items()},
    }


def _field(field: str, labels: Mapping[str, str], value: float) -> str:
    """Return what Prometheus puts in the place of a template's field."""
    if field.startswith("$labels."):
        return labels[field.removeprefix("$labels.")]
    if field == "$value":
        return f"{value:g}"
    if field == "$value | humanizePercentage":
        return f"{value * 100:.4g}%"
    matched = _FORMAT.fullmatch(field)
    assert matched is not None, f"a test does not know how Prometheus renders {field}"
    return str(matched[1] % value)
