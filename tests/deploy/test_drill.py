"""What the drill makes of alerts that fired, and how pictures of it are drawn."""

from __future__ import annotations

import pytest

from tests.deploy.drawing import Band, Chart, Line, page
from tests.deploy.incidents import ACME, END, INCIDENTS, Firing, firing_of, judge

RIGHT = [
    Firing(alert=alert, provider=provider, labels={}, spans=[(one.begins + 2, one.ends + 3)])
    for one in INCIDENTS
    for alert, provider in sorted(one.alerts)
]


def test_alerts_that_fire_for_what_happened_are_right() -> None:
    """Each incident has its alerts, and they clear."""
    assert judge(RIGHT, end=END) == []


def test_an_alert_that_does_not_fire_is_a_fault() -> None:
    """An incident that nobody hears of is found."""
    silent = [one for one in RIGHT if one.alert != "TokenwardDatabaseDown"]
    assert judge(silent, end=END) == ["PostgreSQL is stopped: TokenwardDatabaseDown  did not fire"]


@pytest.mark.parametrize(
    ("since", "until", "fault"),
    [
        (0.5, 1.0, "TokenwardRefreshBacklog acme fired from 0.5 to 1.0"),
        (END - 2, END, "TokenwardRefreshBacklog acme has not cleared"),
    ],
)
def test_an_alert_for_nothing_is_a_fault(since: float, until: float, fault: str) -> None:
    """One that nothing explains, or that stays, is found."""
    wrong = Firing(
        alert="TokenwardRefreshBacklog", provider=ACME, labels={}, spans=[(since, until)]
    )
    assert fault in judge([*RIGHT, wrong], end=END)


def test_an_alert_that_fired_twice_has_two_spans() -> None:
    """A gap that is longer than two scrapes ends a span."""
    values = [[at, "1"] for at in (1060, 1065, 1070, 1180, 1185)]
    series = {"metric": {"alertname": "TokenwardDown"}, "values": values}
    spans = firing_of(series, 1000, every=5).spans
    assert [(round(since, 2), round(until, 2)) for since, until in spans] == [
        (1.0, 1.17),
        (3.0, 3.08),
    ]


def test_a_page_has_titles_legends_and_bands() -> None:
    """Names are escaped, endless values leave a gap, and what happened is marked."""
    chart = Chart(
        title="Time & expiry",
        unit="s",
        lines=[Line(name="<acme>", points=[(0, 60), (1, float("inf")), (2, 30), (2.2, 20)])],
        stacked=False,
        is_timeline=False,
        bands=[Band(name="outage", begins=1, ends=2)],
        end=5,
    )
    html, height = page([chart], width=1440)
    assert height > 200
    assert "Time &amp; expiry" in html
    assert "&lt;acme&gt;" in html
    assert html.count("<polyline") == 2
    assert html.count("<rect") == 1
    assert "inf" not in html
