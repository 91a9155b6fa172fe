"""Every command: its name, its options and its help. What it does is imported when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from daemon import __version__
from daemon.cli.exits import Exit, exit_code_of
from daemon.cli.invocation import Invocation, Output, global_first
from daemon.cli.key_commands import keys
from daemon.cli.options import EVERYWHERE, call_of, complete
from daemon.cli.printing import complain, say, say_json
from daemon.domain.errors import ConfigurationError, TokenwardError
from daemon.domain.role import Role

app = typer.Typer(
    name="tokenward",
    help="Keeps OAuth 2.0 tokens fresh and hands them to programs on this machine. "
    "Begin with 'tokenward demo'.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 no such connection, "
    "4 a person must reauthorize, 5 temporarily unavailable.",
    no_args_is_help=True,
    # Its tracebacks print local variables, and those may hold tokens.
    pretty_exceptions_enable=False,
)
app.add_typer(keys, name="keys")

InRole = Annotated[
    Role,
    typer.Option(
        envvar="TOKENWARD_ROLE",
        help="What the process is for: serve hands out tokens and never asks a provider for any; "
        "refresh keeps those of others fresh; all does both.",
    ),
]
ConnectionId = Annotated[str, typer.Argument(metavar="ID", help="The connection's id.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code. Expected errors are one text on stderr."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=global_first(given), prog_name="tokenward")
    except TokenwardError as error:
        prefix = "" if isinstance(error, ConfigurationError) else "Error: "
        complain(f"{prefix}{error}")
        sys.exit(exit_code_of(error))


@app.callback()
def _global_options(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The configuration file; else $TOKENWARD_CONFIG, else ./tokenward.yaml.",
        ),
    ] = None,
    output: Annotated[
        Output, typer.Option(envvar="TOKENWARD_OUTPUT", help="For people or for programs.")
    ] = Output.TABLE,
    api: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the daemon's api listener is: http://HOST:PORT or unix:PATH; "
            "else $TOKENWARD_API, else as configured.",
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="A file with the caller's key; else $TOKENWARD_KEY holds the key, "
            "else {state_dir}/api.key.",
        ),
    ] = None,
) -> None:
    context.obj = Invocation(
        environ=dict(os.environ),
        working_directory=Path.cwd(),
        config=config,
        output=output,
        api=api,
        key_file=key_file,
    )


@app.command(epilog=EVERYWHERE)
def run(context: typer.Context, *, role: InRole = Role.ALL) -> None:
    """Run the daemon. SIGTERM stops it cleanly, SIGHUP reads the configuration again."""
    from daemon.cli.lean import absent

    with absent("rich"):
        from daemon.cli import running

    running.run(call_of(context), role)


@app.command(epilog=EVERYWHERE)
def check(context: typer.Context, *, role: InRole = Role.ALL) -> None:
    """Check configuration, database, keys, listeners and providers; print all findings."""
    from daemon.cli import checking

    code = complete(checking.check(call_of(context), role))
    if code is not Exit.DONE:
        raise typer.Exit(code)


@app.command(epilog=EVERYWHERE)
def migrate(
    context: typer.Context,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be applied; change nothing.")
    ] = False,
) -> None:
    """Bring the database's schema to this version. The daemon also does when it starts."""
    from daemon.cli import database

    work = database.foresee if dry_run else database.migrate
    complete(work(call_of(context)))


@app.command()
def demo(
    context: typer.Context,
    *,
    state_dir: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Instead of ~/.local/state/tokenward/demo."),
    ] = None,
    lifetime: Annotated[
        str,
        typer.Option("--token-lifetime", metavar="DURATION", help="How long access tokens live."),
    ] = "60s",
    api_port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535)] = 7420,
    public_port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535)] = 7421,
    ops_port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535)] = 7422,
    provider_port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535)] = 7423,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the URL.")] = False,
) -> None:
    """Run a daemon with its own database and authorization server, ready to click through."""
    from daemon.cli import calls, demonstration
    from daemon.demo.example import Example, Ports

    call = call_of(context)
    directory = state_dir or demonstration.default_state_dir(call.environ)
    example = Example(
        state_dir=(call.working_directory / directory.expanduser()).resolve(),
        ports=Ports(
            api=api_port, public=public_port, ops=ops_port, authorization_server=provider_port
        ),
        token_lifetime=calls.read_duration(lifetime, option="--token-lifetime"),
    )
    demonstration.demo(call, example, browser=not no_browser)


