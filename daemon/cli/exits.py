"""How a command ends: the exit codes of contract 7, and the one exception that carries them."""

from __future__ import annotations

from enum import IntEnum

from daemon.domain.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    KeyringError,
    TokenwardError,
)


class Exit(IntEnum):
    """Exit codes."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    """Usage or configuration."""
    NO_SUCH_CONNECTION = 3
    REAUTHORIZE = 4
    """A person must act."""
    UNAVAILABLE = 5
    """Temporarily; the same command may succeed later."""


class CommandError(TokenwardError):
    """A command cannot do what it was asked. The text goes to stderr and says what to do."""

    def __init__(self, message: str, exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code_of(error: TokenwardError) -> Exit:
    """Return the exit code that ``error`` stands for."""
    match error:
        case CommandError():
            return error.exit_code
        case ConfigurationError() | KeyringError():
            return Exit.USAGE
        case DatabaseUnavailableError():
            return Exit.UNAVAILABLE
        case _:
            return Exit.FAILED
