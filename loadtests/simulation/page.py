"""docs/20-scale.md and its curves, from `results.json`: what limits a fleet, what a replica costs, what to shard."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests.dashboard.chart import Panel, draw_panels

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")
TEMPLATE, DAYS_TEMPLATE = (Path(__file__).with_name(f"{name}_template.md") for name in ("page", "days"))
PAGE = ROOT / "docs/20-scale.md"
PICTURES = ROOT / "docs/images"

FULL = 0.7
"""Share of a core, or of a link, beyond which a part counts as full."""

POLLS_PER_SECOND, SCRAPE_S, LINK_BYTES = 2, 15, 1.25e9
MOST_REPLICAS = 20_000
"""Limits beyond this say nothing: other parts are full long before."""

CASES = tuple((gateways, rate) for gateways in (4, 16, 100) for rate in (0.5, 5.0))
"""Gateways, and requests a second of each replica, for which limits are computed."""


def read_request_cost() -> float:
    """Processor seconds of a gateway per request: what `make bench ARGS=serving` measured with it, less without it."""
    rows = json.loads((ROOT / "loadtests/bench/results/serving.json").read_text("utf8"))["rows"]
    found = {row["name"]: row["median"] for row in rows if row["unit"] == "CPU ms / request"}
    return float(found["Fovea gateway + service"] - found["Fovea service"]) / 1000


def render_page() -> Iterator[tuple[Path, str]]:
    """The page and its pictures."""
    found = json.loads(RESULTS.read_text("utf8"))
    if "days" in found:
        yield PICTURES / "scale-days.svg", draw_days(found["days"])
    yield PICTURES / "scale-fleets.svg", draw_grid(found["grid"])
    yield PAGE, write_page(found)


def compare(predicted: Mapping[str, Any]) -> list[tuple[str, str, float, float]]:
    """Scenario, figure, measured and simulated, of all scenarios but the first, which calibrates."""
    rows: list[tuple[str, str, float, float]] = []
    for title, both in list(predicted.items())[1:]:
        measured, simulated = both["measured"], both["simulated"]
        for tenant, figures in measured["tenants"].items():
            for figure, name in (("per_second", "requests / s"), ("mean_s", "mean time, s")):
                rows.append((title, f"{tenant}: {name}", figures[figure], simulated["tenants"][tenant][figure]))
        rows.append((title, "requests in a batch", measured["together"], simulated["together"]))
        if measured["queue_s"] > 0.01:
            rows.append((title, "wait at the gateway, s", measured["queue_s"], simulated["queue_s"]))
    return rows


def find_limits(found: Mapping[str, Any], gateways: int, rate: float) -> dict[str, float]:
    """Replicas at which each part is `FULL`, with so many requests a second of each replica."""
    redis, most = found["units"]["redis"], found["units"]["gateway"][-1]
    polls = POLLS_PER_SECOND * gateways
    limits = {
        "Redis, processor": FULL / (redis["renewal_s"] + polls * redis["record_s"] + rate * redis["count_s"]),
        "Redis, network": FULL * LINK_BYTES / (polls * redis["record_bytes"]),
        "a gateway, reading records": FULL * most["replicas"] / (POLLS_PER_SECOND * most["refresh_s"]),
        "the gateways, requests": _limit_requests(most, gateways, rate),
        "the service's Ray head": _limit_head(found["cluster"]["head"]),
    }
    if scraped := found["units"]["prometheus"]:
        limits["Prometheus, processor"] = FULL * SCRAPE_S / (scraped["sample_s"] * scraped["samples_of_a_pod"])
    return limits


def _limit_requests(most: Mapping[str, float], gateways: int, rate: float) -> float:
    """Where place and pick, which grow with the replicas, and the rest of each request fill the gateways.

    A gateway's share is `n (2 r + c q / g) + n² p q / g`: r per record, c per request, p per replica and request.
    """
    route = (most["place_s"] + most["pick_known_s"]) / most["replicas"] * rate / gateways
    linear = POLLS_PER_SECOND * most["refresh_s"] / most["replicas"] + read_request_cost() * rate / gateways
    return float(((linear**2 + 4 * route * FULL) ** 0.5 - linear) / (2 * route))


def _limit_head(head: Sequence[Mapping[str, float]]) -> float:
    first, last = head[0], head[-1]
    slope = (last["processor_share"] - first["processor_share"]) / (last["replicas"] - first["replicas"])
    return last["replicas"] + (FULL - last["processor_share"]) / max(slope, 1e-9)


def draw_days(days: Mapping[str, Any]) -> str:
    """The course of the days."""

    def line(key: str) -> list[tuple[float, float]]:
        return [(bucket["hours"], bucket[key]) for bucket in days["buckets"]]

    panels = [
        Panel("Requests answered a second", "", {"requests": line("per_second")}),
        Panel("Replicas", "", {"replicas": line("replicas")}),
        Panel("Median", "s", {"all tenants": line("median_s")}),
        Panel("99th percentile", "s", {"all tenants": line("p99_s"), "alice": line("alice_p99_s")}),
    ]
    return draw_panels(panels, 0, 24 * days["days"], f"{days['days']:g} days")


def draw_grid(grid: Sequence[Mapping[str, Any]]) -> str:
    """Each fleet's figures by its replicas, a line for each number of gateways."""
    most = max(point["replicas"] for point in grid)
    sizes = Counter(point["gateways"] for point in grid)
    counts = sorted(count for count, points in sizes.items() if points > 1)

    def lines(key: str) -> dict[str, list[tuple[float, float]]]:
        chosen = {count: [p for p in grid if p["gateways"] == count] for count in counts}
        return {f"{count} gateways": [(p["replicas"], p[key] or 0.0) for p in chosen[count]] for count in counts}

    titles = {
        "redis_share": ("Redis, share of its core", "percentunit"),
        "gateway_share": ("A gateway, share of its core", "percentunit"),
        "gateway_backlog_s": ("Backlog of a gateway", "s"),
        "median_s": ("Median", "s"),
    }
    panels = [Panel(title, unit, lines(key)) for key, (title, unit) in titles.items()]
    return draw_panels(panels, 0, most, f"{most:,} replicas")


