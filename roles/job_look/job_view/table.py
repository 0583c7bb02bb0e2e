"""Columns on the screen, coloured where that is wanted; plain text elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from ansible.utils.color import ANSIBLE_COLOR
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 1000  # a file or a pipe has no edge at which a line would have to be broken
COLOURS = {
    "running": "green",
    "trains": "green",
    "done": "green",
    "starting": "yellow",
    "starts": "yellow",
    "waits": "yellow",
    "stops": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "unreadable": "red",
    "is missing": "red",
    "gave up": "red",
    "does not answer": "red",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, colour: bool = bool(ANSIBLE_COLOR)) -> str:
    """Return the rows under their headings. A column whose name begins with > stands at the right."""
    shown = Table(box=box.SIMPLE_HEAD if colour else None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name in columns:
        shown.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(Text(cell, style=COLOURS.get(cell, "") if colour else "") for cell in row))
    text = io.StringIO()
    Console(file=text, width=WIDE, force_terminal=colour, color_system="standard" if colour else None).print(shown)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())
