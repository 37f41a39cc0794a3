"""A real Prometheus scrapes gateways and a replica as the chart says, with keys on: its numbers are the true ones."""

import contextlib
import json
import os
import pathlib
import shutil
import sys
import time

import httpx2
import pytest
import yaml

from shared.settings import environment
from tests.deploy.test_chart import CHART, named, render
from tests.deploy.tools import Processes, helm, run, run_platform
from tests.harness.waiting import free_port, is_ready, wait_until

HERE = pathlib.Path(__file__).parent
IS_ABLE = shutil.which("prometheus") and helm() is not None
needs_prometheus = pytest.mark.skipif(not IS_ABLE, reason="no prometheus: `apt-get install prometheus` to run these")
PER_GATEWAY_HZ = 5


@pytest.mark.release
@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: `apt-get install prometheus` to run these")
def test_alerts_fire_when_they_should_and_only_then():
    for verb, file in (("check", CHART / "rules/fovea.yaml"), ("test", HERE / "rules_test.yaml")):
        done = run("promtool", verb, "rules", file)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test():
    rules = yaml.safe_load((CHART / "rules/fovea.yaml").read_text("utf8"))["groups"][0]["rules"]
    tests = yaml.safe_load((HERE / "rules_test.yaml").read_text("utf8"))["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in rules}


def scrape_config(monitor, targets):
    """The Prometheus operator's reading of a PodMonitor: one target per pod, with its namespace and name as labels."""
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    static = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "default", "pod": pod, "container": pod}}
        for pod, port in targets.items()
    ]
    facts = {"metrics_path": endpoint["path"], "scrape_interval": "1s", "honor_labels": endpoint["honorLabels"]}
    return {"job_name": f"default/{monitor['metadata']['name']}", "static_configs": static, **facts}


