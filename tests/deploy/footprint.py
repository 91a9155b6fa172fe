"""What a process takes while nothing is asked of it: memory and CPU, from /proc."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory in MiB after, CPU in thousandths of a core during, ``seconds`` of rest.

    ``anonymous`` is what the process has written; ``resident`` also counts the pages of programs
    and libraries in memory, which processes of one image share.
    """

    seconds: float
    resident: float
    anonymous: float
    peak: float
    cpu: float

    def __str__(self) -> str:
        """Return a line for people."""
        return (
            f"idle for {self.seconds:.0f} s: resident {self.resident:.1f} MiB, of which anonymous "
            f"{self.anonymous:.1f} MiB; at the start at most {self.peak:.1f} MiB; "
            f"CPU {self.cpu:.1f}m"
        )


def footprint(pid: int, *, seconds: float) -> Footprint:
    """Look at a process for ``seconds``. Blocks."""
    before, began = _cpu(pid), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    megabytes = {name: int(status[name].split()[0]) / 1024 for name in _NAMES}
    return Footprint(
        seconds=took,
        resident=megabytes["VmRSS"],
        anonymous=megabytes["RssAnon"],
        peak=megabytes["VmHWM"],
        cpu=(_cpu(pid) - before) / took * 1000,
    )


_NAMES = ("VmRSS", "RssAnon", "VmHWM")


def _cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
