"""Whose account a connection is: label and identity, from the provider's own replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from daemon.domain.connection import TestResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the replies told of a connection's account; ``None`` where they did not.

    ``scope`` is :func:`daemon.domain.provider.account_scope`: ids are compared within it only.
    ``reply_values`` are those of ``Provider.reply_names`` that were found. ``test`` is how the
    test request went, where one was sent.
    """

    account_id: str | None = None
    scope: str = ""
    label: str | None = None
    reply_values: Mapping[str, str] = field(default_factory=dict, repr=False)
    test: TestResult | None = None
