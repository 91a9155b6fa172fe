"""What README, architecture and changelog say is there, is there."""

from __future__ import annotations

import json
import re
import runpy
from base64 import b64encode
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from typer.main import get_command

from daemon.cli.commands import app as command_line
from daemon.config.document import read_document
from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.history import Event, EventType
from daemon.sidecar.ops import Health, create_ops_app
from daemon.sidecar.public import PublicParts, create_public_app
from daemon.telemetry.metrics import Metrics
from daemon.telemetry.sinks import SinkTelemetry
from daemon.telemetry.token_reads import TokenReads
from daemon.upkeep.webhooks import sign
from tests.support.api_routes import api_routes
from tests.support.configuration import Desk

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
EVENTS = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))

_LINK = re.compile(r"\]\(([^)\s#]+)")
_ENTRY: Mapping[str, Any] = {
    "issuer": "https://as.example",
    "client_id": "me",
    "client_secret": {"env": "CLIENT_SECRET"},
    "api_base_url": "https://api.acme.example",
    "test": {"path": "/me"},
    "fields": {"region": {"default": "us"}},
}
_MODULE = re.compile(r"[\w./]+\.py\b")
_VERIFIERS = re.findall(r"```python\n(\S[^`]*def event_of\([^`]*)```", EVENTS)


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
    SinkTelemetry(registry)
    suffixes = {"counter": "_total", "info": "_info"}
    for family in registry.collect():
        if family.name.startswith("tokenward_"):
            yield family.name.removeprefix("tokenward_") + suffixes.get(family.type, "")


def _fragments() -> Iterator[str]:
    """Yield what the documents show of a provider's entry."""
    for name in ("connections.md", "proxy.md"):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        yield from re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A directory to load configurations from."""
    return Desk(tmp_path)


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


def test_the_table_of_events_has_every_type() -> None:
    """Every type of event is told of, with its detail, and none is invented."""
    shown = re.findall(r"^\| `((?:connection|token)\.\w+)` \|", EVENTS, re.MULTILINE)
    assert sorted(shown) == sorted(EventType)


@pytest.mark.parametrize("example", _VERIFIERS, ids=["package", "by hand"])
def test_the_examples_verify_a_delivery(example: str, tmp_path: Path) -> None:
    """What the document gives to receivers takes what is sent, and nothing that was changed."""
    (tmp_path / "receiver.py").write_text(example, encoding="utf-8")
    event_of = runpy.run_path(str(tmp_path / "receiver.py"))["event_of"]
    key, now = b"k" * 32, SystemClock().now()
    secret = f"whsec_{b64encode(key).decode()}"
    event = Event(
        id=7, type=EventType.CREATED, connection="acme-1", provider="acme", at=now, detail={}
    )
    sent = sign(event, key, now=now)
    assert event_of(secret, sent.headers, sent.body)["id"] == "evt_7"
    with pytest.raises(Exception, match=r"(?i)sign|match"):
        event_of(secret, sent.headers, sent.body.replace(b"acme-1", b"acme-2"))
    late = sign(event, key, now=now - timedelta(minutes=6))
    with pytest.raises(Exception, match="old"):
        event_of(secret, late.headers, late.body)


def test_the_configuration_in_the_readme_loads(desk: Desk) -> None:
    """The example that everybody copies has no finding and no warning."""
    example = README.partition("```yaml\n")[2].partition("```")[0]
    settings = desk.load(example, environ={"GITHUB_CLIENT_SECRET": "hush"})
    assert list(settings.providers) == ["github"]
    assert settings.warnings == ()


@pytest.mark.parametrize("fragment", list(_fragments()))
def test_the_configuration_in_documents_loads(fragment: str, desk: Desk) -> None:
    """What documents show of a provider's entry is accepted, beside what it leaves out."""
    desk.write("fragment.yaml", fragment)
    shown = cast("dict[str, Any]", read_document(desk.directory / "fragment.yaml"))
    desk.load(json.dumps({"providers": {"acme": {**_ENTRY, **shown}}}))


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
