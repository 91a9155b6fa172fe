"""``python -m tests.fuzz TARGET --seconds N``: a long run, guided by coverage, from what it has.

Inputs that reach something new are kept in ``.cache/fuzz/TARGET`` and are where the next run
begins. Afterwards each is run once more without instruments, for what it costs in time and memory.
What broke a target is printed as a line for ``tests/corpora/fuzz_findings.json``.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".cache" / "fuzz"
# reliability: what one input may cost.
MOST_SECONDS, MOST_BYTES = 0.05, 32 * 1024 * 1024
# An input that takes longer than this, instruments included, stands still.
_STUCK_SECONDS = 10
_MEMORY_MEGABYTES = 1024
_BROKEN = ("crash-", "timeout-", "oom-")


def main() -> int:
    """Fuzz one target, or all in turn; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        _fuzz(TARGETS[given.target], given.seconds)
    names = TARGETS if given.target == "all" else [given.target]
    return max(_run(TARGETS[name], given.seconds) for name in names)


def _run(target: Target, seconds: int) -> int:
    directory = KEPT / target.name
    directory.mkdir(parents=True, exist_ok=True)
    for path in _broken(directory):
        path.unlink()
    for seed in target.seeds():
        (directory / sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    arguments = [target.name, "--inside", "--seconds", str(seconds)]
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=ROOT,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said = done.stdout.decode("utf-8", "replace").splitlines()
    broken = list(_broken(directory))
    if done.returncode or broken:
        _say("\n".join(said[-60:]))
    for path in broken:
        _say(json.dumps(_finding(target, path.read_bytes())))
    last = next((line for line in reversed(said) if "cov:" in line), "no coverage")
    verdict = f"{len(broken)} broken" if broken or done.returncode else "nothing found"
    _say(f"{target.name}: {verdict}; {' '.join(last.split())}")
    _say(f"{target.name}: {_costs(target, directory)}")
    return 1 if broken or done.returncode else 0


def _fuzz(target: Target, seconds: int) -> None:
    """Never returns: the fuzzer ends the process."""
    try:
        import atheris  # noqa: PLC0415 - only here: the tests do without it
    except ImportError:
        sys.exit("atheris is not installed: `make fuzz` does that, with Python 3.11 to 3.13.")
    directory = KEPT / target.name
    words = directory.with_suffix(".words")
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words), encoding="ascii")
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={target.longest}",
        f"-timeout={_STUCK_SECONDS}",
        f"-rss_limit_mb={_MEMORY_MEGABYTES}",
        f"-artifact_prefix={directory}/",
        *([f"-dict={words}"] if target.words else []),
    ]
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *options, str(directory)], target.run)
    atheris.Fuzz()


def _costs(target: Target, directory: Path) -> str:
    """Return what the dearest of all kept inputs costs, each alone, without instruments."""
    broken = set(_broken(directory))
    inputs = [path.read_bytes() for path in sorted(directory.iterdir()) if path not in broken]
    seconds = [_seconds(target, data) for data in inputs if len(data) <= target.longest]
    # Counting memory is slow: only where it may be much.
    largest = sorted(inputs, key=len)[-50:]
    megabytes = [_peak(target, data) / 2**20 for data in largest]
    slow = sum(each > MOST_SECONDS for each in seconds)
    return (
        f"{len(inputs)} inputs; dearest {max(seconds, default=0) * 1e3:.1f} ms of CPU "
        f"({slow} above {MOST_SECONDS * 1e3:.0f} ms), {max(megabytes, default=0):.1f} MiB"
    )


def _seconds(target: Target, data: bytes) -> float:
    """Return the CPU seconds of one run; of three where the first was slow: caches, collections."""
    found = _once(target, data)
    return found if found < MOST_SECONDS else min(_once(target, data) for _ in range(2))


def _once(target: Target, data: bytes) -> float:
    began = time.process_time()
    target.run(data)
    return time.process_time() - began


def _peak(target: Target, data: bytes) -> int:
    tracemalloc.start()
    try:
        target.run(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _broken(directory: Path) -> Iterator[Path]:
    return (path for path in directory.iterdir() if path.name.startswith(_BROKEN))


def _finding(target: Target, data: bytes) -> dict[str, str]:
    encoded = base64.b64encode(data).decode()
    return {"target": target.name, "why": "say it here", "data_b64": encoded}


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{each:02x}" for each in word)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
