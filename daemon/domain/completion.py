"""What storing a completed authorization comes to: whose account it is decides. Pure.

Its hard idea: the row that a person meant need not be the row that receives the tokens. Another
connection may have the account already, a disconnect may have come first, or it is the same reply
once more, because the acknowledgement of its commit was lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from daemon.domain.account import Account
from daemon.domain.authorization import Completion, NotStored, NotStoredReason
from daemon.domain.connection import Connection, Status
from daemon.domain.history import DetailValue
from daemon.domain.tokens import TokenSet

# Where a refresh token outlives a reconnect: the caller has planned for a token without one.
_SHARE_OF_LIFETIME = 0.75
_NOTHING = Account()
_WORKING = (Status.ACTIVE, Status.FAILING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A connection as it is locked, with its tokens.

    ``tokens`` is ``None`` where there are none, or none that can be decrypted; ``is_readable`` is
    false where any could not be.
    """

    connection: Connection
    account_scope: str = ""
    label_is_set: bool = False
    epoch: int = 0
    tokens: TokenSet | None = field(default=None, repr=False)
    is_readable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """Tokens that a new grant has made superfluous, of the connection they were for."""

    connection: Connection
    tokens: TokenSet = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is to be stored, in the row of ``connection_id``; ``merged`` is removed."""

    connection_id: str
    provider: str
    merged: str | None
    tokens: TokenSet = field(repr=False)
    due_at: datetime | None
    fields: Mapping[str, str]
    requested_scopes: tuple[str, ...]
    metadata: Mapping[str, str]
    reply_values: Mapping[str, str] = field(repr=False)
    label: str | None
    label_is_set: bool
    account_id: str | None
    account_scope: str
    replaced: tuple[Replaced, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What is answered, and the tokens to revoke, if any."""

    answer: NotStored
    tokens: TokenSet | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Repeated:
    """It is stored already: in the row that was asked for, or that this one went into."""


def decide(
    completion: Completion, target: Held, holder: Held | None, *, is_followed: bool = False
) -> Kept | Refused | Repeated:
    """Decide what a completion comes to.

    ``target`` is the connection that was authorized; or, where ``is_followed``, the one that it
    was merged into meanwhile. ``holder`` is another one that has the account.
    """
    if _is_superseded(completion, target, is_followed=is_followed):
        return Refused(answer=NotStored(reason=NotStoredReason.SUPERSEDED))
    if target.tokens is not None and is_same_reply(target.tokens, completion.tokens):
        return Repeated()
    reason = _refusal(completion, target, holder, is_followed=is_followed)
    if reason is None:
        return _kept(completion, target, holder)
    expected = None
    if reason is NotStoredReason.OTHER_ACCOUNT:
        expected = target.connection.label or target.connection.account_id
    return Refused(
        answer=NotStored(reason=reason, expected=expected),
        tokens=_refused_tokens(completion, target, holder, is_followed=is_followed),
    )


def is_same_reply(stored: TokenSet, new: TokenSet) -> bool:
    """Tell whether both are of one reply: the token alone is no proof, some providers repeat it."""
    return (stored.access_token, stored.issued_at) == (new.access_token, new.issued_at)


def is_other_account(
    completion: Completion, account: Account, connection: Connection, scope: str
) -> bool:
    """Tell whether a reconnect came back as somebody else.

    Another tenant is another account only where this authorization has chosen it: where the
    provider's URL was changed, or the fields by a manager, it is the same one at a new address.
    """
    if account.account_id is None or connection.account_id is None:
        return False
    if account.account_id != connection.account_id:
        return True
    chosen = completion.fields is not None and dict(completion.fields) != dict(connection.fields)
    return chosen and account.scope != scope


def authorized_detail(
    tokens: TokenSet,
    requested: Sequence[str],
    *,
    account_known: bool,
    merged: str | None = None,
) -> dict[str, DetailValue]:
    """Return what the event ``connection.authorized`` says of stored tokens."""
    detail: dict[str, DetailValue] = {
        "generation": tokens.generation,
        "has_refresh_token": tokens.refresh_token is not None,
        "account_known": account_known,
    }
    if set(tokens.scopes) != set(requested):
        detail["scopes_granted"] = list(tokens.scopes)
    if merged is not None:
        detail["merged"] = merged
    return detail


def _is_superseded(completion: Completion, target: Held, *, is_followed: bool) -> bool:
    wanted = completion.only_after
    return wanted is not None and (is_followed or wanted != target.connection.generation)


