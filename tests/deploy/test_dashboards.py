"""The dashboards of deploy/grafana: what they ask for exists, and a person can read them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.dashboards import BOARDS, Panel, load, panels
from tests.deploy.promql import exposed, strangers

PANELS = list(panels())
# What Prometheus makes of alerts that fire.
ALERTS = {"alertname": set[str](), "severity": set[str](), "reason": set[str]()}
KNOWN = exposed() | {"ALERTS": {**ALERTS, "alertstate": {"firing"}, "provider": set()}}


@pytest.mark.parametrize("panel", PANELS, ids=str)
def test_what_a_panel_asks_for_is_exposed(panel: Panel) -> None:
    """Every series, label and value of a label is one of a real registry's."""
    for expr, _ in panel.targets:
        assert strangers(expr, KNOWN) == []


@pytest.mark.parametrize("panel", PANELS, ids=str)
def test_a_panel_can_be_read(panel: Panel) -> None:
    """It has a unit, a sentence about itself, the chosen data source, and names for its lines."""
    assert panel.unit
    assert panel.source["description"].endswith(".")
    assert panel.source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    if panel.kind == "timeseries":
        assert all(legend for _, legend in panel.targets)


@pytest.mark.parametrize("panel", PANELS, ids=str)
def test_a_panel_keeps_to_the_chosen_fleet(panel: Panel) -> None:
    """Each expression is of the chosen job, and on the provider's board of the chosen provider."""
    for expr, _ in panel.targets:
        assert "$job" in expr or "ALERTS" in expr
        assert ('provider="$provider"' in expr) == (panel.board == "tokenward-provider")


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_panels_lie_beside_each_other(board: Path) -> None:
    """None covers another, none is wider than the board, and every id is there once."""
    document = load(board)
    assert document["uid"] == board.stem
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in document["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert not [pair for pair in combinations(places, 2) if _overlap(*pair)]


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_links_between_boards_lead_somewhere(board: Path) -> None:
    """Each link names the uid of a board that is here."""
    known = {f"/d/{path.stem}" for path in BOARDS}
    assert {link["url"] for link in load(board)["links"]} <= known


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    return not (beside or above)