def write_page(found: Mapping[str, Any]) -> str:
    """The page's text."""
    rows, redis = compare(found["predict"]), found["units"]["redis"]
    facts = {
        "cpu": found["machine"]["cpu"],
        "sleep": found["cluster"]["sleep_s"],
        "figures": len(rows),
        "within": sum(abs(simulated / measured - 1) <= 0.15 for _, _, measured, simulated in rows),
        "lost": sum(run["lost"] for run in found["cluster"]["runs"].values()),
        "check": _write_check(rows),
        "units": _write_units(found),
        "full": f"{100 * FULL:.0f} %",
        "load": f"{found['cluster']['load_average']:.0f}",
        "most": f"{max(point['replicas'] for point in found['grid']):,}",
        "heads": found["cluster"]["head"][-1]["replicas"],
        "limits": _write_limits(found),
        "grid": _write_grid(found["grid"]),
        "days": _write_days(found["days"]) if "days" in found else "",
        "alone": f"{1e6 * redis['renewal_alone_s']:.0f}",
        "renewal": f"{1e6 * redis['renewal_s']:.0f}",
        "volatile": f"{1e6 * redis['renewal_volatile_s']:.0f}",
    }
    return TEMPLATE.read_text("utf8").format(**facts)


def _write_days(days: Mapping[str, Any]) -> str:
    events = Counter(what for _, what in days["events"])
    failed = [f"{count} × {code}" for code, count in sorted(days["statuses"].items()) if code not in {"200", "429"}]
    facts = {
        "gateways": days["gateways"],
        "requests": f"{sum(days['statuses'].values()):,}",
        **{name: events[name] for name in ("burst", "kill", "rollout", "redis")},
        "refused": f"{days['statuses'].get('429', 0):,}",
        "failed": ", ".join(failed) or "none",
        "retried": days["retried"],
        "held": f"{100 * days['held_share']:.0f} %",
        "redis_share": f"{100 * days['redis_share']:.2f} %",
        "gateway_share": f"{100 * days['gateway_share']:.2f} %",
        "job_median": f"{days['jobs']['wait_median_s']:.0f}",
        "job_longest": f"{days['jobs']['wait_longest_s']:.0f}",
        "pod_hours": days["jobs"]["pod_hours"],
    }
    return DAYS_TEMPLATE.read_text("utf8").format(**facts)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _write_check(rows: Sequence[tuple[str, str, float, float]]) -> str:
    cells = [(title, name, f"{a:.3g}", f"{b:.3g}", f"{100 * (b / a - 1):+.0f} %") for title, name, a, b in rows]
    return _table(["scenario", "figure", "cluster", "simulated", "difference"], cells)


