"""Global options may stand anywhere."""

from __future__ import annotations

import pytest

from daemon.cli.invocation import global_first


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["run"], ["run"]),
        (["run", "--config", "a.yaml"], ["--config", "a.yaml", "run"]),
        (["--config", "a.yaml", "run"], ["--config", "a.yaml", "run"]),
        (["show", "--output=json", "x"], ["--output=json", "show", "x"]),
        (["show", "x", "--output"], ["--output", "show", "x"]),
        (["token", "x", "--json", "--api", "u"], ["--api", "u", "token", "x", "--json"]),
        (["show", "--", "--config"], ["show", "--", "--config"]),
        (["demo", "--api-port", "1"], ["demo", "--api-port", "1"]),
    ],
)
def test_global_options_come_first(given: list[str], expected: list[str]) -> None:
    """Global options move to the front with their values; everything else keeps its order."""
    assert global_first(given) == expected
