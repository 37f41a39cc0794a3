"""Output of the command line: tables and notes for people, rows and records for programs.

Answers go to standard output, everything else (progress, notes, errors) to standard error.
"""

import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fovea.api.csv_form import format_csv
from fovea.api.problem import problem
from fovea.errors import FoveaError, InvalidOption

_PIPE_WIDTH = 10_000

Columns = Sequence[str]
Rows = Sequence[Sequence[str]]
Section = tuple[str, Columns, Rows]
"""A table with its name."""

_STATES = {"succeeded": "green", "failed": "red", "running": "cyan", "queued": "yellow", "cancelled": "dim"}


class Screen:
    """The output of one command.

    Args:
        form: `table`, `tsv` or `csv` for texts; `json` for a JSON line per record, `name` for its id or name, or a
            template with fields in braces, as `{id} {error.detail}`. None is a table on a terminal and tsv elsewhere.
        as_json: Short for the form `json`.

    Raises InvalidOption: there is no such form.
    """

    def __init__(self, form: str | None = None, *, as_json: bool = False) -> None:
        form = "json" if as_json else form
        if form not in {None, "table", "tsv", "csv", "json", "name"} and "{" not in str(form):
            hint = "Use table, tsv, csv, json, name, or a template such as '{id} {status}'."
            raise InvalidOption(f"{form!r} is not a form of output.", hint=hint, field="format")
        self.form = form
        self.as_json = form not in {None, "table", "tsv", "csv"}
        self.out = Console(highlight=False, soft_wrap=True, emoji=False)
        if not self.out.is_terminal:
            self.out.width = _PIPE_WIDTH  # a table in a file is not cut
        self.err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self._has_csv = False  # whether a table was written as CSV, which has one alone

    @property
    def is_tsv(self) -> bool:
        """Whether tables are rows of values between tabs, or commas."""
        return self.form in {"tsv", "csv"} or (self.form is None and not self.out.is_terminal)

    def line(self, value: Any) -> None:
        """Write one record: as JSON, its name, or the template filled in."""
        body = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        sys.stdout.write(_format_record(body, self.form) + "\n")
        sys.stdout.flush()

    def wrote(self, *records: Any) -> bool:
        """Write the records if the form is one for programs; return whether it is, so that nothing else is written."""
        for record in records if self.as_json else ():
            self.line(record)
        return self.as_json

    @staticmethod
    def format_json(value: Any) -> str:
        """Format a value as indented JSON."""
        return json.dumps(value, indent=2, ensure_ascii=False)

    def text(self, text: str) -> None:
        """Write plain text."""
        self.out.print(text, markup=False)

    def title(self, text: str) -> None:
        """Write a line about a table, rich markup; next to the answer where that is CSV, which readers need whole."""
        (self.err if self.form == "csv" else self.out).print(text)

    def note(self, text: str, *, markup: bool = True) -> None:
        """Write a note next to the answer; names of files are no rich markup."""
        self.err.print(text, markup=markup)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, head: bool = True) -> None:
        """Write a table; cells may hold rich markup. In a pipe: whole cells between tabs; CSV has a head."""
        if self.is_tsv:
            plain = (tuple(Text.from_markup(cell, emoji=False).plain for cell in row) for row in rows)
            self._write_tsv(chain([columns] if head or self.form == "csv" else [], plain))
            return
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
        for number, column in enumerate(columns):
            table.add_column(column, overflow="fold", no_wrap=number == 0)
        for row in rows:
            table.add_row(*row)
        self.out.print(table)

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Write names and values, one pair a line; empty values are left out."""
        pairs = [(name, str(value)) for name, value in facts.items() if value not in (None, "", [], ())]
        if self.is_tsv:
            self._write_tsv([*([("name", "value")] if self.form == "csv" else []), *pairs])
            return
        table = Table.grid(padding=(0, 3, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in pairs:
            table.add_row(escape(name), escape(value))
        self.out.print(table)

    def tables(self, facts: Mapping[str, Any], tables: Sequence[tuple[Columns, Rows]]) -> None:
        """Write facts and tables; in a pipe as one table of names and values: a cell's name is its row and column."""
        if self.is_tsv:
            cells = [(columns, row, i) for columns, rows in tables for row in rows for i in range(1, len(row))]
            facts = {**facts, **{f"{names[0]} {row[0]}, {names[i]}": row[i] for names, row, i in cells}}
        self.facts(facts)
        for columns, rows in () if self.is_tsv else tables:
            self.out.print()
            self.table(columns, [tuple(map(escape, row)) for row in rows])

    def sections(self, facts: Mapping[str, Any], sections: Sequence[Section]) -> None:
        """Write facts and named tables of many rows, which may hold rich markup.

        CSV has the rows alone, in one table; where there are several, a column names the one that each is from.
        """
        if self.form == "csv" and sections:
            self.note("\n".join(f"{name}: {value}" for name, value in facts.items()), markup=False)
            named = ["table"] * (len(sections) > 1)
            whole = [*dict.fromkeys([*named, *(column for _, head, _ in sections for column in head)])]
            cells = [
                {"table": escape(name), **dict(zip(head, row, strict=True))}
                for name, head, rows in sections
                for row in rows
            ]
            self.table(whole, [[one.get(column, "") for column in whole] for one in cells])
            return
        self.facts(facts)
        for name, columns, rows in sections:
            if len(sections) > 1:
                self.note(f"\n[bold]{escape(name)}[/]")
            self.table(columns, rows)

    def _write_tsv(self, rows: Iterable[Sequence[str]]) -> None:
        if self.form == "csv":
            stream = sys.stderr if self._has_csv else sys.stdout
            self._has_csv = True
            stream.write(format_csv(rows))
        else:
            for row in rows:
                sys.stdout.write("\t".join(re.sub(r"[\t\r\n]+", " ", cell) for cell in row) + "\n")
        sys.stdout.flush()

    def error(self, error: FoveaError, about: str = "") -> None:
        """Write what went wrong and what to try, in one line."""
        if self.form == "json":
            self.line({**({"file": about} if about else {}), "error": problem(error).model_dump(exclude_none=True)})
            return
        hint = f" [dim]{escape(error.hint)}[/]" if error.hint else ""
        self.err.print(f"[bold red]{escape(about or error.title)}:[/] {escape(error.detail)}{hint}")


