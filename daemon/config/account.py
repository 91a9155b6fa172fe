"""Whose account a connection is: the label that people see, and what tells accounts apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from jmespath.parser import ParsedResult

from daemon.config.names import FOR_LABEL, SECRET_MEMBERS, Names
from daemon.config.parameters import selector
from daemon.config.reading import OpenSection
from daemon.config.values import InvalidValueError, boolean, text
from daemon.config.vocabulary import listing
from daemon.domain.provider import Provider
from daemon.domain.templates import NAME, ROOTS, Template, parse_template

_LONGEST_LABEL = 300
# In these the parts after the first look into what the first has found.
_CHAINS = frozenset(
    {"subexpression", "index_expression", "projection", "value_projection", "pipe"}
    | {"filter_projection", "flatten"}
)


def with_account(section: OpenSection, provider: Provider, names: Names) -> Provider:
    """Return ``provider`` with ``label``, ``label_mask`` and ``account_id``."""
    label = section.optional("label", _label)
    if label is not None:
        names.check(section.at("label"), label, FOR_LABEL)
    is_masked = section.get("label_mask", boolean, default=False)
    if is_masked and section.raw("label") is None:
        section.reading.warn(section.at("label_mask"), "has no effect without a label")
    account_id = section.optional("account_id", selector)
    if account_id is not None and (problem := _problem(account_id, names)) is not None:
        section.reading.find(section.at("account_id"), problem)
    return replace(provider, label=label, label_mask=is_masked, account_id=account_id)


def _label(value: object) -> Template:
    label = text(value)
    if len(label) > _LONGEST_LABEL:
        raise InvalidValueError(f"must be at most {_LONGEST_LABEL} characters")
    rest = label
    for name in NAME.findall(label):
        rest = rest.replace(f"{{{name}}}", "")
    if "{" in rest or "}" in rest:
        raise InvalidValueError(
            'has a brace that is not part of a {name}; an example is "{me.name} ({me.email})"'
        )
    return parse_template(label)


def _problem(found: ParsedResult, names: Names) -> str | None:
    """Return why a selector cannot tell accounts apart."""
    roots = set(_roots(found.parsed))
    if not roots or not roots <= set(ROOTS):
        return (
            f"must begin with one of {listing(ROOTS)}: me.id is the member id of the test "
            "request's reply"
        )
    if SECRET_MEMBERS.intersection(_members(found.parsed)):
        return "must not use a token, which would be stored in clear and changes with each refresh"
    return names.problem_of_roots(roots)


def _roots(node: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names that a JMESPath looks up at the top; ``@`` where it takes all that is there.

    What an expression reference (``&id``) looks into is chosen by the function that it is for.
    """
    kind, children = node.get("type"), node.get("children", [])
    if kind == "field":
        yield str(node["value"])
    elif kind in {"current", "identity"}:
        yield "@"
    elif kind != "expref":
        for child in children[:1] if kind in _CHAINS else children:
            yield from _roots(child)


def _members(node: object) -> Iterator[str]:
    """Yield the name of every member that a JMESPath touches."""
    if isinstance(node, dict):
        if node.get("type") == "field":
            yield str(node.get("value")).lower()
        for child in node.get("children", []):
            yield from _members(child)
