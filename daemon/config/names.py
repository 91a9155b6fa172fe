"""Which ``{name}`` may stand where in a provider's entry, and what follows from where it stands.

The one hard idea: a name is checked against the moment when its template is filled. Fields are
known before there is a token, replies only after it, and a test's own reply only after the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from daemon.config.reading import Reading
from daemon.config.trail import Trail
from daemon.config.vocabulary import listing
from daemon.domain.fields import Field
from daemon.domain.templates import ACCESS_TOKENS, ROOTS, Template, full_name, host_names

_ROOT = re.compile(r"[A-Za-z]+")
_LONGEST_SHOWN = 80
# Members that are as good as a token. A name's value is kept in clear beside the connection.
SECRET_MEMBERS = frozenset({"access_token", "refresh_token", "id_token", "client_secret"})
_SPENT_MEMBERS = frozenset({"code", "state"})


_FIELDS, _BEFORE_TEST = frozenset({"fields"}), frozenset({"fields", "token", "callback"})
_OF_ITSELF = (
    "must not use {name}: that is the reply of this request itself; use fields, token. or callback."
)
_NO_TEST = "uses the test request's reply (me.), and there is no such request; configure test"
_TOKEN_ELSEWHERE = (
    "must not hold the access token, which would be shown or stored in clear; {access_token} may "
    "stand in headers and query of request and test only"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """When a template is filled, and with what.

    ``roots`` are known by then, and ``too_early`` says why others are not. ``takes_token``: the
    access token itself may stand there. ``is_needed``: without each of its values there is nothing
    to send.
    """

    roots: frozenset[str] = frozenset(ROOTS)
    too_early: str = ""
    takes_token: bool = False
    is_needed: bool = True


FOR_ENDPOINT = Use(
    roots=_FIELDS,
    too_early="must not use {name}: it is needed before there is a token, so only fields can be "
    "used here, such as {{region}}",
)
FOR_API = Use()
FOR_REQUEST = Use(takes_token=True)
FOR_TEST = Use(roots=_BEFORE_TEST, too_early=_OF_ITSELF)
FOR_TEST_REQUEST = Use(roots=_BEFORE_TEST, too_early=_OF_ITSELF, takes_token=True)
FOR_LABEL = Use(is_needed=False)


@dataclass(slots=True, kw_only=True)
class Names:
    """The names of one provider: its fields, and which names its templates use.

    ``kept`` gathers the names of replies that must be kept for later, ``in_hosts`` the fields that
    stand in the host of a URL, with the key of the first such URL.
    """

    reading: Reading
    fields: Mapping[str, Field]
    has_test: bool
    kept: set[str] = field(default_factory=set)
    in_hosts: dict[str, str] = field(default_factory=dict)

    def check(self, trail: Trail, template: Template, use: Use) -> None:
        """Note a finding for each name of ``template`` that cannot be filled there.

        A field that may be left out is one to be warned of: the connect page asks for it wherever
        a URL needs it, and the other values are missing only where nobody gave them.
        """
        problems = set()
        for name in template.names:
            if (problem := self._problem(name, use)) is not None:
                problems.add(problem)
            elif name.startswith("fields.") and use.is_needed:
                self._warn_of_gap(trail, name)
            elif use.is_needed:
                self.kept.update({name} - ACCESS_TOKENS)
        for problem in sorted(problems):
            self.reading.find(trail, problem)

    def check_url(self, trail: Trail, template: Template, use: Use) -> None:
        """Do the same for a URL, whose host takes labels only."""
        self.check(trail, template, use)
        for name in host_names(template):
            bare = name.removeprefix("fields.")
            if bare in self.fields:
                self.in_hosts.setdefault(bare, str(trail[-1]))

    def problem_of_roots(self, roots: Iterable[str]) -> str | None:
        """Return why a selector over these roots finds nothing."""
        return _NO_TEST if "me" in roots and not self.has_test else None

    def _problem(self, name: str, use: Use) -> str | None:
        if name in ACCESS_TOKENS:
            return None if use.takes_token else _TOKEN_ELSEWHERE
        root = match[0] if (match := _ROOT.match(name)) else ""
        if root == "fields":
            return self._problem_of_field(name, use)
        if root not in use.roots:
            return use.too_early.format(name=_shown(name))
        if _is_secret(name, root):
            return (
                f"must not use {_shown(name)}, which is a secret and would be stored in clear; the "
                "current access token is {access_token}, in headers and query of request and test"
            )
        return self.problem_of_roots({root})

    def _problem_of_field(self, name: str, use: Use) -> str | None:
        wanted = self.fields.get(name.removeprefix("fields."))
        if wanted is None:
            known = f"there are: {listing(self.fields)}" if self.fields else "add it under fields"
            others = listing(f"{root}." for root in ROOTS if root in use.roots - _FIELDS)
            hint = f" (a value of a reply begins with one of {others})" if others else ""
            return f"uses {_shown(name)}, which is not a field of this provider; {known}{hint}"
        return None

    def _warn_of_gap(self, trail: Trail, name: str) -> None:
        wanted = self.fields.get(name.removeprefix("fields."))
        if wanted is not None and not wanted.required and wanted.default is None:
            message = (
                f"needs the field {wanted.name}, which a person may leave out; give that field "
                "required: true, or a default"
            )
            self.reading.warn(trail, message)


def _is_secret(name: str, root: str) -> bool:
    steps = {step.lower() for step in re.split(r"[.\[\]]", name)[1:]}
    return bool(steps & SECRET_MEMBERS) or (root == "callback" and bool(steps & _SPENT_MEMBERS))


def _shown(name: str) -> str:
    written = name.removeprefix("fields.") if name.startswith("fields.") else name
    written = written if full_name(written) == name else name
    return f"{{{written[:_LONGEST_SHOWN]}}}"