def _format_record(body: Any, form: str | None) -> str:
    if form == "name":
        return _look_up(body, next((key for key in ("id", "name", "file", "judge") if key in body), "id"))
    if form is not None and "{" in form:
        return re.sub(r"\{([\w.]+)\}", lambda found: _look_up(body, found.group(1)), form.replace("\\t", "\t"))
    return json.dumps(body, ensure_ascii=False)


def _look_up(body: Any, path: str) -> str:
    for name in path.split("."):
        if body is not None and (not isinstance(body, dict) or name not in body):
            hint = f"Fields: {', '.join(body) if isinstance(body, dict) else 'none'}."
            raise InvalidOption(f"The answer has no field {path!r}.", hint=hint, field="format")
        body = body and body[name]  # null has no parts, as the error of a job that succeeded
    return body if isinstance(body, str) else "" if body is None else json.dumps(body, ensure_ascii=False)


def format_figure(value: Any, digits: int = 3) -> str:
    """A number to so many digits; all before the point stay, as of counts."""
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:.{digits}g}" if abs(value) < 10**digits - 0.5 else f"{value:.0f}"


def format_age(at: float) -> str:
    """How long ago a Unix time was, in the largest unit that fits."""
    ago = max(0, int(time.time() - at))
    unit, size = next(((u, s) for u, s in (("d", 86_400), ("h", 3_600), ("min", 60)) if ago >= s), ("s", 1))
    return f"{ago // size} {unit}"


def colour_status(status: str) -> str:
    """Give a job's status its colour."""
    return f"[{_STATES.get(status, 'default')}]{status}[/]"
