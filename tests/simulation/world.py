"""What every process of a run is given."""

from __future__ import annotations

import random  # noqa: TID251 - a simulation's chance is its seed
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from daemon.config.settings import EncryptionKey, Refresh
from daemon.domain.provider import Provider
from tests.simulation.books import Books
from tests.simulation.loop import Life, SimulatedLoop
from tests.simulation.network import Network
from tests.simulation.trace import Trace


@dataclass(frozen=True, kw_only=True)
class World:
    """What every process is given. ``publish`` tells all others of a changed connection.

    ``keys`` are those configured now: a process reads them when it starts.
    """

    loop: SimulatedLoop
    network: Network
    books: Books
    trace: Trace
    chance: random.Random
    providers: Mapping[str, Provider]
    settings: Refresh
    publish: Callable[[Life, str], None]
    keys: list[EncryptionKey] = field(
        default_factory=lambda: [EncryptionKey(id="k1", secret=bytes(32))]
    )
