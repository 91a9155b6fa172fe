"""The dashboards of deploy/grafana, as a test looks at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tests.support.tokenward import ROOT

BOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel with its expressions, each with the legend of its series."""

    board: str
    title: str
    kind: str
    unit: str
    targets: tuple[tuple[str, str], ...]
    source: Mapping[str, Any]

    def __str__(self) -> str:
        """Return what a test is called by."""
        return f"{self.board}: {self.title}"


def load(board: Path) -> dict[str, Any]:
    """Return a dashboard."""
    document: dict[str, Any] = orjson.loads(board.read_bytes())
    return document


def panels() -> Iterator[Panel]:
    """Yield every panel that shows something."""
    for board in BOARDS:
        for panel in load(board)["panels"]:
            if panel["type"] != "row":
                yield Panel(
                    board=board.stem,
                    title=panel["title"],
                    kind=panel["type"],
                    unit=panel["fieldConfig"]["defaults"].get("unit", ""),
                    targets=tuple((t["expr"], t["legendFormat"]) for t in panel["targets"]),
                    source=panel,
                )


def filled(expr: str, *, job: str = "tokenward", provider: str, interval: str = "1m") -> str:
    """Return an expression with its variables filled in, as Grafana does."""
    return (
        expr.replace("$__rate_interval", interval)
        .replace("$job", job)
        .replace("$provider", provider)
    )
