"""The runbook has a section or a row for whatever an operator can meet."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from daemon.cli.commands import app as command_line
from daemon.domain.connection import Status
from daemon.domain.outcome import FailureReason
from daemon.oauth.authorization_words import OURS
from daemon.persistence.postgres import Database
from tests.deploy.prometheus import rules
from tests.support.tokenward import ROOT

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
_SECTION = re.compile(r"^#{2,3} (.+?)\n(.*?)(?=^#{2,3} |\Z)", re.MULTILINE | re.DOTALL)
SECTIONS = dict(_SECTION.findall(RUNBOOK))
ALERTS = {rule.name: rule for rule in rules() if rule.is_alert}
# Said by policy, store and tests themselves, beside the reasons of failures.
OF_OURS = {
    "in_doubt",
    "reply_lost",
    "no_refresh_token",
    "token_revoked",
    "decrypt_error",
    "field_missing",
    "other_account",
    "account_connected_elsewhere",
}


def _anchor(heading: str) -> str:
    """Return the fragment that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for path in ROOT.glob("daemon/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                function: Any = node.func
                yield str(getattr(function, "id", "") or getattr(function, "attr", "")), node


def _problem_codes() -> set[str]:
    """Return the code of every problem that the code raises by name."""
    found = set[str]()
    for name, call in _calls():
        if name == "Problem" and len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
            found.add(str(call.args[1].value))
    return found


def _codes(section: str) -> set[str]:
    """Return every code in the first column of a section's table."""
    rows = re.findall(r"^\| (`[^|]+)\|", SECTIONS[section], re.MULTILINE)
    return {code for row in rows for code in re.findall(r"`(\w+)`", row)} - {"event"}


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_section(name: str) -> None:
    """Its runbook_url leads to a section that says how to see it and what to do."""
    document, _, anchor = ALERTS[name].annotations["runbook_url"].partition("#")
    assert (ROOT / document).read_text(encoding="utf-8") == RUNBOOK
    assert anchor in {_anchor(heading) for heading in SECTIONS}
    assert "**See:**" in SECTIONS[name]
    assert "**Do:**" in SECTIONS[name]


def test_the_runbook_invents_no_alert() -> None:
    """Every name of an alert in it exists."""
    assert set(re.findall(r"\bTokenward[A-Z]\w+", RUNBOOK)) <= set(ALERTS)


@pytest.mark.parametrize("status", Status)
def test_every_state_has_a_section(status: Status) -> None:
    """It says what the state means and what to do."""
    assert "**Do:**" in SECTIONS[status.value]


@pytest.mark.parametrize("code", sorted(_problem_codes()))
def test_every_problem_of_the_api_has_a_row(code: str) -> None:
    """What callers report can be looked up."""
    assert code in _codes("Codes of the API")


@pytest.mark.parametrize("code", sorted(OURS))
def test_every_failure_page_has_a_row(code: str) -> None:
    """What people report can be looked up."""
    assert code in _codes("Codes on failure pages")


@pytest.mark.parametrize("code", sorted({*FailureReason, *OF_OURS}))
def test_every_error_of_a_connection_has_a_row(code: str) -> None:
    """What stands in last_error can be looked up."""
    assert code in _codes("Codes in last_error")


@pytest.mark.parametrize("typed", sorted(set(re.findall(r"`tokenward ([^`]+)`", RUNBOOK))))
def test_commands_in_the_runbook_exist(typed: str) -> None:
    """Each command is one, and has the options that are shown with it."""
    command: Any = get_command(command_line)
    words = typed.split()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands")
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("query", re.findall(r"```sql\n(.*?)```", RUNBOOK, re.DOTALL))
async def test_queries_in_the_runbook_run(query: str, database: Database) -> None:
    """The schema has what they ask for."""
    assert await database.fetch(query.strip().rstrip(";")) is not None


def test_links_within_the_runbook_lead_to_sections() -> None:
    """Every fragment is a heading's."""
    anchors = {_anchor(heading) for heading in SECTIONS}
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) <= anchors


def test_log_lines_in_the_runbook_exist() -> None:
    """Every event of the log's table is written somewhere."""
    written = {
        str(call.args[0].value)
        for name, call in _calls()
        if name in {"info", "warning", "error"}
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }
    assert _codes("Lines of the log that want a person") <= written