class Scene:
    """Two gateways with keys, a replica, and a Prometheus that scrapes their metrics ports."""

    def __init__(self, folder, redis_url):
        self.folder, self.redis_url = folder, redis_url
        self.processes = Processes(folder)
        fovea = pathlib.Path(sys.executable).parent / "fovea"
        secret = run(fovea, "keys", "add", "me", env=self._env(), check=True).stdout.strip()
        self.headers = {"authorization": f"Bearer {secret}"}
        self.metrics = {pod: free_port() for pod in ("gateway-a", "gateway-b", "replica")}
        toy = [sys.executable, "-m", "shared.serving.tests.toy_replica"]
        self._start(toy, FOVEA_METRICS_PORT=str(self.metrics["replica"]))
        self.urls = [self._start_gateway(pod) for pod in ("gateway-a", "gateway-b")]
        self.prometheus = self._start_prometheus()

    def _env(self, **variables):
        return environment(
            FOVEA_REDIS_URL=self.redis_url, FOVEA_DATA_DIR=str(self.folder), FOVEA_AUTH="keys", FOVEA_GRPC_PORT="0",
            FOVEA_RATE_LIMIT_RPM="100000", PYTHONPATH=os.pathsep.join(sys.path), **variables,
        )  # fmt: skip

    def _start(self, command, **variables):
        self.processes.start(command, self._env(**variables))

    def _start_gateway(self, pod):
        http = free_port()
        ports = {"FOVEA_HTTP_PORT": str(http), "FOVEA_METRICS_PORT": str(self.metrics[pod])}
        self._start([sys.executable, "-m", "services.gateway"], **ports)
        return f"http://127.0.0.1:{http}"

    def _start_prometheus(self):
        config = {"scrape_configs": [scrape_config(named(render(), "PodMonitor", "demo"), self.metrics)]}
        (self.folder / "prometheus.yml").write_text(json.dumps(config))
        port = free_port()
        places = (f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/tsdb")
        self._start(["prometheus", *places, f"--web.listen-address=127.0.0.1:{port}"])
        return f"http://127.0.0.1:{port}"

    def is_ready(self):
        return all(map(is_ready, self.urls))

    def query(self, expression):
        with contextlib.suppress(httpx2.TransportError):
            answer = httpx2.get(f"{self.prometheus}/api/v1/query", params={"query": expression}, timeout=10)
            return answer.json()["data"]["result"]
        return []

    def value(self, expression):
        """The value of a query with one sample; None where there is none yet."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def load(self, seconds):
        """Requests at a steady rate to each gateway in turn."""
        end = time.monotonic() + seconds
        with httpx2.Client(headers=self.headers, timeout=30) as client:
            beat = time.monotonic()
            while beat < end:
                for url in self.urls:
                    assert client.post(f"{url}/v1/echo", json={"text": "hello"}).status_code == 200
                beat += 1 / PER_GATEWAY_HZ
                time.sleep(max(beat - time.monotonic(), 0))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    with run_platform(tmp_path_factory, Scene) as made:
        yield made


@pytest.mark.release
@needs_prometheus
def test_prometheus_reads_every_pod_although_keys_are_on_and_kedas_query_counts_the_jobs_once(scene):
    wait_until(lambda: scene.value("sum(up)") == 3, 30, "all three are up")
    assert httpx2.get(f"{scene.urls[0]}/metrics").status_code == 401
    [trigger] = named(render(), "ScaledObject", "demo-medical-seg-worker")["spec"]["triggers"]
    query = trigger["metadata"]["query"].replace("medical-seg", "toy")
    wait_until(lambda: scene.value(query) == 0, 30, "no job is an answer, too")
    with httpx2.Client(headers={**scene.headers, "prefer": "respond-async"}) as client:
        for number in range(5):
            assert client.post(f"{scene.urls[number % 2]}/v1/echo", json={"text": "job"}).status_code == 202
    wait_until(lambda: scene.value(query) == 5, 30, "five jobs, seen by two gateways, are five")


@pytest.mark.release
@needs_prometheus
def test_each_panel_of_the_dashboard_shows_the_true_number(scene):
    panels = json.loads((CHART / "dashboards/fovea.json").read_text())["panels"]
    panels = {panel["title"]: panel["targets"][0]["expr"] for panel in panels}
    short = {title: expr.replace("[1m]", "[12s]").replace("[5m]", "[12s]") for title, expr in panels.items()}
    with httpx2.Client(headers=scene.headers) as client:
        for _ in range(3):
            assert client.post(f"{scene.urls[0]}/v1/echo", json={"text": "bad"}).status_code == 422
            tensors = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
            assert client.post(f"{scene.urls[0]}/v2/models/toy/echo/infer", json=tensors).status_code == 200
            time.sleep(1.2)
    assert any(float(sample["value"][1]) > 0 for sample in scene.query(short["Errors by code"]))
    stages = {s["metric"]["stage"]: float(s["value"][1]) for s in scene.query(short["Stages, p95"])}
    assert stages.keys() == {"pre", "run", "post"}
    assert all(0 < seconds < 2 for seconds in stages.values())
    scene.load(15)
    seen = {title: scene.query(expr) for title, expr in short.items()}
    rates = {(s["metric"]["service"], s["metric"]["status"]): float(s["value"][1]) for s in seen["Requests per second"]}
    assert rates["gateway", "200"] == pytest.approx(2 * PER_GATEWAY_HZ, rel=0.25)
    assert rates["toy", "200"] == pytest.approx(2 * PER_GATEWAY_HZ, rel=0.25)
    for title in ("Latency, p95", "Queue time, p95"):
        times = [float(s["value"][1]) for s in seen[title] if s["value"][1] != "NaN"]
        assert times
        assert all(0 < seconds < 2 for seconds in times), title
    assert [float(s["value"][1]) for s in seen["Batch size, mean"] if s["metric"]["model"] == "toy/echo"] == [1.0]
    assert {s["metric"]["state"]: float(s["value"][1]) for s in seen["Jobs"]} == {"queued": 5, "running": 0}
    assert [float(s["value"][1]) for s in seen["Ready replicas"]] == [1.0]
    assert {float(s["value"][1]) for s in seen["Requests that wait in replicas"]} == {0.0}
