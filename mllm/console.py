"""The console that tables are printed on."""

import os
from typing import Any

WIDE_COLUMNS = 10_000


def report_console() -> Any:
    """A `rich.console.Console` for tables: as wide as the terminal, and in a file or a pipe as wide as they need."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDE_COLUMNS)
