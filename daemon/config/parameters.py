"""Maps of text at a provider: extra request parameters, and selectors for replies.

What the protocol itself sets cannot be set again (RFC 6749 3.1: no parameter more than once), and
the grants that RFC 9700 forbids are refused with its words wherever somebody asks for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions
from jmespath.parser import ParsedResult

from daemon.config.reading import OpenSection
from daemon.config.values import InvalidValueError, text
from daemon.config.vocabulary import listing

T = TypeVar("T")

PROTOCOL_PARAMETERS = frozenset(
    {
        "client_assertion",
        "client_assertion_type",
        "client_id",
        "client_secret",
        "code",
        "code_challenge",
        "code_challenge_method",
        "code_verifier",
        "grant_type",
        "redirect_uri",
        "refresh_token",
        "request",
        "request_uri",
        "response_type",
        "state",
    }
)
IMPLICIT = (
    "tokens in the URL fragment (the implicit grant) are not supported: RFC 9700 2.1.2 forbids "
    "them; remove this, tokenward asks for a code"
)
PASSWORD = (
    "the password grant is not supported: RFC 9700 2.4 forbids it; use authorization_code and let "
    "the person sign in at the provider"
)
_REPLY_MEMBERS = ("access_token", "token_type", "expires_in", "refresh_token", "scope", "error")
_LONGEST_SELECTOR = 300


def parameters(section: OpenSection, key: str) -> dict[str, str]:
    """Return the request parameters under ``key``."""
    problem = _authorization_problem if key == "authorization_params" else _parameter_problem
    return _texts(section, key, problem, parameter)


def selectors(section: OpenSection) -> dict[str, ParsedResult]:
    """Return the compiled selectors under ``token_response``, by RFC 6749 5.1 member name."""
    return _texts(section, "token_response", _member_problem, selector)


def parameter(value: object) -> str:
    """Return the value of a request parameter: text, perhaps empty, or a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return "" if value == "" else text(value)


def selector(value: object) -> ParsedResult:
    """Return a compiled JMESPath that calls only functions that there are."""
    expression = text(value)
    if len(expression) > _LONGEST_SELECTOR:
        raise InvalidValueError(f"must be at most {_LONGEST_SELECTOR} characters")
    try:
        with warnings.catch_warnings():
            # An old notation of literals (`word` for `"word"`) works and would warn.
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            compiled = jmespath.compile(expression)
        functions = _functions(compiled.parsed)
    except (JMESPathError, RecursionError):
        raise InvalidValueError(
            "is not a JMESPath expression; an example is authed_user.id"
        ) from None
    if not functions <= Functions.FUNCTION_TABLE.keys():
        raise InvalidValueError("calls a function that JMESPath does not have")
    return compiled


def _texts(
    section: OpenSection,
    key: str,
    problem: Callable[[str, object], str | None],
    reader: Callable[[object], T],
) -> dict[str, T]:
    found: dict[str, T] = {}
    for trail, name, value in section.reading.members(section.at(key), section.raw(key)):
        message = problem(name, value)
        if message is not None:
            section.reading.find(trail, message)
            continue
        read = section.reading.read(trail, value, reader)
        if read is not None:
            found[name] = read
    return found


def _member_problem(name: str, _value: object) -> str | None:
    if name in _REPLY_MEMBERS:
        return None
    return f"must be one of {listing(_REPLY_MEMBERS)} (RFC 6749 5.1)"


def _parameter_problem(name: str, value: object) -> str | None:
    folded = name.lower()
    if not name:
        return "a parameter must have a name"
    if folded == "response_type" and value != "code":
        return IMPLICIT
    if folded == "grant_type" and value == "password":
        return PASSWORD
    if folded in PROTOCOL_PARAMETERS:
        return "is set by tokenward itself and cannot be set here; remove it"
    return None


def _authorization_problem(name: str, value: object) -> str | None:
    if name.lower() == "scope":
        return "is set from scopes; list them there"
    if name.lower() == "response_mode" and value not in ("query", "form_post"):
        return "must be query or form_post: nothing else reaches the callback"
    return _parameter_problem(name, value)


def _functions(tree: object) -> set[str]:
    if isinstance(tree, list):
        return set().union(*map(_functions, tree))
    if not isinstance(tree, dict):
        return set()
    own = {str(tree["value"])} if tree.get("type") == "function_expression" else set()
    return own | _functions(tree.get("children", []))