def _write_units(found: Mapping[str, Any]) -> str:
    redis, gateway = found["units"]["redis"], found["units"]["gateway"][-1]
    count, head, scraped = gateway["replicas"], found["cluster"]["head"], found["units"]["prometheus"]
    known, new = (1e3 * (gateway["place_s"] + gateway[f"pick_{kind}_s"]) for kind in ("known", "new"))
    shares = ", ".join(f"{100 * one['processor_share']:.1f} % at {one['replicas']}" for one in head)
    rows = [
        ("Redis: a renewal, one per second and replica", f"{1e6 * redis['renewal_s']:.0f} µs"),
        ("Redis: a request that is counted", f"{1e6 * redis['count_s']:.0f} µs"),
        ("Redis: a record that a gateway reads, two per second", f"{1e6 * redis['record_s']:.2f} µs"),
        ("Redis: size of a record, on the wire and in memory", f"{redis['record_bytes']:,} bytes"),
        ("gateway: a request, without routing", f"{1e3 * read_request_cost():.2f} ms"),
        ("gateway: a record that it reads", f"{1e6 * gateway['refresh_s'] / count:.1f} µs"),
        (f"gateway: a place and a pick among {count:,}, known session", f"{known:.2f} ms"),
        (f"gateway: a place and a pick among {count:,}, new session", f"{new:.2f} ms"),
        ("replica: a renewal", f"{1e6 * found['units']['heartbeat_s']:.0f} µs"),
        ("Ray head: share of a core by replicas", shares),
    ]
    if scraped:
        samples = scraped["samples_of_a_pod"]
        rows.append((f"Prometheus: a sample ({samples} per pod assumed)", f"{1e6 * scraped['sample_s']:.2f} µs"))
        rows.append(("Prometheus: memory of a series", f"{scraped['series_bytes']:,.0f} bytes"))
    return _table(["unit", "cost"], rows)


def _write_limits(found: Mapping[str, Any]) -> str:
    limits = [find_limits(found, *case) for case in CASES]

    def write(value: float) -> str:
        return f"{round(value, -2):,.0f}" if value < MOST_REPLICAS else f"over {MOST_REPLICAS:,}"

    head = ["part", *(f"{gateways} gateways, {rate:g} requests" for gateways, rate in CASES)]
    return _table(head, [[part, *(write(each[part]) for each in limits)] for part in limits[0]])


def _write_grid(grid: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"{point['replicas']:,}",
            point["gateways"],
            f"{point['asked_per_second']:,.0f}",
            "–" if point["median_s"] is None else f"{point['median_s']:.2f}",
            f"{100 * point['redis_share']:.0f} %",
            f"{100 * point['gateway_share']:.0f} %",
            f"{point['gateway_backlog_s']:.2f}",
            f"{point['redis_bytes_per_second'] / 1e6:,.1f}",
        )
        for point in grid
    ]
    head = [
        "replicas", "gateways", "requests / s", "median, s", "Redis", "a gateway", "backlog, s", "MB / s from Redis",
    ]  # fmt: skip
    return _table(head, rows)
