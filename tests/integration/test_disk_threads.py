"""Work on disks that hang: nobody waits for it for ever, the end of the process neither."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from daemon.upkeep.disk_threads import DiskThreads
from tests.support.waiting import until

_ENDS_ANYWAY = """
import asyncio, threading
from daemon.upkeep.disk_threads import DiskThreads

async def main():
    threads = DiskThreads(1)
    work = asyncio.create_task(threads.run(threading.Event().wait))
    await asyncio.sleep(0)
    threads.abandon()

asyncio.run(main())
print("over")
"""


async def test_work_is_done_beside_the_loop() -> None:
    """What it returns comes back, and so does what it dies of."""
    threads = DiskThreads(1)
    assert await threads.run(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)


async def test_no_more_than_so_many_at_once() -> None:
    """A dead disk takes its places, and no further threads."""
    threads, go_on, begun = DiskThreads(2), threading.Event(), []

    def work() -> None:
        begun.append(1)
        go_on.wait(10)

    tasks = [asyncio.create_task(threads.run(work)) for _ in range(3)]
    await until(lambda: len(begun) == 2)
    await asyncio.sleep(0.05)
    assert len(begun) == 2
    go_on.set()
    await asyncio.gather(*tasks)
    assert len(begun) == 3


@pytest.mark.parametrize("is_abandoned", [False, True])
async def test_a_cancelled_wait(is_abandoned: bool) -> None:  # noqa: FBT001 - a parameter
    """It ends with the work, so that nobody begins the next piece meanwhile, or once abandoned."""
    threads, go_on = DiskThreads(1), threading.Event()
    task = asyncio.create_task(threads.run(lambda: go_on.wait(10)))
    await asyncio.sleep(0)
    task.cancel()
    _, waiting = await asyncio.wait({task}, timeout=0.05)
    assert waiting
    if is_abandoned:
        threads.abandon()
    else:
        go_on.set()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    assert go_on.is_set() is not is_abandoned
    go_on.set()


def test_a_process_ends_although_a_disk_hangs() -> None:
    """Threads of the standard library's executors would be waited for at the end."""
    command = [sys.executable, "-c", _ENDS_ANYWAY]
    ended = subprocess.run(  # noqa: S603 - a fixed command
        command, capture_output=True, text=True, timeout=20, check=True
    )
    assert (ended.stdout, ended.stderr) == ("over\n", "")
