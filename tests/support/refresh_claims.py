"""Short words for what the contract tests of refresh stores do."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from daemon.domain.claim import (
    Claim,
    ClaimState,
    DueClaims,
    Refusal,
    RefusalReason,
    Settled,
    Settlement,
)
from daemon.domain.claimable import Wanted
from daemon.domain.connection import Failure, Status
from daemon.domain.tokens import TokenSet
from tests.support.refresh_stages import Stage

HOLD = timedelta(seconds=120)
RATE = 1000.0


def tokens(stage: Stage, *, generation: int = 1, refreshable: bool = True) -> TokenSet:
    """Return tokens with half of an hour's life left."""
    return TokenSet(
        generation=generation,
        access_token=f"access {generation}",
        refresh_token="r" if refreshable else None,
        token_type="Bearer",
        scopes=("read", "write:all"),
        issued_at=stage.now() - timedelta(minutes=30),
        expires_at=stage.now() + timedelta(minutes=30),
    )


async def add(
    stage: Stage,
    *names: str,
    due_in: float | None = -1.0,
    provider: str = "acme",
    stored: TokenSet | None = None,
) -> None:
    """Store connections that are due in so many seconds, and let the rate save up."""
    due_at = None if due_in is None else stage.now() + timedelta(seconds=due_in)
    for name in names:
        await stage.add(name, stored or tokens(stage), provider=provider, due_at=due_at)
    await stage.pass_time(20)


async def due(
    stage: Stage, places: int = 8, *, rate: float = RATE, provider: str = "acme"
) -> DueClaims:
    """Claim what is due."""
    return await stage.store.claim_due(
        room={provider: (places, rate)}, owner="one", hold=HOLD, now=stage.now()
    )


async def want(
    stage: Stage, name: str = "a", *, generation: int = 1, forced: bool = False
) -> Claim | Refusal:
    """Claim one connection."""
    wanted = Wanted(
        connection_id=name, provider="acme", generation=generation, rate=RATE, forced=forced
    )
    return await stage.store.claim(wanted, owner="one", hold=HOLD, now=stage.now())


async def claimed(stage: Stage, name: str = "a", *, forced: bool = False) -> Claim:
    """Claim one connection that is to be had."""
    claim = await want(stage, name, forced=forced)
    assert isinstance(claim, Claim), claim
    return claim


async def refused(
    stage: Stage, name: str = "a", *, generation: int = 1, forced: bool = False
) -> RefusalReason:
    """Return why one connection is not to be had."""
    refusal = await want(stage, name, generation=generation, forced=forced)
    assert isinstance(refusal, Refusal), refusal
    assert refusal.connection_id == name
    return refusal.reason


def renewal(claim: Claim, *, due_at: datetime | None = None, access: str = "new") -> Settlement:
    """Return the settlement of a claim that brought tokens."""
    return Settlement(
        connection_id=claim.connection_id,
        attempt=claim.attempt,
        generation=claim.tokens.generation,
        tokens=replace(
            claim.tokens,
            generation=claim.tokens.generation + 1,
            access_token=access,
            refresh_token="next",
            scopes=("read",),
        ),
        state=ClaimState.IDLE,
        due_at=due_at,
        status=Status.ACTIVE,
        failures=0,
        last_error=None,
        touches_connection=claim.failures > 0,
        epoch=claim.epoch,
    )


def failure(
    claim: Claim,
    stage: Stage,
    *,
    state: ClaimState = ClaimState.IDLE,
    due_in: float | None = 30.0,
    status: Status = Status.FAILING,
) -> Settlement:
    """Return the settlement of a claim that brought nothing."""
    return replace(
        renewal(claim),
        tokens=None,
        state=state,
        due_at=None if due_in is None else stage.now() + timedelta(seconds=due_in),
        status=status,
        failures=claim.failures + 1,
        last_error=Failure(code="oops", description="It failed.", at=stage.now()),
        touches_connection=True,
    )


async def settle(stage: Stage, *settlements: Settlement) -> list[Settled]:
    """Settle."""
    return await stage.store.settle(settlements, now=stage.now())
