"""The terminal that results are printed on."""

from rich.console import Console

PIPE_COLUMNS = 160


def wide() -> Console:
    """The terminal; a file or a pipe gets whole columns."""
    console = Console()
    return console if console.is_terminal else Console(width=max(PIPE_COLUMNS, console.width))