@app.command(epilog=EVERYWHERE)
def connect(
    context: typer.Context,
    *,
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="A configured provider.")],
    connection_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="The connection's id; one that exists reconnects."),
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="Instead of the provider's scopes; repeatable.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Kept with the connection; repeatable."),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A field of the provider; repeatable."),
    ] = None,
    return_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the browser goes afterwards.")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the URL.")] = False,
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="How long to wait for the person.")
    ] = "30m",
) -> None:
    """Connect an account: print and open the URL to go to, wait, print the connection."""
    from daemon.cli import connecting

    wanted = connecting.Wanted(
        provider=provider,
        id=connection_id,
        scopes=scope or (),
        metadata=metadata or (),
        fields=field or (),
        return_url=return_url,
        browser=not no_browser,
        timeout=timeout,
    )
    connecting.connect(call_of(context), wanted)


@app.command(epilog=EVERYWHERE)
def connections(
    context: typer.Context,
    *,
    provider: Annotated[str | None, typer.Option(help="Only those of this provider.")] = None,
    status: Annotated[
        str | None,
        typer.Option(
            help="Only those in this state: pending, active, failing, reauthorization_required "
            "or disconnected."
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="Only those with this in label, id or account.")
    ] = None,
) -> None:
    """List the connections and how each is doing."""
    from daemon.cli import calls

    calls.list_connections(call_of(context), provider=provider, status=status, query=query)


@app.command(epilog=EVERYWHERE)
def show(context: typer.Context, *, connection_id: ConnectionId) -> None:
    """Show one connection (never a token)."""
    from daemon.cli import calls

    calls.show(call_of(context), connection_id)


@app.command(epilog=EVERYWHERE)
def token(
    context: typer.Context,
    *,
    connection_id: ConnectionId,
    as_json: Annotated[bool, typer.Option("--json", help="With expiry and scope.")] = False,
    as_header: Annotated[bool, typer.Option("--header", help="As a header for curl -H.")] = False,
    min_ttl: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="With at least this much life left, such as 5m."),
    ] = None,
) -> None:
    """Print the current access token and nothing else."""
    from daemon.cli import calls

    calls.token(
        call_of(context), connection_id, min_ttl=min_ttl, as_json=as_json, as_header=as_header
    )


@app.command(epilog=EVERYWHERE)
def refresh(context: typer.Context, *, connection_id: ConnectionId) -> None:
    """Refresh a connection's token now, then show the connection."""
    from daemon.cli import calls

    calls.refresh(call_of(context), connection_id)


@app.command(epilog=EVERYWHERE)
def test(context: typer.Context, *, connection_id: ConnectionId) -> None:
    """Call the provider's test request with a connection's token."""
    from daemon.cli import calls

    calls.test(call_of(context), connection_id)


@app.command(epilog=EVERYWHERE)
def disconnect(
    context: typer.Context,
    *,
    connection_id: ConnectionId,
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove the connection and its history.")
    ] = False,
) -> None:
    """End a connection: erase its tokens here and revoke them at the provider."""
    from daemon.cli import calls

    calls.disconnect(call_of(context), connection_id, purge=purge)


@app.command(epilog=EVERYWHERE)
def events(
    context: typer.Context,
    *,
    connection_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Only this connection's.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what happens from now on.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of the past.")] = 50,
) -> None:
    """Show what happened to connections, oldest first."""
    from daemon.cli import history

    history.events(call_of(context), connection_id, follow=follow, limit=limit)


@app.command("import", epilog=EVERYWHERE)
def import_(
    context: typer.Context,
    *,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines; - is stdin.")],
) -> None:
    """Create connections from lines of POST /v1/connections bodies. May be repeated."""
    from daemon.cli import transfer

    transfer.import_file(call_of(context), file)


@app.command(epilog=EVERYWHERE)
def export(context: typer.Context) -> None:
    """Print all connections as JSON lines: everything but secrets."""
    from daemon.cli import transfer

    transfer.export(call_of(context))


@app.command(epilog=EVERYWHERE)
def providers(
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this one.")] = None,
) -> None:
    """Show the configured providers and the redirect URI to register at each."""
    from daemon.cli import calls

    calls.providers(call_of(context), name)


@app.command(epilog=EVERYWHERE)
def wait(
    context: typer.Context,
    *,
    longest: Annotated[
        str, typer.Option("--max", metavar="DURATION", help="How long to wait at most.")
    ] = "30s",
) -> None:
    """Wait until the daemon has started."""
    from daemon.cli import startup

    startup.wait(call_of(context), longest)


@app.command(epilog=EVERYWHERE)
def version(context: typer.Context) -> None:
    """Print the version."""
    if call_of(context).as_json:
        say_json({"version": __version__})
    else:
        say(f"tokenward {__version__}")
