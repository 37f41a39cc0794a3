"""Output of the command line: tables and notes for people, or JSON lines for programs.

Answers go to standard output, everything else (progress, notes, errors) to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared.api.problem import problem
from shared.errors import FoveaError

_STATES = {"succeeded": "green", "failed": "red", "running": "cyan", "queued": "yellow", "cancelled": "dim"}


class Screen:
    """The output of one command.

    Args:
        as_json: Whether answers are JSON lines instead of text for people.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = Console(highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)

    def line(self, value: Any) -> None:
        """Write one JSON line."""
        body = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    @staticmethod
    def format_json(value: Any) -> str:
        """Format a value as indented JSON."""
        return json.dumps(value, indent=2, ensure_ascii=False)

    def text(self, text: str) -> None:
        """Write plain text."""
        self.out.print(text, markup=False)

    def note(self, text: str) -> None:
        """Write a note next to the answer (rich markup)."""
        self.err.print(text)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write a table; cells may hold rich markup."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.out.print(table)

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Write names and values, one pair a line; empty values are left out."""
        table = Table.grid(padding=(0, 3, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts.items():
            if value not in (None, "", [], ()):
                table.add_row(escape(name), escape(str(value)))
        self.out.print(table)

    def error(self, error: FoveaError, about: str = "") -> None:
        """Write what went wrong and what to try, in one line."""
        if self.as_json:
            self.line({**({"file": about} if about else {}), "error": problem(error).model_dump(exclude_none=True)})
            return
        hint = f" [dim]{escape(error.hint)}[/]" if error.hint else ""
        self.err.print(f"[bold red]{escape(about or error.title)}:[/] {escape(error.detail)}{hint}")


def colour_status(status: str) -> str:
    """Give a job's status its colour."""
    return f"[{_STATES.get(status, 'default')}]{status}[/]"
