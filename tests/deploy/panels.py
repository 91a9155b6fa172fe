"""Draws panels of the dashboards from what a real Prometheus answers, where no Grafana is.

The expressions, titles, units and stacking are the dashboards' own; only the drawing is ours.
``python -m tests.deploy.panels drill.json docs/images`` draws again what a drill has kept.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tests.deploy.dashboards import Panel, filled, panels
from tests.deploy.drawing import Band, Chart, Line, page
from tests.deploy.prometheus import Prometheus
from tests.support.chromium import Chromium, find_chromium

_STEP = 10
_WIDTH = 1440
# Colours of the dashboards' overrides, on white.
_COLORS = {
    "green": "#3d9a50",
    "blue": "#3a78c2",
    "yellow": "#d9a400",
    "orange": "#e8801a",
    "red": "#c9303e",
    "purple": "#8a4fbf",
    "text": "#777777",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture: panels of one board for one provider, under the alerts."""

    name: str
    board: str
    titles: Sequence[str]


PICTURES = (
    Picture(
        name="dashboard-overview",
        board="tokenward-overview",
        titles=(
            "Alerts",
            "Token requests",
            "Failures by provider and reason",
            "Time to the next expiry",
            "Connections by status",
            "Due and in flight",
            "Database and notifications",
        ),
    ),
    Picture(
        name="dashboard-provider",
        board="tokenward-provider",
        titles=(
            "Alerts",
            "Refreshes",
            "Failures by reason",
            "Time to the next expiry",
            "Token requests",
            "Refresh duration",
            "Connections by status",
        ),
    ),
)


async def draw(
    prometheus: Prometheus,
    directory: Path,
    *,
    since: float,
    until: float,
    provider: str,
    bands: Sequence[Band],
) -> None:
    """Ask for everything that the pictures show, keep the answers, and draw them."""
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    answers: dict[str, list[Any]] = {}
    for panel in panels():
        for expr, _ in panel.targets:
            asked = filled(expr, provider=provider)
            found = await prometheus.ask(
                "query_range", query=asked, start=str(since), end=str(until), step=str(_STEP)
            )
            answers[f"{panel.board} {expr}"] = found["result"]
    kept = {
        "since": since,
        "until": until,
        "bands": [[band.name, band.begins, band.ends] for band in bands],
        "answers": answers,
    }
    await asyncio.to_thread((directory / "drill.json").write_bytes, orjson.dumps(kept))
    await _draw(kept, directory)


async def _draw(kept: Mapping[str, Any], directory: Path) -> None:
    executable = find_chromium()
    if executable is None:
        return
    async with Chromium(executable) as browser:
        for picture in PICTURES:
            html, height = page(_charts(picture, kept), width=_WIDTH)
            file = directory / f"{picture.name}.html"
            await asyncio.to_thread(file.write_text, html, encoding="utf-8")
            await browser.resize(_WIDTH, height)
            await browser.open(file.as_uri())
            await browser.until_text(picture.titles[-1])
            await browser.screenshot(directory / f"{picture.name}.png")
            await asyncio.to_thread(file.unlink)


def _charts(picture: Picture, kept: Mapping[str, Any]) -> list[Chart]:
    own = {panel.title: panel for panel in panels() if panel.board == picture.board}
    bands = [Band(name=name, begins=begins, ends=ends) for name, begins, ends in kept["bands"]]
    return [_chart(own[title], kept, bands) for title in picture.titles]


def _chart(panel: Panel, kept: Mapping[str, Any], bands: Sequence[Band]) -> Chart:
    since = kept["since"]
    lines = []
    for expr, legend in panel.targets:
        for series in kept["answers"][f"{panel.board} {expr}"]:
            name = _legend(legend, series["metric"])
            points = [((float(at) - since) / 60, float(v)) for at, v in series["values"]]
            lines.append(Line(name=name, points=points, color=_color(panel, name)))
    custom = panel.source["fieldConfig"]["defaults"].get("custom", {})
    return Chart(
        title=panel.title,
        unit=panel.unit,
        lines=sorted(lines, key=lambda line: line.points[0][0])
        if panel.kind == "state-timeline"
        else lines,
        stacked=custom.get("stacking", {}).get("mode") == "normal",
        is_timeline=panel.kind == "state-timeline",
        bands=bands,
        end=(kept["until"] - since) / 60,
    )


def _legend(template: str, labels: Mapping[str, str]) -> str:
    for label in (
        "alertname",
        "provider",
        "reason",
        "outcome",
        "status",
        "initiator",
        "result",
        "code",
    ):
        template = template.replace(f"{{{{{label}}}}}", labels.get(label, ""))
    return " ".join(template.replace("{{instance}}", "").split())


def _color(panel: Panel, name: str) -> str | None:
    for override in panel.source["fieldConfig"]["overrides"]:
        if name.startswith(override["matcher"]["options"].removeprefix("^")):
            return _COLORS[override["properties"][0]["value"]["fixedColor"]]
    return None


def main() -> int:
    """Draw again."""
    kept = orjson.loads(Path(sys.argv[1]).read_bytes())
    asyncio.run(_draw(kept, Path(sys.argv[2])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
