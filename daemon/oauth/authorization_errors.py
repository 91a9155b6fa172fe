"""Why an authorization failed, in words a person can act on (RFC 6749 4.1.2.1).

A provider's code chooses among sentences of ours; its own text is never shown, for anybody can
write a link that carries some.
"""

from __future__ import annotations

import re
from base64 import b32encode
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from daemon.domain.clock import Clock, Entropy
from daemon.domain.events import Events
from daemon.domain.history import EventType, NewEvent
from daemon.oauth.authorization_words import OURS, PROVIDERS, UNKNOWN

log = structlog.get_logger()

_SHOWABLE_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_UNSHOWABLE = "unrecognized_error"
# 7 bytes fill 10 base32 characters; 50 bits tell the failures of a log apart.
_REFERENCE_BYTES, _REFERENCE_CHARACTERS = 7, 10


@dataclass(frozen=True, slots=True)
class Fault:
    """What ended an authorization: a code of ours, or one that the provider sent.

    ``detail`` is a further sentence of ours, for operators; it is shown and logged.
    ``is_recorded`` says that the history has it already, with what it made the store do.
    """

    code: str
    from_provider: bool = False
    detail: str = ""
    is_recorded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An authorization that ended without tokens, ready to be shown.

    ``code`` is ours or the provider's, restricted to characters that are harmless anywhere;
    ``reference`` is also in the log.
    """

    status: int
    code: str
    title: str
    happened: str
    action: str
    detail: str
    reference: str


class AuthorizationFailures:
    """Turns faults into pages' words, each with a reference that is told to ``events`` too.

    ``record`` puts a failure into its connection's history; it must neither block nor raise.
    """

    def __init__(
        self,
        *,
        events: Events,
        clock: Clock,
        entropy: Entropy,
        record: Callable[[NewEvent], None] = lambda _: None,
    ) -> None:
        self._events = events
        self._clock = clock
        self._entropy = entropy
        self._record = record

    def report(
        self, fault: Fault, *, connection: str | None = None, provider: str | None = None
    ) -> Failed:
        """Log ``fault`` under a new reference and return what to show. Never raises."""
        reference = b32encode(self._entropy(_REFERENCE_BYTES)).decode()[:_REFERENCE_CHARACTERS]
        failed = explain(fault, provider=provider, reference=reference)
        self._events.authorization_failed(
            connection, provider, code=failed.code, reference=reference
        )
        if fault.detail:
            log.warning("authorization_failure_explained", reference=reference, detail=fault.detail)
        if connection is not None and provider is not None and not fault.is_recorded:
            self._record(
                NewEvent(
                    type=EventType.AUTHORIZATION_FAILED,
                    connection=connection,
                    provider=provider,
                    at=self._clock.now(),
                    detail={"code": failed.code, "reference": reference},
                )
            )
        return failed


def explain(fault: Fault, *, provider: str | None, reference: str) -> Failed:
    """Return the words for ``fault``; a code without words of its own gets general ones."""
    words = (PROVIDERS if fault.from_provider else OURS).get(fault.code, UNKNOWN)
    # A fault met before the transaction is known has words that name no provider.
    name = provider or "the provider"
    return Failed(
        status=words.status,
        code=fault.code if _SHOWABLE_CODE.fullmatch(fault.code) else _UNSHOWABLE,
        title=words.title.replace("{provider}", name),
        happened=words.happened.replace("{provider}", name),
        action=words.action.replace("{provider}", name),
        detail=fault.detail,
        reference=reference,
    )
