"""A deterministic event loop: one seed chooses which ready callback runs next, time is virtual.

The hard idea: whose a callback is stands in its context. So one loop runs many processes, and any
of them can be stopped between two callbacks, resumed, or be gone for ever, as by SIGKILL: what a
dead process would have run next never runs, not even its ``finally``.
"""

from __future__ import annotations

import asyncio
import heapq
import random  # noqa: TID251 - a simulation's chance is its seed
import warnings
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any, TypeVar, TypeVarTuple, cast

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
# More callbacks than any run needs: past this something goes round in circles.
_MOST_STEPS = 400_000


class Life:
    """One process, from its start to its end.

    ``steps`` counts the callbacks it has run; ``on_halt`` is called instead of the one that would
    be number ``halts_at``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.is_running = True
        self.steps = 0
        self.halts_at: int | None = None
        self.on_halt: Callable[[], None] = lambda: None
        self.parked: list[Callback] = []
        self.jobs: list[Job] = []

    def context(self) -> Context:
        """Return a context whose callbacks are this process's."""
        context = Context()
        context.run(OWNER.set, self)
        return context


OWNER: ContextVar[Life | None] = ContextVar("OWNER", default=None)


class Callback:
    """What is to run (``asyncio.Handle`` as far as asyncio looks at it)."""

    __slots__ = ("args", "call", "context", "is_cancelled", "life")

    def __init__(
        self, call: Callable[..., object], args: tuple[object, ...], context: Context
    ) -> None:
        self.call = call
        self.args = args
        self.context = context
        self.life = context.get(OWNER)
        self.is_cancelled = False

    def cancel(self) -> None:
        """Do not run it."""
        self.is_cancelled = True

    def cancelled(self) -> bool:
        """Tell whether it will not run."""
        return self.is_cancelled


