"""``python -m daemon`` and the console command ``tokenward``."""

from __future__ import annotations

from daemon.cli.commands import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
