"""docs/19-scale.md and its curves, from `results.json`: what limits a fleet, what a replica costs, and what to shard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests.dashboard.chart import Panel, draw_panels

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")
PAGE, DAYS_PICTURE, GRID_PICTURE = (
    ROOT / "docs/19-scale.md", ROOT / "docs/images/scale-days.svg", ROOT / "docs/images/scale-fleets.svg",
)  # fmt: skip
FULL = 0.7
"""Share of a core, or of a link, beyond which a part counts as full."""

POLLS_PER_SECOND, SCRAPE_S = 2, 15
LINK_BYTES = 1.25e9
"""10 Gbit/s, assumed."""


def read_request_cost() -> float:
    """Processor seconds of a gateway per request: what `make bench ARGS=serving` measured with it, less without it."""
    rows = json.loads((ROOT / "loadtests/bench/results/serving.json").read_text("utf8"))["rows"]
    found = {row["name"]: row["median"] for row in rows if row["unit"] == "CPU ms / request"}
    return float(found["Fovea gateway + service"] - found["Fovea service"]) / 1000


def render_page() -> Iterator[tuple[Path, str]]:
    """The page and its pictures."""
    found = json.loads(RESULTS.read_text("utf8"))
    yield DAYS_PICTURE, _draw_days(found["days"])
    yield GRID_PICTURE, _draw_grid(found["grid"])
    yield PAGE, _write(found)


def compare(predicted: Mapping[str, Any]) -> list[tuple[str, str, float, float, float]]:
    """Scenario, figure, measured, simulated and the difference as a share, of all scenarios but the first."""
    rows = []
    for title, both in list(predicted.items())[1:]:
        measured, simulated = both["measured"], both["simulated"]
        for tenant in measured["tenants"]:
            for figure, name in (("per_second", "requests / s"), ("mean_s", "mean, s")):
                pair = [part["tenants"][tenant][figure] for part in (measured, simulated)]
                rows.append((title, f"{tenant}: {name}", *pair, pair[1] / pair[0] - 1))
        if measured["queue_s"] > 0.01:
            pair = [measured["queue_s"], simulated["queue_s"]]
            rows.append((title, "wait at the gateway, s", *pair, pair[1] / pair[0] - 1))
    return rows


def find_limits(found: Mapping[str, Any], gateways: int, per_replica: float) -> dict[str, float]:
    """Replicas at which each part is `FULL`, by unit costs alone, with so many requests a second of each replica."""
    redis, most = found["units"]["redis"], found["units"]["gateway"][-1]
    polls = POLLS_PER_SECOND * gateways
    limits = {
        "Redis, processor": FULL / (redis["renewal_s"] + polls * redis["record_s"] + per_replica * redis["count_s"]),
        "Redis, network": FULL * LINK_BYTES / (polls * redis["record_bytes"]),
        "Gateway, reading the registry": FULL * most["replicas"] / (POLLS_PER_SECOND * most["refresh_s"]),
        "Ray head of the service": _head_limit(found["cluster"]["head"]),
    }
    if scraped := found["units"].get("prometheus"):
        limits["Prometheus, processor"] = FULL * SCRAPE_S / (scraped["sample_s"] * scraped["samples_of_a_pod"])
    return limits


def _head_limit(head: Sequence[Mapping[str, float]]) -> float:
    first, last = head[0], head[-1]
    slope = (last["processor_share"] - first["processor_share"]) / (last["replicas"] - first["replicas"])
    return last["replicas"] + (FULL - last["processor_share"]) / slope


def _draw_days(days: Mapping[str, Any]) -> str:
    series = {
        key: [(bucket["hours"], bucket[key]) for bucket in days["buckets"]]
        for key in ("per_second", "replicas", "median_s", "p99_s", "alice_p99_s")
    }
    panels = [
        Panel("Requests answered a second", "", {"requests": series["per_second"]}),
        Panel("Replicas", "", {"replicas": series["replicas"]}),
        Panel("Median", "s", {"all tenants": series["median_s"]}),
        Panel("99th percentile", "s", {"all tenants": series["p99_s"], "alice": series["alice_p99_s"]}),
    ]
    return draw_panels(panels, 0, 24 * days["days"], f"{days['days']:g} days")


def _draw_grid(grid: Sequence[Mapping[str, Any]]) -> str:
    most = max(point["replicas"] for point in grid)
    counts = sorted({point["gateways"] for point in grid if point["replicas"] == most})

    def lines(key: str) -> dict[str, list[tuple[float, float]]]:
        small = [point for point in grid if point["gateways"] not in counts or point["replicas"] < 500]
        return {
            f"{count} gateways": [
                (point["replicas"], point[key]) for point in grid if point in small or point["gateways"] == count
            ]
            for count in counts
        }

    titles = {
        "redis_share": ("Redis, share of its core", "percentunit"),
        "gateway_share": ("Each gateway, share of its core", "percentunit"),
        "answered_per_second": ("Requests answered a second", ""),
        "median_s": ("Median", "s"),
    }
    panels = [Panel(title, unit, lines(key)) for key, (title, unit) in titles.items()]
    return draw_panels(panels, 0, most, f"{most:,} replicas")


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _write(found: Mapping[str, Any]) -> str:
    parts = [_INTRODUCTION.format(cpu=found["machine"]["cpu"]), _write_check(found), _write_units(found)]
    return "\n\n".join([*parts, _write_limits(found), _write_grid(found), _write_days(found["days"]), _SHARDING]) + "\n"


def _write_check(found: Mapping[str, Any]) -> str:
    rows = compare(found["predict"])
    within = sum(abs(row[4]) <= 0.15 for row in rows)
    lost = sum(both["measured"]["lost"] for both in found["predict"].values())
    table = _table(
        ["scenario", "figure", "cluster", "simulated", "difference"],
        [(title, name, f"{a:g}", f"{b:g}", f"{share:+.0%}") for title, name, a, b, share in rows],
    )
    return (
        f"## Check against a real cluster\n\n{within} of {len(rows)} figures are within 15 %. The cluster lost {lost} requests.\n"
        f"One caller at one replica gives the simulation the time that a request takes beyond its {found['cluster']['sleep_s']} s of\n"
        f"sleep; all else is predicted.\n\n{table}"
    )


def _write_units(found: Mapping[str, Any]) -> str:
    redis, gateway = found["units"]["redis"], found["units"]["gateway"][-1]
    count, head = gateway["replicas"], found["cluster"]["head"]
    rows = [
        ("Redis, a renewal (one a second and replica)", f"{1e6 * redis['renewal_s']:.0f} µs", f"{1e6 * redis['renewal_volatile_s']:.0f} µs without a file"),
        ("Redis, a counted request", f"{1e6 * redis['count_s']:.0f} µs", f"{1e6 * redis['count_volatile_s']:.0f} µs without a file"),
        ("Redis, a record that a gateway reads (two a second)", f"{1e6 * redis['record_s']:.2f} µs", f"{redis['record_bytes']:,} bytes on the wire"),
        ("Redis, memory of a record", f"{redis['memory_bytes']:,} bytes", ""),
        ("Gateway, a request", f"{1e3 * read_request_cost():.2f} ms", "without routing; `make bench ARGS=serving`"),
        ("Gateway, a record that it reads", f"{1e6 * gateway['refresh_s'] / count:.1f} µs", f"{1e3 * gateway['refresh_s']:.0f} ms of the event loop at {count:,} replicas"),
        (f"Gateway, a place and a pick among {count:,}, known key", f"{1e3 * (gateway['place_s'] + gateway['pick_known_s']):.2f} ms", f"{1e3 * (gateway['place_s'] + gateway['pick_new_s']):.2f} ms for a new key"),
        ("Replica, a renewal", f"{1e6 * found['units']['heartbeat_s']:.0f} µs", ""),
        ("Ray head, processor", f"{head[-1]['processor_share']:.1%} of a core at {head[-1]['replicas']}", ", ".join(f"{one['processor_share']:.1%} at {one['replicas']}" for one in head[:-1])),
    ]  # fmt: skip
    if scraped := found["units"].get("prometheus"):
        rows += [
            ("Prometheus, a scraped sample", f"{1e6 * scraped['sample_s']:.2f} µs", f"{scraped['samples_of_a_pod']} samples of a pod, assumed"),
            ("Prometheus, memory of a series", f"{scraped['series_bytes']:,.0f} bytes", ""),
        ]  # fmt: skip
    table = _table(["unit", "cost", "note"], rows)
    return f"## Unit costs\n\nProcessor time of the process that does the work, measured here.\n\n{table}"


def _write_limits(found: Mapping[str, Any]) -> str:
    cases = [(gateways, rate) for gateways in (4, 16, 100) for rate in (0.5, 5.0)]
    limits = [find_limits(found, *case) for case in cases]
    head = ["part", *(f"{gateways} gateways, {rate:g} requests / s" for gateways, rate in cases)]
    rows = [[part, *(f"{each[part]:,.0f}" for each in limits)] for part in limits[0]]
    note = f"Replicas of one service at which a part is {FULL:.0%} busy, by the unit costs; requests are those of one replica."
    return f"## Limits\n\n{note}\nThe head is extrapolated from few replicas and says only the order.\n\n{_table(head, rows)}"


def _write_grid(found: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{p['replicas']:,}", p["gateways"], f"{p['asked_per_second']:,.0f}", f"{p['answered_per_second']:,.0f}",
            "–" if p["median_s"] is None else f"{p['median_s']:.2f}", f"{p['redis_share']:.0%}", f"{p['gateway_share']:.0%}",
            f"{p['redis_bytes_per_second'] / 1e6:,.0f}",
        )
        for p in found["grid"]
    ]  # fmt: skip
    head = ["replicas", "gateways", "asked / s", "answered / s", "median s", "Redis", "a gateway", "Redis MB / s"]
    return (
        "## Fleets\n\nEach fleet is asked for 60 % of what its replicas can do. Where less is answered, the part at 100 % is full.\n\n"
        f"{_table(head, rows)}\n\n![Fleets of 1 to 2,000 replicas](images/{GRID_PICTURE.name})"
    )


def _write_days(days: Mapping[str, Any]) -> str:
    statuses, jobs = days["statuses"], days["jobs"]
    total = sum(statuses.values())
    failed = {status: count for status, count in statuses.items() if status not in {"200", "429"}}
    kinds: dict[str, int] = {}
    for _, what in days["events"]:
        kinds[what] = kinds.get(what, 0) + 1
    listed = ", ".join(f"{count} × {status}" for status, count in sorted(failed.items())) or "none"
    return (
        f"## {days['days']:g} days\n\n{days['gateways']} gateways, {total:,} requests in daily waves; "
        f"{kinds.get('burst', 0)} bursts of one tenant, {kinds.get('kill', 0)} killed\nreplicas, {kinds.get('rollout', 0)} rollouts, "
        f"and Redis away for a minute {kinds.get('redis', 0)} times. {days['retried']} attempts were sent again.\n"
        f"Refused with 429: {statuses.get('429', 0):,}. Failed otherwise: {listed}. {days['held_share']:.0%} of the requests met a replica that\n"
        f"held their session. Redis was {days['redis_share']:.2%} busy, a gateway {days['gateway_share']:.2%}.\n\n"
        f"KEDA's workers took {jobs['count']:,} jobs, which came 400 at a time at night, when no worker ran. The first waited for a scrape\n"
        f"(15 s), KEDA's poll (30 s) and a pod; the median job waited {jobs['wait_median_s']:.0f} s, the last {jobs['wait_longest_s']:.0f} s. "
        f"Workers ran for {jobs['pod_hours']} pod hours.\nThe polls are one query per service and 30 s, whatever the number of replicas.\n\n"
        f"![Requests, replicas and times over {days['days']:g} days](images/{DAYS_PICTURE.name})"
    )


_INTRODUCTION = """# Scale

