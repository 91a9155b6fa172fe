"""Callers' keys in files: a key that is replaced there is known within seconds, without SIGHUP.

Its hard idea is the overlap: whoever replaces the file and whoever reads it to call us do not do so
at one moment. So the key before stays good for a minute beside the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from daemon.config.keys import key_sha256_in
from daemon.config.settings import Caller
from daemon.config.values import InvalidValueError
from daemon.domain.clock import Clock

log = structlog.get_logger()

_LOOK_EVERY = 2.0
_OVERLAP = 60.0

_Signature = tuple[int, int, int, int]


class CallerKeys:
    """Watches the files of the configured callers; ``apply`` hears of who may ask from now on.

    ``configured`` returns the callers of the configuration in force: another object after a
    reload, which has read the files itself.
    """

    def __init__(
        self,
        *,
        configured: Callable[[], Sequence[Caller]],
        apply: Callable[[Sequence[Caller]], None],
        clock: Clock,
    ) -> None:
        self._configured = configured
        self._apply = apply
        self._clock = clock
        self._known: Sequence[Caller] = ()
        self._signatures: dict[Path, _Signature] = {}
        self._digests: dict[str, bytes] = {}
        # A caller's key before the last change, and until when it is good.
        self._before: dict[str, tuple[bytes, float]] = {}

    async def run(self) -> None:
        """Look every two seconds."""
        while True:
            self.look()
            await self._clock.sleep(_LOOK_EVERY)

    def look(self) -> None:
        """Read the files that have changed; a bad one changes nothing and is logged once."""
        callers = self._configured()
        if callers is not self._known:
            self._known = callers
            self._signatures, self._before = {}, {}
            self._digests = {caller.name: caller.key_sha256 for caller in callers}
        changed = [caller for caller in callers if self._has_changed(caller)]
        now = self._clock.boottime()
        ended = [name for name, (_, until) in self._before.items() if until <= now]
        for name in ended:
            del self._before[name]
        if changed or ended:
            self._apply(self._current())
        for caller in changed:
            log.info("caller_key_changed", caller=caller.name)

    def _has_changed(self, caller: Caller) -> bool:
        digest = None if caller.key_file is None else self._read(caller, caller.key_file)
        before = self._digests[caller.name]
        if digest is None or digest == before:
            return False
        if digest in self._digests.values():
            self._refuse(caller, "it is another caller's key")
            return False
        self._before[caller.name] = (before, self._clock.boottime() + _OVERLAP)
        self._digests[caller.name] = digest
        return True

    def _read(self, caller: Caller, file: Path) -> bytes | None:
        """Return the digest of the key in a file; ``None`` where it is as before, or unusable."""
        try:
            signature = _signature(file)
            if self._signatures.get(file) == signature:
                return None
            self._signatures[file] = signature
            return key_sha256_in(file)
        except FileNotFoundError:  # between two versions of it
            return None
        except (OSError, UnicodeDecodeError, InvalidValueError) as error:
            why = str(error) if isinstance(error, InvalidValueError) else type(error).__name__
            self._refuse(caller, f"it cannot be used ({why})")
            return None

    def _refuse(self, caller: Caller, why: str) -> None:
        log.warning(
            "caller_key_refused",
            caller=caller.name,
            file=str(caller.key_file),
            detail=f"{why}: the key before stays good. Put a key there that 'tokenward keys "
            f"caller {caller.name}' has made",
        )

    def _current(self) -> list[Caller]:
        old = [
            replace(caller, key_sha256=self._before[caller.name][0])
            for caller in self._known
            if caller.name in self._before
        ]
        return [
            *old,
            *(replace(caller, key_sha256=self._digests[caller.name]) for caller in self._known),
        ]


def _signature(file: Path) -> _Signature:
    # Follows links: Kubernetes swaps one to replace all files of a secret at once.
    found = file.stat()
    # The time of change as well: who gives the file to us later changes nothing else.
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
