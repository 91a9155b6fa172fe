"""Tracing in the configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from daemon.config.reload import changes
from tests.support.configuration import Desk

ROOT = Path(__file__).parents[3]
_ON = "tracing: {enabled: true}"


def test_off_unless_said(desk: Desk) -> None:
    """Nobody traces by accident."""
    assert not desk.load("").tracing.enabled
    assert desk.load(_ON).tracing.enabled


def test_missing_packages_are_a_finding() -> None:
    """It says what to install; where it is off nothing is missed."""
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from daemon.config.loading import load_settings\n"
        "from daemon.domain.errors import ConfigurationError\n"
        "load_settings(path=None, environ={'HOME': '/'})\n"
        "on = {'HOME': '/', 'TOKENWARD_TRACING__ENABLED': 'true'}\n"
        "try: load_settings(path=None, environ=on)\n"
        "except ConfigurationError as error: print(*error.findings)"
    )
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)  # noqa: S603 - our own interpreter
    assert "tracing.enabled" in said.stdout
    assert "pip install 'tokenward[tracing]'" in said.stdout


@pytest.mark.parametrize(
    "name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"]
)
def test_another_protocol_is_a_finding(desk: Desk, name: str) -> None:
    """Spans that would be sent in a way nobody expects are not sent at all."""
    (found,) = desk.findings(_ON, environ={name: "grpc"})
    assert found.path == "tracing.enabled"
    assert desk.findings(_ON, environ={name: "http/protobuf"}) == ()
    assert desk.findings("", environ={name: "grpc"}) == ()


def test_a_reload_keeps_it(desk: Desk) -> None:
    """It takes a restart."""
    found = changes(desk.load(""), desk.load(_ON))
    assert [one.path for one in found.restart] == ["tracing.enabled"]
    assert not found.settings.tracing.enabled
