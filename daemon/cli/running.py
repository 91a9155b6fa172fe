"""``tokenward run``: the daemon, from its configuration to its exit code."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TextIO

import structlog

from daemon.cli.exits import CommandError
from daemon.cli.invocation import Invocation
from daemon.config.loading import find_config, load_settings
from daemon.config.settings import Settings
from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.errors import TokenwardError
from daemon.domain.role import Role
from daemon.telemetry.logs import configure_logging
from daemon.wiring.hardening import harden
from daemon.wiring.lifecycle import serve
from daemon.wiring.parts import World
from daemon.wiring.service_manager import NO_SUPERVISION, Supervision, supervision
from daemon.wiring.starting import OnStarted

log = structlog.get_logger()


def run(call: Invocation, role: Role = Role.ALL) -> None:
    """Run the daemon in ``role`` until it is told to stop.

    Raises:
        ConfigurationError: with every finding.
        TokenwardError: what ended the daemon, in words for an operator.
    """
    harden()
    path = find_config(call.config, call.environ, call.working_directory)
    load = partial(load_settings, path=path, environ=call.environ, role=role)
    told = supervision(call.environ, pid=os.getpid())
    run_daemon(load(), load=load, stream=sys.stderr, told=told, role=role)


def run_daemon(
    settings: Settings,
    *,
    load: Callable[[], Settings] | None,
    stream: TextIO,
    on_started: OnStarted | None = None,
    told: Supervision = NO_SUPERVISION,
    role: Role = Role.ALL,
) -> None:
    """Run the daemon with its log on ``stream``. For the main thread. Raises as ``run``."""
    logs = configure_logging(settings.log, stream=stream)
    world = World(clock=SystemClock(), entropy=system_entropy)
    try:
        _complete(
            serve(
                settings,
                world=world,
                logs=logs,
                load=load,
                on_started=on_started,
                told=told,
                role=role,
            )
        )
    finally:
        logs.close()


def _complete(work: Coroutine[Any, Any, None]) -> None:
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(work)
    except TokenwardError:
        raise
    except OSError as error:
        raise CommandError(
            f"The daemon cannot use {error.filename or 'the system'}: {error.strerror or error}. "
            "Look at the owner and mode of state_dir, and at the free space."
        ) from error
    except BaseExceptionGroup as group:
        known = [error for error in leaves(group) if isinstance(error, TokenwardError)]
        if known:
            raise known[0] from group
        log.exception("daemon_died")
        raise CommandError(
            "The daemon ended because of an error in itself; the last lines of its log say which. "
            "Start it again, and report those lines."
        ) from group


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Yield the errors in ``group`` that are no groups themselves."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's, where it is installed: it has no wheels for every Python."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
