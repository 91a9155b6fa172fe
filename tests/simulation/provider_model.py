"""An authorization server with ground truth: which refresh token lives, which was spent, and when.

A *family* is one grant: all refresh tokens that followed one authorization. Reuse of a spent one
where the profile does not excuse it ends the family, its access tokens with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.domain.provider import RotationKind
from tests.simulation.loop import Life
from tests.simulation.machines import Machine


@dataclass(eq=False, kw_only=True)
class Reply:
    """One token reply and what became of it; ``spent`` is the refresh token that it answers.

    ``kept_on`` is the machine whose disk has it for certain, on its volume ``kept_volume``;
    ``is_pending`` tells that the journal there has not been told to forget it. ``was_stored`` tells
    that the database had it once, ``sent_error`` how wrong the sender's wall clock was.
    """

    number: int
    family: Family
    spent: str | None
    refresh_token: str
    access_token: str
    lifetime: float
    made_at: float
    is_delivered: bool = False
    received_by: Life | None = None
    delivered_at_step: int = -1
    keeping_at_step: int = -1
    generation: int = 0
    epoch: int = 0
    sent_error: float = 0.0
    kept_on: Machine | None = None
    kept_volume: int = 0
    is_pending: bool = False
    is_refused_by_disk: bool = False
    was_stored: bool = False
    is_rolled_back: bool = False

    @property
    def expires_at(self) -> float:
        """Return the true time of the access token's end."""
        return self.made_at + self.lifetime

    @property
    def is_in_database(self) -> bool:
        """Tell whether the database has had it and has not forgotten it."""
        return self.was_stored and not self.is_rolled_back


@dataclass(eq=False, kw_only=True)
class Grown:
    """One refresh token of a family."""

    value: str
    parent: Grown | None
    spent_at: float | None = None
    has_used_child: bool = False
    is_displaced: bool = False


@dataclass(eq=False, kw_only=True)
class Family:
    """One grant. ``revoked_by_user`` tells that its end was nobody's fault here."""

    name: str
    connection: str
    profile: Profile
    is_alive: bool = True
    revoked_by_user: bool = False
    reused: list[str] = field(default_factory=list)
    tokens: dict[str, Grown] = field(default_factory=dict)
    replies: list[Reply] = field(default_factory=list)

    def accepts(self, value: str, now: float) -> bool:
        """Tell whether the refresh token works now."""
        token = self.tokens.get(value)
        return self.is_alive and token is not None and self.profile.accepts(token, now)

    def is_displaced(self, value: str) -> bool:
        """Tell whether another successor has taken a refresh token's place."""
        return self.is_alive and self.tokens[value].is_displaced

    def spender(self, value: str) -> Reply | None:
        """Return the first reply that spent a refresh token."""
        return next((reply for reply in self.replies if reply.spent == value), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a server does with a used refresh token. ``repeats`` (grace): the same successor.

    ``newest_only``: of several successors only the one that was issued last works; the others are
    refused, and so is their predecessor once one was used. That ends nothing.
    """

    kind: RotationKind
    grace: float = 0.0
    repeats: bool = False
    newest_only: bool = False

    @property
    def name(self) -> str:
        """Return the profile's, and its provider's, name."""
        name = f"{self.kind.value}{self.grace:g}" if self.grace else self.kind.value
        return f"{name}-newest" if self.newest_only else name

    def accepts(self, token: Grown, now: float) -> bool:
        """Tell whether using the token is no reuse."""
        if token.spent_at is None or self.kind in {RotationKind.STATIC, RotationKind.OVERLAP}:
            return True
        is_within = self.kind is RotationKind.GRACE and now - token.spent_at <= self.grace
        return is_within and not token.has_used_child


class ProviderModel:
    """All families of all profiles."""

    def __init__(self) -> None:
        self._count = 0
        self.families: list[Family] = []
        self.by_token: dict[str, Family] = {}
        self.by_access: dict[str, Reply] = {}

    def grant(self, connection: str, profile: Profile, *, lifetime: float, now: float) -> Reply:
        """Let a person authorize: a new family and its first reply."""
        family = Family(name=f"F{len(self.families) + 1}", connection=connection, profile=profile)
        self.families.append(family)
        return self._reply(family, None, None, lifetime=lifetime, now=now)

    def refresh(self, value: str, *, lifetime: float, now: float) -> tuple[Reply | None, bool]:
        """Answer a refresh request; tell, too, whether it was a reuse."""
        family = self.by_token.get(value)
        if family is None or not family.is_alive:
            return None, False
        token = family.tokens[value]
        if _is_passed_over(token, family.profile):
            return None, False
        if not family.profile.accepts(token, now):
            family.is_alive = False
            family.reused.append(value)
            return None, True
        if token.parent is not None:
            token.parent.has_used_child = True
        repeated = None
        if token.spent_at is not None and family.profile.repeats:
            repeated = family.spender(value)
        if token.spent_at is None:
            token.spent_at = now
        return self._reply(family, token, repeated, lifetime=lifetime, now=now), False

    def revoke(self, value: str, *, by_user: bool) -> None:
        """End the family of a refresh token."""
        family = self.by_token.get(value)
        if family is not None and family.is_alive:
            family.is_alive = False
            family.revoked_by_user |= by_user

    def _reply(
        self,
        family: Family,
        parent: Grown | None,
        repeated: Reply | None,
        *,
        lifetime: float,
        now: float,
    ) -> Reply:
        self._count += 1
        value = self._next_token(family, parent, repeated)
        if value not in family.tokens:
            if family.profile.newest_only:
                _displace(family, parent)
            family.tokens[value] = Grown(value=value, parent=parent)
            self.by_token[value] = family
        reply = Reply(
            number=self._count,
            family=family,
            spent=None if parent is None else parent.value,
            refresh_token=value,
            access_token=f"AT-{family.name}-{self._count}",
            lifetime=lifetime,
            made_at=now,
        )
        family.replies.append(reply)
        self.by_access[reply.access_token] = reply
        return reply

    def _next_token(self, family: Family, parent: Grown | None, repeated: Reply | None) -> str:
        if repeated is not None:
            return repeated.refresh_token
        if parent is not None and family.profile.kind is RotationKind.STATIC:
            return parent.value
        return f"RT-{family.name}-{self._count}"


def _is_passed_over(token: Grown, profile: Profile) -> bool:
    """Tell whether the server refuses a token and leaves the grant alone."""
    if not profile.newest_only:
        return False
    return token.is_displaced or (token.spent_at is not None and token.has_used_child)


def _displace(family: Family, parent: Grown | None) -> None:
    for token in family.tokens.values():
        token.is_displaced |= token.parent is parent and parent is not None