def _refusal(
    completion: Completion, target: Held, holder: Held | None, *, is_followed: bool
) -> NotStoredReason | None:
    account = completion.account or _NOTHING
    if is_followed:
        mine = (account.account_id, account.scope)
        if account.account_id is None or mine != _account(target):
            return NotStoredReason.GONE
    if _was_disconnected(completion, target, is_followed=is_followed):
        return NotStoredReason.DISCONNECTED
    if is_other_account(completion, account, target.connection, target.account_scope):
        return NotStoredReason.OTHER_ACCOUNT
    if account.is_withheld and target.connection.account_id is not None:
        return NotStoredReason.ACCOUNT_UNKNOWN
    receiver = target.connection if holder is None else holder.connection
    if receiver.id != completion.connection_id and not completion.may_merge(receiver.id):
        return NotStoredReason.CONNECTED_ELSEWHERE
    return None


def _account(held: Held) -> tuple[str | None, str]:
    return held.connection.account_id, held.account_scope


def _was_disconnected(completion: Completion, target: Held, *, is_followed: bool) -> bool:
    if completion.epoch is None or is_followed:
        # Nothing tells when it began, so that it may have been before the disconnect.
        return target.connection.status is Status.DISCONNECTED
    return completion.epoch != target.epoch


def _refused_tokens(
    completion: Completion, target: Held, holder: Held | None, *, is_followed: bool
) -> TokenSet | None:
    """Return the tokens to revoke, unless that would end a grant that is still wanted."""
    lives_on = target if is_followed or _is_withheld(completion) else holder
    if lives_on is not None and not completion.revokes_replaced:
        return None
    mine = (completion.tokens.access_token, completion.tokens.refresh_token)
    for held in (target, holder):
        stored = None if held is None else held.tokens
        if stored is not None and _shares(mine, stored):
            return None
    return completion.tokens


def _is_withheld(completion: Completion) -> bool:
    """Tell whether the new grant may be one of the very account that is connected."""
    return completion.account is not None and completion.account.is_withheld


def _shares(mine: tuple[str, str | None], stored: TokenSet) -> bool:
    theirs = {stored.access_token, stored.refresh_token}
    return any(token in theirs for token in mine if token)


def _kept(completion: Completion, target: Held, holder: Held | None) -> Kept:
    receiver = holder or target
    account = completion.account or _NOTHING
    into, meant = receiver.connection, target.connection
    is_known = account.account_id is not None
    tokens = _with_refresh_token(completion, receiver)
    label, label_is_set = _label(account, receiver, target)
    return Kept(
        connection_id=into.id,
        provider=into.provider,
        merged=None if holder is None else meant.id,
        tokens=replace(tokens, generation=max(into.generation + 1, completion.least_generation)),
        due_at=completion.due_at if tokens is completion.tokens else _due_at(completion),
        fields={**into.fields, **meant.fields} if completion.fields is None else completion.fields,
        requested_scopes=meant.requested_scopes,
        metadata={**into.metadata, **meant.metadata},
        reply_values={**into.reply_values, **account.reply_values},
        label=label,
        label_is_set=label_is_set,
        account_id=account.account_id if is_known else into.account_id,
        account_scope=account.scope if is_known else receiver.account_scope,
        replaced=_replaced(completion, tokens, target, holder),
    )


def _with_refresh_token(completion: Completion, receiver: Held) -> TokenSet:
    """Return the new tokens; without a refresh token of their own, with the one in hand.

    Some providers give one at the first consent only. It is kept only for the very same account,
    and where it is not known to be dead.
    """
    stored, tokens = receiver.tokens, completion.tokens
    account = completion.account or _NOTHING
    is_same = (
        account.account_id is not None and account.account_id == receiver.connection.account_id
    )
    is_alive = receiver.connection.status in _WORKING
    if stored is None or tokens.refresh_token is not None or not (is_same and is_alive):
        return tokens
    if stored.refresh_token is None:
        return tokens
    return replace(tokens, refresh_token=stored.refresh_token)


def _due_at(completion: Completion) -> datetime | None:
    tokens = completion.tokens
    if tokens.expires_at is None or completion.due_at is None:
        return completion.due_at
    planned = tokens.issued_at + (tokens.expires_at - tokens.issued_at) * _SHARE_OF_LIFETIME
    return min(planned, completion.due_at)


def _label(account: Account, receiver: Held, target: Held) -> tuple[str | None, bool]:
    """Return the label and whether a person has set it; the one who just connected comes first."""
    for held in (target, receiver):
        if held.label_is_set:
            return held.connection.label, True
    return account.label or receiver.connection.label, False


def _replaced(
    completion: Completion, tokens: TokenSet, target: Held, holder: Held | None
) -> tuple[Replaced, ...]:
    if not completion.revokes_replaced:
        return ()
    return tuple(
        Replaced(connection=held.connection, tokens=held.tokens)
        for held in (target, holder)
        if held is not None and held.tokens is not None
        # A server may end the whole grant with one of its tokens (RFC 7009 2.1).
        if not _shares((tokens.access_token, tokens.refresh_token), held.tokens)
    )
