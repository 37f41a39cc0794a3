"""HTML page of a report: charts with tooltips and links, tables, and the spec that made it. No script.

The one style sheet in its head applies where the page is opened alone, not where only `main` is embedded (the console).
`POLICY` allows that sheet, by its digest, and nothing else.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html import escape as escaped
from pathlib import Path
from urllib.parse import quote

from services.interpretability.core.report import HeatMap, Report, Table
from services.interpretability.rendering import plots
from services.interpretability.rendering.svg import Drawing

MAX_TABLE_ROWS = 200
"""Rows of a table that the page shows; all are in the JSON."""

MAX_PICTURES = 64
"""Charts of a report that are shown; all are in the JSON."""

MAX_LARGE_PATTERNS = 2
"""Up to so many patterns are drawn large."""

_STYLE = Path(__file__).with_name("html_page.css").read_text("utf8")

POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page."""

_HEAD = re.compile(r"\d+-\d+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def escape(text: str) -> str:
    """Escape a text for HTML; control characters become the replacement character."""
    return escaped(_CONTROL.sub("\ufffd", text))


def render_page(report: Report) -> str:
    """Return the whole HTML document."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(report.title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(_parts(report))}</main></body></html>"
    )


def permalink(experiment: str, spec: dict[str, object]) -> str:
    """Return the address of the console's page of an experiment, filled in with a spec."""
    options = {key: value for key, value in spec.items() if value not in (None, [])}
    return f"/console/probe?model={quote(experiment)}&spec={quote(json.dumps(options, ensure_ascii=False))}"


def draw_report(report: Report) -> list[Drawing]:
    """Draw all charts of a report; cells of head maps link to patterns."""
    drawings = [plots.draw_graph(data) for data in report.graphs]
    patterns = [data for data in report.grids if _HEAD.fullmatch(data.name)]
    if len(patterns) > MAX_LARGE_PATTERNS:
        drawings.append(plots.draw_panels(patterns, lambda data: _enlarge_link(report, data)))
    rest = [data for data in report.grids if len(patterns) <= MAX_LARGE_PATTERNS or data not in patterns]
    drawings += [plots.draw_heat_map(data, head_map_link(report, data)) for data in rest]
    drawings += [*map(plots.draw_bars, report.bars), *map(plots.draw_strip, report.strips)]
    if (left := len(drawings) - MAX_PICTURES) > 0:
        drawings[MAX_PICTURES:] = [plots.draw_words(f"{left} more charts are in the JSON.")]
    return drawings


def head_map_link(report: Report, data: HeatMap) -> plots.Link | None:
    """Return where a click on a cell of a head map leads: that head's pattern on the report's text."""
    if data.text is None or data.columns.label != "head" or report.manifest is None:
        return None
    lm = report.manifest.model

    def link(grid: HeatMap, row: int, column: int) -> str:
        chosen = {"layers": [int(grid.rows.ticks[row])], "heads": [int(grid.columns.ticks[column])]}
        return permalink("attention", {"lm": lm, "text": grid.text, **chosen})

    return link


def _enlarge_link(report: Report, data: HeatMap) -> str:
    """Where a click on the small map of a head's pattern leads: the same report for this head only."""
    if report.manifest is None:
        return ""
    layer, head = map(int, data.name.split("-"))
    return permalink(report.manifest.experiment, {**report.spec, "layers": [layer], "heads": [head]})


def _parts(report: Report) -> Iterator[str]:
    yield f"<h1>{escape(report.title)}</h1>"
    if report.partial:
        yield "<p><strong>Partial: the run was stopped.</strong></p>"
    if report.warnings:
        yield "<ul>" + "".join(f"<li>⚠ {escape(warning)}</li>" for warning in report.warnings) + "</ul>"
    yield _scalars(report)
    for drawing in draw_report(report):
        yield f"<figure>{drawing.svg()}</figure>"
    yield from map(_table, report.tables)
    for artefact in report.artefacts:
        label = f"{escape(artefact.name)}, {artefact.bytes:,} bytes, sha256 {(digest := artefact.sha256)[:12]}…"
        yield f'<p>Artefact: <a href="/v1/probe/artefacts/{digest}" data-artefact="{digest}">{label}</a></p>'
    yield _manifest_section(report)


def _scalars(report: Report) -> str:
    rows = "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td title='{plots.format_number(s.value, 9)} {escape(s.unit)}'>"
        f"{plots.format_number(s.value, 4)} {escape(s.unit)}</td><td>{escape(s.note)}</td></tr>"
        for name, s in report.scalars.items()
    )
    return f"<table><tbody>{rows}</tbody></table>" if rows else ""


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows[:MAX_TABLE_ROWS])
    more = f"<p>{left} more rows are in the JSON.</p>" if (left := len(table.rows) - MAX_TABLE_ROWS) > 0 else ""
    heading = f"<h3>{escape(table.name.replace('_', ' '))}</h3><p>{escape(table.caption)}</p>"
    return f"{heading}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


def _cell(value: object) -> str:
    if isinstance(value, float):  # the tooltip is the whole number, which the console's CSV has
        return f'<td title="{value:.9g}">{value:.4g}</td>'
    return f"<td>{'–' if value is None else escape(str(value))}</td>"


def _manifest_section(report: Report) -> str:
    if report.manifest is None:
        return ""
    link = permalink(report.manifest.experiment, report.spec)
    facts = escape(json.dumps(report.manifest.model_dump(mode="json"), indent=1))
    return (
        f'<p><a href="{escape(link)}">Permalink: this report, from its spec</a></p>'
        f"<details><summary>Manifest</summary><pre>{facts}</pre></details>"
    )
