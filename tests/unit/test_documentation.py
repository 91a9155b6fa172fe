"""What README, architecture and changelog say is there, is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from typer.main import get_command

from daemon.cli.commands import app as command_line
from daemon.domain.clock import SystemClock, system_entropy
from daemon.sidecar.ops import Health, create_ops_app
from daemon.sidecar.public import PublicParts, create_public_app
from daemon.telemetry.metrics import Metrics
from daemon.telemetry.token_reads import TokenReads
from tests.support.api_routes import api_routes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))

_LINK = re.compile(r"\]\(([^)\s#]+)")
_MODULE = re.compile(r"[\w./]+\.py\b")


def _commands() -> Iterator[str]:
    """Yield every command as it is typed."""
    for name, command in cast("Any", get_command(command_line)).commands.items():
        for below in getattr(command, "commands", {None: command}):
            yield name if below is None else f"{name} {below}"


def _other_routes() -> Iterator[str]:
    """Yield the paths of the other two listeners that somebody opens or configures."""
    ops = create_ops_app(
        registry=CollectorRegistry(),
        health=cast("Health", SimpleNamespace()),
        entropy=system_entropy,
    )
    parts = SimpleNamespace(
        public_url="http://localhost:7421", failures=None, entropy=system_entropy
    )
    public = create_public_app(cast("PublicParts", parts))
    for resource in (*ops.router.resources(), *public.router.resources()):
        if resource.canonical not in ("/connect/completed", "/connect/static/{name}"):
            yield resource.canonical


def _metrics() -> Iterator[str]:
    """Yield the names of all metrics of ours, without their prefix, as Prometheus shows them."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, providers=["acme"], clock=SystemClock(), version="0")
    metrics.watch_log(lambda: 0)
    metrics.watch_journal(lambda: 0)
    TokenReads(registry, providers=["acme"])
    suffixes = {"counter": "_total", "info": "_info"}
    for family in registry.collect():
        if family.name.startswith("tokenward_"):
            yield family.name.removeprefix("tokenward_") + suffixes.get(family.type, "")


@pytest.mark.parametrize("command", sorted(_commands()))
def test_every_command_is_in_the_readme(command: str) -> None:
    """The command line's table has a row for it."""
    assert re.search(rf"^\| `tokenward {command}[ `]", README, re.MULTILINE)


def test_the_readme_invents_no_command() -> None:
    """What stands in the command line's table exists."""
    shown = re.findall(r"^\| `tokenward ([a-z]+(?: [a-z]+)?)", README, re.MULTILINE)
    assert sorted(shown) == sorted(_commands())


@pytest.mark.parametrize("route", sorted(api_routes()))
def test_every_route_of_the_api_is_in_the_readme(route: str) -> None:
    """The table of the HTTP API has it, with its method."""
    assert f"`{route}`" in README


def test_the_readme_invents_no_route() -> None:
    """Every route in the table of the HTTP API is served."""
    shown = re.findall(r"`((?:GET|POST|PATCH|DELETE|ANY) /\S+)`", README)
    assert set(shown) == api_routes()


@pytest.mark.parametrize("path", sorted(_other_routes()))
def test_every_other_route_is_in_the_readme(path: str) -> None:
    """The table of listeners has it."""
    assert f"`{path}`" in README


@pytest.mark.parametrize("name", sorted(_metrics()))
def test_every_metric_is_in_the_readme(name: str) -> None:
    """The metrics' table has it."""
    table = README.partition("## Metrics")[2].partition("\n## ")[0]
    assert re.search(rf"`{name}[{{`]", table)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    """A link that is no URL names something in this repository, relative to its document."""
    links = _LINK.findall(document.read_text(encoding="utf-8"))
    broken = [
        link
        for link in links
        if "://" not in link and not (document.parent / link).resolve().exists()
    ]
    assert broken == []


def test_modules_that_the_architecture_names_exist() -> None:
    """A file that moves takes its mention along."""
    known = [f"/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("daemon/**/*.py")]
    known += [f"/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob(".ci/*.py")]
    named = set(_MODULE.findall(ARCHITECTURE))
    missing = [name for name in named if not any(path.endswith(f"/{name}") for path in known)]
    assert missing == []


def test_the_changelog_has_an_unreleased_section() -> None:
    """A change has a place to be told."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]$", changelog, re.MULTILINE)


def test_the_targets_that_documents_name_exist() -> None:
    """Every `make …` in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", README + ARCHITECTURE, re.MULTILINE))
    assert named <= targets
    assert named >= {"run", "test", "check", "bench"}
