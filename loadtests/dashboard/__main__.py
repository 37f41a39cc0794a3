"""`python -m loadtests.dashboard [SECONDS [MODEL]]`: runs the dashboard's panels on a real Prometheus and draws them.

Starts Redis, a gateway, a replica and a worker of llm-longctx and Prometheus on this machine, sends chats under several
attention methods, jobs and bad requests, and writes `docs/images/dashboard.svg`. It is our drawing of what Prometheus
answered, not a picture of Grafana. MODEL is a served name or a folder; left out, a random tiny Llama, so that a busy
machine answers often enough for rates.
"""

import contextlib
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2

from loadtests.dashboard.chart import Panel, draw_panels
from services.llm_longctx.tests.conftest import write_folder
from shared.jobs.redis_server import RedisServer
from shared.settings import Settings, environment
from tests.harness.waiting import free_port, is_ready, wait_until

ROOT = pathlib.Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy/helm/fovea/dashboards/fovea.json"
PICTURE = ROOT / "docs/images/dashboard.svg"
SERVICE = "llm-longctx"
RANGE = "60s"
"""Stands for the dashboard's windows of minutes, as the run is short."""

QUIET_S = 12.0
"""Pauses, in which answers are compared with dense attention."""

METHODS: tuple[dict[str, Any], ...] = ({"method": "dense"}, {"method": "streamingllm"}, {"method": "snapkv"})
PROMPT = "You are a careful assistant. " * 2


def main() -> int:
    """Run, draw, and say which panels stayed empty."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
    model = sys.argv[2] if len(sys.argv) > 2 else ""
    with (
        tempfile.TemporaryDirectory() as name,
        RedisServer(Settings(data_dir=pathlib.Path(name))) as redis,
        start_platform(pathlib.Path(name), redis.url, model) as (gateway, prometheus),
    ):
        begin = time.time()
        for _ in range(3):
            send_load(gateway, seconds / 3)
            time.sleep(QUIET_S)
        end = time.time()
        panels = [ask_panel(prometheus, panel, begin, end) for panel in json.loads(DASHBOARD.read_text())["panels"]]
    PICTURE.write_text(draw_panels(panels, begin, end))
    empty = [panel.title for panel in panels if not panel.series]
    print(f"{len(panels) - len(empty)} of {len(panels)} panels have data; empty: {', '.join(empty) or 'none'}")
    return 0


@contextlib.contextmanager
def start_platform(folder: pathlib.Path, redis_url: str, model: str) -> Iterator[tuple[str, str]]:
    """Base URLs of a gateway whose service is ready, and of a Prometheus that scrapes it all each second."""
    http, grpc, prometheus, *metrics = (free_port() for _ in range(6))
    env = environment(
        FOVEA_REDIS_URL=redis_url,
        FOVEA_DATA_DIR=str(folder),
        FOVEA_HTTP_PORT=str(http),
        FOVEA_GRPC_PORT=str(grpc),
        FOVEA_LLM_MODEL=model or str(write_folder(folder / "tiny-llama")),
        FOVEA_LLM_FIDELITY_SAMPLE_RATE="1",
        PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]),
    )
    (folder / "prometheus.yml").write_text(json.dumps(describe_scrapes(metrics)))
    commands = [
        [sys.executable, "-m", "services.gateway"],
        [sys.executable, "-m", "shared.serving", SERVICE],
        [sys.executable, "-m", "shared.serving.worker", SERVICE],
    ]
    scraper = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    started = [
        subprocess.Popen(command, env={**env, "FOVEA_METRICS_PORT": str(port)}, stderr=subprocess.DEVNULL)
        for command, port in zip(commands, metrics, strict=True)
    ]
    started.append(
        subprocess.Popen([*scraper, f"--web.listen-address=127.0.0.1:{prometheus}"], stderr=subprocess.DEVNULL)
    )
    try:
        wait_until(lambda: is_ready(f"http://127.0.0.1:{http}"), 500, "the gateway is ready", pause_s=0.5)
        yield f"http://127.0.0.1:{http}", f"http://127.0.0.1:{prometheus}"
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


def describe_scrapes(ports: list[int]) -> dict[str, Any]:
    """Prometheus' configuration: each port once a second, our own labels kept."""
    targets = [f"127.0.0.1:{port}" for port in ports]
    job = {"job_name": "fovea", "scrape_interval": "1s", "honor_labels": True, "static_configs": [{"targets": targets}]}
    return {"scrape_configs": [job]}


def send_load(url: str, seconds: float, callers: int = 3) -> None:
    """Chats from several callers at once, each in turn under another method; now and then a job and a bad request."""
    until = time.monotonic() + seconds

    def call(caller: int) -> None:
        with httpx2.Client(base_url=url, timeout=120) as client:
            for number in itertools.count(caller):
                if time.monotonic() > until:
                    return
                body = {
                    "messages": [{"role": "user", "content": f"{PROMPT}Tell me about the number {number}."}],
                    "max_tokens": 12,
                    "longctx": METHODS[number % len(METHODS)],
                }
                client.post("/v1/chat/completions", json=body)
                if number % 4 == 0:
                    client.post("/v1/chat/completions", json=body, headers={"prefer": "respond-async"})
                    client.post("/v1/chat/completions", json={**body, "max_tokens": -1})

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ask_panel(prometheus: str, panel: dict[str, Any], begin: float, end: float) -> Panel:
    """A panel's series over the run, by legend."""
    found: dict[str, list[tuple[float, float]]] = {}
    for target in panel["targets"]:
        query = re.sub(r"\[\d+m\]", f"[{RANGE}]", target["expr"])
        window = {"query": query, "start": begin, "end": end, "step": "2s"}
        answer = httpx2.get(f"{prometheus}/api/v1/query_range", params=window, timeout=30).json()
        for series in answer["data"]["result"]:
            labels = series["metric"]
            legend = re.sub(r"{{(\w+)}}", lambda name, known=labels: known.get(name[1], ""), target["legendFormat"])
            points = [(float(at), float(value)) for at, value in series["values"] if value != "NaN"]
            if points:
                found[legend.strip()] = points
    return Panel(panel["title"], panel["fieldConfig"]["defaults"]["unit"], found)


if __name__ == "__main__":
    sys.exit(main())
