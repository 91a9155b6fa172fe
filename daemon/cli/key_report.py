"""What there is to say of each key: who has it, what needs it, whether it may go. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from daemon.persistence.agreement import ReplicaKeys

# A journal keeps replies for a day after they were stored (``persistence.journal``).
_JOURNAL_DAYS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """All that is known. ``at_hand`` is in the order of the configuration.

    ``in_use`` are the keys that nobody may start without, ``ciphertexts`` counts by key and table,
    ``journal`` the replies in the journal of this state directory by key.
    """

    at_hand: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    in_use: frozenset[str] = frozenset()
    ciphertexts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    journal: Mapping[str, int] = field(default_factory=dict)
    replicas: Sequence[ReplicaKeys] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReport:
    """One key.

    ``encrypts`` for the first one; ``configured``: it is at hand; ``known``: the database has
    its canary. ``needed`` says why it may not be removed, empty: it may.
    """

    id: str
    encrypts: bool
    configured: bool
    known: bool
    in_use: bool
    ciphertexts: Mapping[str, int]
    needed: tuple[str, ...]

    @property
    def is_missing(self) -> bool:
        """Tell whether something needs it and it is not at hand."""
        return not self.configured and (self.in_use or bool(self.ciphertexts))

    @property
    def may_be_removed(self) -> bool:
        """Tell whether it may go from every configuration."""
        return self.configured and not self.needed


def report(known: Known, *, now: datetime) -> list[KeyReport]:
    """Return every key that is at hand or that anything needs, the encrypting one first."""
    named = (*known.at_hand, *known.stored, *sorted(known.ciphertexts), *sorted(known.journal))
    return [_one(known, key_id, now) for key_id in dict.fromkeys(named)]


def _one(known: Known, key_id: str, now: datetime) -> KeyReport:
    return KeyReport(
        id=key_id,
        encrypts=known.at_hand[:1] == (key_id,),
        configured=key_id in known.at_hand,
        known=key_id in known.stored,
        in_use=key_id in known.in_use,
        ciphertexts=known.ciphertexts.get(key_id, {}),
        needed=tuple(_needs(known, key_id, now)),
    )


def _needs(known: Known, key_id: str, now: datetime) -> Iterator[str]:
    if known.at_hand[:1] == (key_id,):
        yield "it is the first key here, which encrypts"
    count = sum(known.ciphertexts.get(key_id, {}).values())
    if count:
        yield f"{count} ciphertexts in the database need it: run 'tokenward keys rotate'"
    yield from _writers(known.replicas, key_id)
    yield from _journals(known.replicas, key_id, now)
    if (records := known.journal.get(key_id, 0)) and not _tells(known.replicas, key_id):
        yield (
            f"{records} replies in the journal of this state_dir need it: 'tokenward keys rotate' "
            "rewrites them, or the daemon once another key encrypts"
        )
    if key_id in known.in_use and not count:
        yield "it counts as in use: 'tokenward keys rotate' lets go of it"


def _writers(replicas: Iterable[ReplicaKeys], key_id: str) -> Iterator[str]:
    for replica in replicas:
        if not replica.is_live:
            continue
        if replica.key_ids is None:
            yield (
                f"replica {replica.owner} is of a version that does not say which keys it has: "
                "upgrade it"
            )
        elif replica.key_ids[:1] == (key_id,):
            yield (
                f"it is the first key of replica {replica.owner}: put another first there and "
                "send SIGHUP"
            )
        elif key_id in replica.encrypts:
            yield (
                f"replica {replica.owner} still encrypts with it: it changes within seconds once "
                "all replicas have its first key"
            )


def _journals(replicas: Iterable[ReplicaKeys], key_id: str, now: datetime) -> Iterator[str]:
    for replica in replicas:
        if key_id not in replica.journal_keys:
            continue
        if replica.is_live:
            yield (
                f"replies in the journal of replica {replica.owner} need it: they are rewritten "
                "within a minute after another key encrypts there, else go after a day"
            )
        elif now - replica.seen_at < timedelta(days=_JOURNAL_DAYS):
            yield (
                f"replica {replica.owner} did not stop in order, and replies in its journal may "
                f"need it: start it again; if its disk is gone, wait until a day after "
                f"{replica.seen_at:%Y-%m-%d %H:%M} UTC"
            )


def _tells(replicas: Iterable[ReplicaKeys], key_id: str) -> bool:
    """Tell whether a live replica names this key: the journal here is most likely its own."""
    return any(replica.is_live and key_id in replica.journal_keys for replica in replicas)


def as_json(
    keys: Iterable[KeyReport], replicas: Iterable[ReplicaKeys]
) -> dict[str, list[dict[str, Any]]]:
    """Return what ``keys status --output json`` prints."""
    return {
        "keys": [
            {
                "id": key.id,
                "encrypts": key.encrypts,
                "configured": key.configured,
                "known": key.known,
                "in_use": key.in_use,
                "ciphertexts": dict(key.ciphertexts),
                "may_be_removed": key.may_be_removed,
                "needed": list(key.needed),
            }
            for key in keys
        ],
        "replicas": [
            {
                "owner": replica.owner,
                "live": replica.is_live,
                "seen_at": replica.seen_at.isoformat(),
                "keys": None if replica.key_ids is None else list(replica.key_ids),
                "encrypts": list(replica.encrypts),
                "journal": list(replica.journal_keys),
            }
            for replica in replicas
        ],
    }


def counted(ciphertexts: Mapping[str, int]) -> str:
    """Return how many ciphertexts there are in which table, in few words."""
    return ", ".join(f"{table} {count}" for table, count in sorted(ciphertexts.items())) or "none"


def removable(key: KeyReport) -> str:
    """Return whether a key may be removed, in a word."""
    if not key.configured:
        return "missing" if key.is_missing else "gone"
    return "yes" if key.may_be_removed else "no"


def lacking(replicas: Iterable[ReplicaKeys], key_id: str) -> list[ReplicaKeys]:
    """Return the live replicas that are not known to have a key."""
    return [replica for replica in replicas if replica.is_live and not replica.has(key_id)]


def not_first(replicas: Iterable[ReplicaKeys], key_id: str) -> list[ReplicaKeys]:
    """Return the live replicas that have another key first, and so go on to encrypt with that."""
    return [
        replica
        for replica in replicas
        if replica.is_live and (replica.key_ids or ())[:1] != (key_id,)
    ]


def changing(replicas: Iterable[ReplicaKeys], key_id: str) -> Collection[str]:
    """Return the owners of live replicas from which ciphertexts of other keys may still come."""
    return [r.owner for r in replicas if r.is_live and set(r.encrypts) != {key_id}]
