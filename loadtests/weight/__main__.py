"""`python -m loadtests.weight [--starts 2] [--idle 60] [--jobs] [--services …]`: what starting and idling cost.

Starts `fovea up` in a folder of its own, twice: the second start finds everything cached. Prints what the command said
and when, then, after a minute without a request, the memory (proportional set size, so that pages that processes share
count once) and the processor share of each process over another minute; with `--jobs` again after jobs of all services.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil

from fovea.endpoints import task_path

START_S = 900.0
READY = "Console http"


def main() -> int:
    """Measure, print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.weight", description=__doc__)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--idle", type=float, default=60.0, help="seconds without a request")
    parser.add_argument("--jobs", action="store_true", help="measure again after a job of each service")
    parser.add_argument("--services", default="", help="comma-separated; default all")
    parser.add_argument("--folder", type=Path, help="data folder of an earlier run")
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fovea-weight-") as made:
        folder, idle, worked = asked.folder or Path(made), {}, {}
        for start in range(1, asked.starts + 1):
            with _product(folder, asked.services) as (product, lines):
                print(f"start {start}:", *lines, sep="\n  ")
                if start == asked.starts:
                    idle = _watch(psutil.Process(product.pid), asked.idle)
                    if asked.jobs:
                        _run_jobs(re.findall(r"http://\S+", lines[-1])[0])
                        worked = _watch(psutil.Process(product.pid), asked.idle)
    _print(idle)
    if worked:
        print("\nAfter a job of each service:")
        _print(worked)
    if asked.out is not None:
        asked.out.write_text(json.dumps({"start": lines, "idle": idle, "after_jobs": worked}, indent=1) + "\n")
    return 0


@contextmanager
def _product(folder: Path, services: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A `fovea up` and its lines until it serves; stopped afterwards."""
    variables = {
        "FOVEA_DATA_DIR": str(folder),
        "FOVEA_HTTP_PORT": "0",
        "FOVEA_GRPC_PORT": "0",
        "FOVEA_ENABLED_SERVICES": services,
        "COLUMNS": "200",
    }
    product = subprocess.Popen(
        [sys.executable, "-m", "fovea", "up"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
        start_new_session=True,
    )
    try:
        yield product, _read_until_ready(product)
    finally:
        product.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            product.wait(60)
        if product.poll() is None:
            os.killpg(product.pid, signal.SIGKILL)


def _read_until_ready(product: subprocess.Popen[str]) -> list[str]:
    lines, deadline = list[str](), time.monotonic() + START_S
    for line in product.stdout or ():
        lines.append(line.rstrip())
        if READY in line:
            return lines
        if time.monotonic() > deadline:
            break
    raise SystemExit("\n".join(["fovea up did not become ready:", *lines]))


def _run_jobs(gateway: str) -> None:
    """Run the example of a model of each service as a job, one behind the other."""
    with httpx2.Client(base_url=gateway, headers={"prefer": "respond-async"}, timeout=60) as client:

        def ask(method: str, path: str, **body: Any) -> Any:
            return client.request(method, path, **body).raise_for_status().json()

        entries = sorted(ask("GET", "/v1/models")["data"], key=lambda entry: not entry["ready"])
        for service in dict.fromkeys(entry["service"] for entry in entries):
            entry = next(one for one in entries if one["service"] == service)
            route, name = task_path(entry["task"]), entry["id"]
            job = ask("POST", route, json={"model": name, **ask("GET", f"/v1/models/{name}/example")})
            while job["status"] in {"queued", "running"}:
                time.sleep(0.5)
                job = ask("GET", f"/v1/jobs/{job['id']}")
            print(f"job of {service} ({name}): {job['status']}", flush=True)


def _watch(root: psutil.Process, seconds: float) -> dict[str, dict[str, float]]:
    """Processor seconds of the start, MiB (PSS) and percent of a core of each process from `root` down."""
    spent = {process: _seconds(process) for process in [root, *root.children(recursive=True)]}
    time.sleep(seconds)
    before = {process: _seconds(process) for process in [root, *root.children(recursive=True)]}
    time.sleep(seconds)
    found: dict[str, dict[str, float]] = {}
    for process, used in before.items():
        with suppress(psutil.Error, OSError):
            percent = 100 * (_seconds(process) - used) / seconds
            found[f"{_name(process)} {process.pid}"] = {
                "start_s": round(spent.get(process, 0.0), 2),
                "mib": _pss(process.pid),
                "percent": round(percent, 2),
            }
    return found


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _pss(pid: int) -> float:
    """Proportional set size, MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def _name(process: psutil.Process) -> str:
    words = process.cmdline()
    if "-m" in words:
        return " ".join(words[words.index("-m") + 1 :][:2])
    return " ".join([Path(words[0]).name, *words[1:2]])[:44] if words else process.name()


def _print(idle: dict[str, dict[str, float]]) -> None:
    total = {key: sum(row[key] for row in idle.values()) for key in ("start_s", "mib", "percent")}
    print(f"{'process':60} {'start, CPU s':>12} {'MiB':>7} {'% of a core':>12}")
    for name, row in [*sorted(idle.items(), key=lambda item: -item[1]["mib"]), (f"{len(idle)} processes", total)]:
        print(f"{name:60} {row['start_s']:12.1f} {row['mib']:7.0f} {row['percent']:12.2f}")


if __name__ == "__main__":
    sys.exit(main())
