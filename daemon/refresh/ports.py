"""What refreshing needs of the world: narrow ports, each satisfied structurally elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from daemon.domain.admission import ProviderState
from daemon.domain.authorization import Completion, NotStored, StoredAuthorization
from daemon.domain.claim import (
    Abandoned,
    Claim,
    DueClaims,
    Orphan,
    Refusal,
    Settled,
    Settlement,
    Standing,
)
from daemon.domain.claimable import Wanted
from daemon.domain.journal import JournaledReply
from daemon.domain.outcome import Granted, Outcome
from daemon.domain.provider import Provider
from daemon.domain.reply import RawReply
from daemon.domain.tokens import CurrentToken, TokenSet, Version
from daemon.oauth.identifying import Identity


class RefreshStore(Protocol):
    """The refresh protocol's rows, shared by all replicas.

    Every method is atomic and may raise DatabaseUnavailableError, after which it is unknown
    whether it took effect. ``settle`` may be repeated; a claim that was taken unknowingly is
    found by its take-over time. Claims last ``hold`` on the store's own clock.
    """

    async def claim_due(
        self, *, room: Mapping[str, tuple[int, float]], owner: str, hold: timedelta, now: datetime
    ) -> DueClaims:
        """Claim what is due at ``now``: ``room`` gives (places, rate) for each provider."""

    async def claim(
        self, wanted: Wanted, *, owner: str, hold: timedelta, now: datetime
    ) -> Claim | Refusal:
        """Claim one connection that somebody waits for."""

    async def reclaim(
        self, connection_id: str, *, attempt: str, generation: int, owner: str, hold: timedelta
    ) -> Claim | Refusal | None:
        """Claim again for a reply that the journal kept; ``None`` where it is not wanted.

        Refused as ``sending`` while another attempt is on its way, as ``disconnected`` or
        ``unknown`` where its tokens belong to nothing any more: then they are to be disowned.
        """

    async def disown(
        self,
        connection_id: str,
        tokens: TokenSet,
        *,
        provider: str,
        fields: Mapping[str, str],
        now: datetime,
    ) -> None:
        """Queue tokens for revocation that came too late for their connection."""

    async def abandoned_by(self, owner: str) -> list[Abandoned]:
        """Return the open claims of an owner that has just started, and so has sent nothing."""

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime) -> list[Settled]:
        """Write how attempts ended; one answer for each, in order.

        What is stored is stored with its events. Where a disconnect came first nothing is, and
        the new tokens are queued for revocation in the same go.
        """

    async def abandoned(self, providers: Sequence[str], *, now: datetime) -> list[Abandoned]:
        """Return claims whose take-over time has passed."""

    async def next_due(self, providers: Sequence[str], *, after: datetime) -> datetime | None:
        """Return the soonest due time later than ``after``."""

    async def learn(self, provider: str, outcome: Outcome) -> tuple[ProviderState, ProviderState]:
        """Let the fleet know what an outcome says of its provider; return before and after."""


class LateReplies(Protocol):
    """What becomes of a reply whose claim is not there any more.

    May raise StorageError, of which DatabaseUnavailableError says that trying again helps.
    """

    async def recall(
        self,
        connection_id: str,
        *,
        attempt: str,
        generation: int,
        sent_at: datetime,
        epoch: int,
        owner: str,
        hold: timedelta,
    ) -> Claim | Refusal | None:
        """Claim again, also where the database has forgotten generations; ``None``: not wanted.

        Refused as by ``RefreshStore.reclaim``, and as ``disconnected`` where it was since.
        ``generation``, ``sent_at`` and ``epoch`` are of the request.
        """

    async def newest_orphan(self, connection_id: str) -> Orphan | None:
        """Return the newest refresh token of the connection's grant that was never stored."""


class Incarnations(Protocol):
    """Which incarnation of the database claims may be taken in: one that has forgotten nothing.

    Methods may raise DatabaseUnavailableError.
    """

    async def current(self) -> str:
        """Return the name of the incarnation in use."""

    async def is_known(self, incarnation: str) -> bool:
        """Tell whether this very replica has trusted it before, in this process or an earlier."""

    async def changed(self) -> None:
        """Return when a claim was refused, because it would be in one that is not trusted."""

    async def trust(self, incarnation: str) -> None:
        """Let claims be taken in an incarnation: this process's journal was compared with it."""

    def hold_back(self, providers: Collection[str]) -> None:
        """Let nothing be claimed at these providers, until called again without them."""

    async def all_replayed(self, incarnation: str) -> bool:
        """Tell whether every known replica trusts it, or has had 10 min to."""

    async def standing(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        """Return where these connections stand; unknown ids are left out."""


class Exchanged(Protocol):
    """Where the tokens of an exchange are stored after a restart."""

    async def complete(self, completion: Completion) -> StoredAuthorization | NotStored:
        """Store them, or say why not; see ``daemon.domain.authorization.AuthorizationStore``."""


class Identities(Protocol):
    """Whose account an exchange was for that the journal has kept.

    Both methods may raise DatabaseUnavailableError.
    """

    async def identify(
        self, entry: JournaledReply, provider: Provider, granted: Granted, tokens: TokenSet
    ) -> Identity:
        """Find out what its callback would have: ask, within 10 s, where there is anything to."""

    async def identity(
        self, entry: JournaledReply, provider: Provider, granted: Granted, tokens: TokenSet
    ) -> Identity:
        """Return what the reply itself tells, of a grant that was judged and stored before."""


class CurrentTokens(Protocol):
    """Where current tokens are read from when memory does not have them."""

    async def current(self, ids: Sequence[str]) -> list[CurrentToken]:
        """Return what serving needs of these connections; unknown ids are left out."""

    async def versions(self, ids: Sequence[str]) -> dict[str, Version]:
        """Return what tells whether memory is stale; unknown ids are left out."""


class Providers(Protocol):
    """The providers of the configuration in force."""

    def get(self, name: str) -> Provider | None:
        """Return a provider as configured."""


class RefreshSender(Protocol):
    """The door to token endpoints, for refreshing."""

    async def refresh(
        self,
        provider: Provider,
        refresh_token: str,
        *,
        fields: Mapping[str, str],
        hard_timeout: float,
        send_by: float,
        received: Callable[[RawReply], Awaitable[None]],
    ) -> Outcome:
        """Send one refresh request (RFC 6749 6); never raises for what a provider does.

        ``fields`` are the connection's: they may be part of the endpoint.
        ``hard_timeout`` is in seconds. ``send_by`` is a boot time after which nothing may be
        sent any more: the outcome is then ``not_sent``. ``received`` is awaited with each raw
        reply before it is read.
        """


class Asks(Protocol):
    """How a process that never claims has others refresh. May raise DatabaseUnavailableError."""

    async def ask(self, wanted: Wanted, *, now: datetime) -> Refusal | None:
        """Mark a connection due at ``now``, or return why it would not be claimed."""


class Publisher(Protocol):
    """Tells the other replicas that a connection has changed."""

    def publish(self, connection_id: str) -> None:
        """Send soon, batched; best effort, never raises."""