How many replicas and gateways one installation holds, what each replica costs, and what to shard then. The gateway's own load
balancer, affinity, fair queue, rate limits, retries and registry, the replicas' heartbeat and Ray's autoscaling with our policy run
on a simulated clock ([loadtests/simulation](../loadtests/simulation)). Redis, connections and models are simulated, with times measured on {cpu}
(text: `make bench ARGS=judge` and `longctx_serving`). KEDA is written by its documentation.
Assumed are 0.3 ms of network, 30 s until a new replica is ready, and 8 s until a pod runs.

Run `python -m loadtests.simulation` to measure and simulate again, and `make generate` to write this page."""

_SHARDING = """## What to shard, and when

* **Redis first.** It pays for its file with each renewal and each counted request, although both may be lost. Keep jobs on a
  Redis with a file. Where Redis is more than half busy, give each group of services a release and a Redis of its own.
* **Gateways.** Every gateway reads every record twice a second, so that the cost grows with replicas times gateways. Use as few
  gateways as carry the requests. Beyond about 1,000 replicas run cells: releases of their own behind one DNS name.
* **Ray.** Each service has a head of its own already. A service that outgrows its head becomes two releases.
* **Prometheus.** Split the pods over several servers by `hashmod`, or scrape less often: set `monitoring.interval`.
* **KEDA.** Its load does not grow with replicas. Its delay does not shrink: set `worker.min` to 1 where jobs must begin at once."""
