"""The commands under ``tokenward keys``."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.cli.options import EVERYWHERE, call_of, complete

keys = typer.Typer(help="Make and inspect encryption keys and callers' keys.", no_args_is_help=True)


@keys.command("generate", epilog=EVERYWHERE)
def keys_generate(context: typer.Context) -> None:
    """Print a new encryption key, and how to configure it."""
    from daemon.cli import keyring
    from daemon.domain.clock import SystemClock, system_entropy

    keyring.generate(call_of(context), clock=SystemClock(), entropy=system_entropy)


@keys.command("status", epilog=EVERYWHERE)
def keys_status(context: typer.Context) -> None:
    """Show which encryption keys there are, who needs them, and which may be removed."""
    from daemon.cli import keyring

    complete(keyring.status(call_of(context)))


@keys.command("caller", epilog=EVERYWHERE)
def keys_caller(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The caller's name.")],
) -> None:
    """Make a key for a caller and print it, once, with what to configure."""
    from daemon.cli import keyring
    from daemon.domain.clock import system_entropy

    keyring.generate_caller(call_of(context), name, entropy=system_entropy)


@keys.command("rotate", epilog=EVERYWHERE)
def keys_rotate(context: typer.Context) -> None:
    """Encrypt everything again with the first key, while daemons run; may be repeated."""
    from daemon.cli import rotation

    complete(rotation.rotate(call_of(context)))
