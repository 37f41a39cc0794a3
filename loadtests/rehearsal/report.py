"""Report of a rehearsal: figures per route and over time, held against SLOs; as JSON and as one HTML page."""

import html
import statistics
import tomllib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from loadtests.bench.result import machine
from loadtests.rehearsal.traffic import RAMP, Call, Record

SLOS = Path(__file__).with_name("slos.toml")

_MAX_FAILURES = 100
"""Failed requests that are listed one by one."""

_STYLE = """body{font:15px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}
td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}
.no{color:#b00;font-weight:600}.yes{color:#070}"""


def summarise(record: Record, seconds: float, connections: int) -> dict[str, Any]:
    """The figures of a rehearsal as plain data."""
    by_route: dict[str, list[Call]] = defaultdict(list)
    for call in record.calls:
        by_route[call.route].append(call)
    settled = [s.gateway_bytes for s in record.samples if s.at >= RAMP * seconds] or [1]
    cpu = record.samples[-1].cpu_seconds - record.samples[0].cpu_seconds if record.samples else 0.0
    lasted = max([seconds, *(call.at + call.seconds for call in record.calls)])
    return {
        "machine": machine(),
        "seconds": round(lasted, 1),
        "connections": connections,
        "requests": len(record.calls),
        "per_second": round(len(record.calls) / lasted, 2),
        "failed": sum(_has_failed(call) for call in record.calls),
        "failures": [
            {"at": round(call.at, 1), "route": call.route, "status": call.status, "seconds": round(call.seconds, 1)}
            for call in record.calls
            if _has_failed(call)
        ][:_MAX_FAILURES],
        "refused": sum(call.status == 429 for call in record.calls),
        "statuses": dict(Counter(str(call.status) for call in record.calls)),
        "tenants": dict(Counter(call.tenant for call in record.calls)),
        "cpu_seconds_per_request": round(cpu / max(len(record.calls), 1), 3),
        "gateway_growth_percent": round(100 * (settled[-1] / settled[0] - 1), 2),
        "routes": {route: _describe(calls) for route, calls in sorted(by_route.items())},
        "events": [{"at": round(at, 1), "what": what} for at, what in record.events],
        "over_time": [
            {"at": round(s.at, 1), "callers": s.callers, "ready": s.ready, "gateway_bytes": s.gateway_bytes}
            for s in record.samples
        ],
    }


def check_slos(figures: dict[str, Any], file: Path = SLOS) -> list[dict[str, Any]]:
    """Each objective with what was reached, and whether that keeps it."""
    slos = tomllib.loads(file.read_text("utf-8"))
    reached = {**figures, "refused_share": figures["refused"] / max(figures["requests"], 1)}
    found = [_hold(name, reached[name], most) for name, most in slos["all"].items()]
    for route, measured in figures["routes"].items():
        wanted = {**slos["default"], **slos.get("routes", {}).get(route, {})}
        found += [_hold(f"{route} {name}", measured[name], most) for name, most in wanted.items()]
    return found


def render_html(figures: dict[str, Any], held: list[dict[str, Any]]) -> str:
    """One page with everything, which needs nothing from elsewhere."""
    head = f"{figures['requests']:,} requests in {figures['seconds']:g} s over {figures['connections']} connections"
    about = f"{figures['machine']['cpu']}, {figures['machine']['cores']} cores"
    objectives = [[each["objective"], each["reached"], each["most"], _mark(each["is_kept"])] for each in held]
    names = ("requests", "failed", "refused", "p50_ms", "p95_ms", "p99_ms")
    routes = [[route, *(measured[name] for name in names)] for route, measured in figures["routes"].items()]
    events = [[event["what"], event["at"]] for event in figures["events"]]
    services = sorted({name for sample in figures["over_time"] for name in sample["ready"]})
    course = [
        [sample["at"], sample["callers"], *(sample["ready"].get(name, "–") for name in services)]
        for sample in figures["over_time"]
    ]
    parts = [
        f"<h1>Rehearsal</h1><p>{html.escape(head)}. {html.escape(about)}.</p>",
        "<h2>Objectives</h2>" + _table(["objective", "reached", "most", ""], objectives),
        "<h2>Routes</h2>" + _table(["route", *names], routes),
        "<h2>Events</h2>" + _table(["what", "second"], events),
        "<h2>Ready replicas</h2>" + _table(["second", "callers", *services], course),
    ]
    return f"<!doctype html><meta charset=utf-8><title>Rehearsal</title><style>{_STYLE}</style>{''.join(parts)}"


def _has_failed(call: Call) -> bool:
    return not 200 <= call.status < 300 and call.status != 429


def _describe(calls: list[Call]) -> dict[str, Any]:
    times = sorted(1000 * call.seconds for call in calls if 200 <= call.status < 300) or [0.0]
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    return {
        "requests": len(calls),
        "failed": sum(map(_has_failed, calls)),
        "refused": sum(call.status == 429 for call in calls),
        **{f"p{share}_ms": round(cuts[share - 1], 1) for share in (50, 95, 99)},
    }


def _hold(objective: str, reached: float, most: float) -> dict[str, Any]:
    return {"objective": objective, "reached": round(reached, 4), "most": most, "is_kept": reached <= most}


def _mark(is_kept: bool) -> str:
    return '<span class="yes">kept</span>' if is_kept else '<span class="no">missed</span>'


def _table(head: list[str], rows: list[list[Any]]) -> str:
    def cell(value: Any) -> str:
        text = str(value)
        return f"<td>{text if text.startswith('<span') else html.escape(text)}</td>"

    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in head), *("".join(map(cell, row)) for row in rows)]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
