"""Rows as CSV, in which no spreadsheet finds a formula."""

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

_FORMULA = re.compile(r"\s*(=(?!$)|[+@-].*[(|!])|[\t\r]", re.DOTALL)


def format_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Rows of cells as CSV; a text that a spreadsheet would run gets an apostrophe; ids and options such as -1 stay."""
    out = io.StringIO()
    disarmed = ([f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell for cell in r] for r in rows)
    csv.writer(out, lineterminator="\n").writerows(disarmed)
    return out.getvalue()