class Job:
    """Blocking work that a process has given to its one thread."""

    __slots__ = ("future", "is_done", "work")

    def __init__(self, work: Callable[[], object], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.is_done = False


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs callbacks one by one; time passes only when none is ready.

    ``is_scrambled``: any ready callback may be next, else the first of any process.
    """

    def __init__(self, chance: random.Random, *, is_scrambled: bool) -> None:
        self._is_closed = self._is_in_run = False
        super().__init__()
        self._chance = chance
        self._is_scrambled = is_scrambled
        self._ready: list[Callback] = []
        self._timers: list[tuple[float, int, Callback]] = []
        self._order = 0
        self._now = 0.0
        self._tasks: list[asyncio.Task[Any]] = []
        self._is_ended = False
        self.steps = 0
        self.errors: list[str] = []

    def time(self) -> float:
        """Return the seconds since the start."""
        return self._now

    # What asyncio asks of a loop.

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """Tell whether ``run`` runs."""
        return self._is_in_run

    def is_closed(self) -> bool:
        """Tell whether the run is over."""
        return self._is_closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what nobody caught."""
        if not self._is_closed:
            self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: object | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[_T]:
        """Start a task. It stays referenced: the collector must not end what a crash has cut."""
        task = asyncio.Task(
            cast("Coroutine[Any, Any, _T]", coro),
            loop=self,
            name=None if name is None else str(name),
            context=context,
        )
        self._tasks.append(task)
        if len(self._tasks) > 4096:
            self._tasks = [one for one in self._tasks if not one.done()]
        return task

    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Run it at a moment of the seed's choice, before time passes."""
        made = Callback(callback, args, copy_context() if context is None else context)
        if not self._is_closed:
            self._add(made)
        return cast("asyncio.Handle", made)

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run it after ``delay`` seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run it at a time."""
        made = Callback(callback, args, copy_context() if context is None else context)
        if not self._is_closed:
            self._order += 1
            heapq.heappush(self._timers, (when, self._order, made))
        return cast("asyncio.TimerHandle", made)

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*_Ts], _T],
        *args: *_Ts,
    ) -> asyncio.Future[_T]:
        """Run blocking work in the process's one thread: whole, at one moment, told at another."""
        del executor
        life = OWNER.get()
        assert life is not None
        future: asyncio.Future[_T] = asyncio.Future(loop=self)
        life.jobs.append(Job(lambda: func(*args), future))
        if len(life.jobs) == 1:
            self.call_later(self._chance.uniform(0.0002, 0.005), self._work, life)
        return future

    # What the simulation asks of it.

    def outside(self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts) -> None:
        """Run what is no process's doing, after ``delay`` seconds."""
        self.call_at(self._now + delay, callback, *args, context=Context())

    def start(self, life: Life, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Start a task of a process."""
        return self.create_task(work, name=f"{life.name} {name}", context=life.context())

    def halt(self, life: Life) -> None:
        """Let a process stand still, as SIGSTOP does; its deadlines go on."""
        life.is_running = False

    def resume(self, life: Life, *, slept: float = 0.0) -> None:
        """Let it go on. ``slept``: seconds in which its timers have stood still, too."""
        life.is_running = True
        parked, life.parked = life.parked, []
        if slept > 0:
            self._shift(life, parked, slept)
        else:
            self._ready += parked

    def kill(self, life: Life) -> None:
        """End a process between two callbacks."""
        life.is_alive = life.is_running = False
        life.parked.clear()

    def run(self, until: float, condition: Callable[[], bool] = lambda: False) -> None:
        """Run until a time, until ``condition`` holds (at a moment of rest), or until ``end``."""
        asyncio._set_running_loop(self)
        self._is_in_run = True
        try:
            while not self._is_ended and self._advance(until, condition):
                self._step()
        finally:
            self._is_in_run = False
            asyncio._set_running_loop(None)

    def end(self) -> None:
        """Let ``run`` return after the callback that runs now."""
        self._is_ended = True

    def close(self) -> None:
        """End the run: what is not done never will be."""
        self._is_closed = True
        self._ready.clear()
        self._timers.clear()
        asyncio._set_running_loop(self)
        try:
            for task in self._tasks:
                if not task.done():
                    _end(task)
        finally:
            asyncio._set_running_loop(None)
        # What was never begun goes without a word, too.
        with warnings.catch_warnings(action="ignore"):
            self._tasks.clear()

    def _add(self, made: Callback) -> None:
        life = made.life
        if life is None or life.is_running:
            self._ready.append(made)
        elif life.is_alive:
            life.parked.append(made)

    def _advance(self, until: float, condition: Callable[[], bool]) -> bool:
        """Let time pass to the next callback; tell whether there is one by ``until``."""
        timers, ready = self._timers, self._ready
        while timers and timers[0][0] <= self._now:
            self._due(heapq.heappop(timers)[2])
        if ready:
            return True
        if condition():
            return False
        while not ready:
            if not timers or timers[0][0] > until:
                self._now = max(self._now, until)
                return False
            when, _, made = heapq.heappop(timers)
            if not made.is_cancelled:
                self._now = when
                self._due(made)
        return True

    def _due(self, made: Callback) -> None:
        if not made.is_cancelled:
            self._add(made)

    def _step(self) -> None:
        ready = self._ready
        place = int(self._chance.random() * len(ready))
        if not self._is_scrambled and place > 0:
            life = ready[place].life
            place = next(i for i, one in enumerate(ready) if one.life is life)
        made = ready.pop(place)
        life = made.life
        if made.is_cancelled or (life is not None and not self._may_run(life, made)):
            return
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise RuntimeError("the simulation goes round in circles")
        made.context.run(made.call, *made.args)

    def _may_run(self, life: Life, made: Callback) -> bool:
        if not life.is_running:
            if life.is_alive:
                life.parked.append(made)
            return False
        life.steps += 1
        if life.halts_at is not None and life.steps >= life.halts_at:
            life.halts_at = None
            life.on_halt()
            return self._may_run(life, made)
        return True

    def _shift(self, life: Life, parked: list[Callback], slept: float) -> None:
        """Move a process's timers back: ``CLOCK_MONOTONIC`` stands still in suspend."""
        self._timers = [
            (when + slept if one.life is life else when, order, one)
            for when, order, one in self._timers
        ]
        heapq.heapify(self._timers)
        for one in parked:
            self._add(one)

    def _work(self, life: Life) -> None:
        job = life.jobs[0]
        answer: Callable[[], object]
        try:
            answer = partial(job.future.set_result, job.work())
        except OSError as error:
            answer = partial(job.future.set_exception, error)
        job.is_done = True
        self.call_later(self._chance.uniform(0.0, 0.002), self._worked, life, job, answer)

    def _worked(self, life: Life, job: Job, answer: Callable[[], object]) -> None:
        life.jobs.remove(job)
        if life.jobs:
            self.call_later(self._chance.uniform(0.0002, 0.005), self._work, life)
        if not job.future.done():
            answer()


def _end(task: asyncio.Task[Any]) -> None:
    """Let a task that will never be done go without a word."""
    task._log_destroy_pending = False  # type: ignore[attr-defined] # it is no mistake here
    coroutine = task.get_coro()
    # Its ``finally`` runs now, when nothing hears it any more; what it raises means nothing, nor
    # that a task before its first step has never awaited what it was given.
    with suppress(Exception), warnings.catch_warnings(action="ignore"):
        if coroutine is not None:
            coroutine.close()
