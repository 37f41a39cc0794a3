"""Report of a card: a dated page with what was computed against what was measured. Knows rows; knows no device."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date

from loadtests.gpu.timing import Row

_TITLES = {
    "suites": "Suites", "kernels": "Attention kernels", "decode": "Decode steps", "vision": "Vision",
}  # fmt: skip


def render(card: str, when: date, versions: Mapping[str, str], rows: Sequence[Row], *, is_dry: bool = False) -> str:
    """Return the page."""
    return "\n".join(_lines(card, when, versions, rows, is_dry=is_dry)) + "\n"


def _lines(card: str, when: date, versions: Mapping[str, str], rows: Sequence[Row], *, is_dry: bool) -> Iterator[str]:
    yield f"# {card}, {when.isoformat()}"
    yield ""
    if is_dry:
        yield "**No GPU ran this.** Sizes are tiny and kernels were interpreted on a processor: the page shows which"
        yield "parts run, and its times mean nothing."
        yield ""
    yield "Written by `make gpu`. **Computed** is what `loadtests/gpu/cost_model.py` expects of our own"
    yield "kernels; **measured** is the median on this card."
    yield ""
    yield ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
    for part, title in _TITLES.items():
        if found := [row for row in rows if row.part == part]:
            yield from ("", f"## {title}", "")
            yield "| case | by | computed, ms | measured, ms | measured / computed | note |"
            yield "|---|---|---|---|---|---|"
            yield from (_line(row) for row in found)


def _line(row: Row) -> str:
    ratio = ""
    if row.computed_ms and row.measured_ms is not None:
        ratio = f"{row.measured_ms / row.computed_ms:.2f}×"
    cells = (row.name, row.by, _number(row.computed_ms), _number(row.measured_ms), ratio, row.note.replace("|", "/"))
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
