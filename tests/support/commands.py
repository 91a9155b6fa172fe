"""One command of tokenward, run as a process to its end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.tokenward import ROOT, Tokenward


async def run_command(daemon: Tokenward, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``tokenward ARGUMENTS`` with a daemon's configuration, whether that runs or not."""
    daemon.write_config()
    own = [sys.executable, "-m", "daemon", "--config", str(daemon.config_path)]
    return await run_program([*own, *arguments], home=daemon.directory)


async def run_program(
    arguments: Sequence[str | Path], *, home: Path
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, a minute at most."""
    return await asyncio.to_thread(
        subprocess.run,
        arguments,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
