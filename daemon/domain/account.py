"""Whose account a connection is: label and identity, from the provider's own replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from daemon.domain.connection import Failure, TestResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the replies told of a connection's account; ``None`` where they did not.

    ``scope`` is :func:`daemon.domain.provider.account_scope`: ids are compared within it only.
    ``reply_values`` are those of ``Provider.reply_names`` that were found. ``test`` is how the
    test request went, where one was sent. ``is_withheld`` says that the provider names accounts,
    was asked, answered, and did not name this one: a person may have kept that from us.
    """

    account_id: str | None = None
    scope: str = ""
    label: str | None = None
    reply_values: Mapping[str, str] = field(default_factory=dict, repr=False)
    test: TestResult | None = None
    is_withheld: bool = False


def is_somebody_else(account: Account, expected: str | None) -> bool:
    """Tell whether replies named another account than ``expected``, a connection's."""
    return expected is not None and account.account_id not in {None, expected}


def verdict(account: Account, expected: str | None) -> TestResult | None:
    """Return how the test went: badly where its token is another account's. Pure."""
    test = account.test
    if test is None or not test.ok or not is_somebody_else(account, expected):
        return test
    error = Failure(code="other_account", description=_OTHER_ACCOUNT, at=test.checked_at)
    return replace(test, ok=False, error=error)


_OTHER_ACCOUNT = (
    "The token works, but it is another account's than the one that this connection is for. "
    "Connect again with the right account; if the account was renamed, make a new connection."
)
