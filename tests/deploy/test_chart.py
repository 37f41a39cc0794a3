"""The chart renders for every kind of cluster, validates against Kubernetes' schemas and keeps pods restricted."""

import json
import pathlib
import subprocess

import kubernetes_validate
import pytest
import yaml

from tests.deploy.tools import helm

CHART = pathlib.Path(__file__).parents[2] / "deploy/helm/fovea"
VERSION = "1.35"
SIX = ["vision-restoration", "medical-seg", "detection", "llm-longctx", "interpretability", "relevance-judge"]
ALL_ON = [f"services.{name}.enabled=true" for name in SIX]
SETTINGS = {
    "default": [],
    "all-six": ALL_ON,
    "gpu": ["services.llm-longctx.gpus=1", "services.medical-seg.gpus=1"],
    "outside-redis": ["redis.url=rediss://cache.example:6379/0"],
    "bare": ["keda.enabled=false", "serviceMonitor.enabled=false", "networkPolicy.enabled=false"],
    "narrow": ["networkPolicy.gatewayFrom[0].team=search", "image.registry=r.example", "image.pullSecrets[0].name=x"],
}
OURS = {"RayService", "ScaledObject", "ServiceMonitor"}

pytestmark = pytest.mark.skipif(helm() is None, reason="no helm: neither on PATH nor in the carrier wheel")


def run_helm(*args, check=True):
    return subprocess.run([helm(), *args], capture_output=True, text=True, check=check, timeout=60)


def render(*sets):
    flags = [flag for pair in sets for flag in ("--set", pair)]
    return [d for d in yaml.safe_load_all(run_helm("template", "demo", str(CHART), *flags).stdout) if d]


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def documents(request):
    return render(*SETTINGS[request.param])


def pod_specs(documents):
    for doc in documents:
        if doc["kind"] in {"Deployment", "StatefulSet"}:
            yield doc["metadata"]["name"], doc["spec"]["template"]["spec"]
        if doc["kind"] == "RayService":
            cluster = doc["spec"]["rayClusterConfig"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                yield doc["metadata"]["name"], group["template"]["spec"]


def named(documents, kind, name):
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)


def test_helm_lint_is_clean_in_strict_mode():
    assert "0 chart(s) failed" in run_helm("lint", str(CHART), "--strict").stdout


def test_every_core_document_validates_strictly(documents):
    for doc in documents:
        if doc["kind"] not in OURS:
            kubernetes_validate.validate(doc, VERSION, strict=True)


def test_pods_of_custom_resources_validate_as_pods(documents):
    for name, spec in pod_specs(documents):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        kubernetes_validate.validate(pod, VERSION, strict=True)


def test_every_pod_meets_the_restricted_standard(documents):
    for name, spec in pod_specs(documents):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"], name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"]:
            safe = container["securityContext"]
            assert safe["allowPrivilegeEscalation"] is False, name
            assert safe["readOnlyRootFilesystem"] is True, name
            assert safe["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name


def test_every_long_lived_container_that_serves_is_probed(documents):
    for name, spec in pod_specs(documents):
        if not name.endswith("-worker"):
            assert all("livenessProbe" in c and "readinessProbe" in c for c in spec["containers"]), name


def test_one_template_makes_the_same_four_things_for_each_service():
    documents = render(*ALL_ON)
    for service in SIX:
        kinds = {d["kind"] for d in documents if d["metadata"]["name"] in {f"demo-{service}", f"demo-{service}-worker"}}
        assert kinds == {"RayService", "Deployment", "PodDisruptionBudget", "ScaledObject"}


def test_disabled_service_leaves_nothing_behind():
    text = run_helm("template", "demo", str(CHART), "--set", "services.medical-seg.enabled=false").stdout
    assert "medical-seg" not in text


def test_ray_application_is_ours_and_runs_without_rays_proxy():
    config = yaml.safe_load(named(render(), "RayService", "demo-medical-seg")["spec"]["serveConfigV2"])
    assert config["proxy_location"] == "Disabled"
    [application] = config["applications"]
    assert application["import_path"] == "shared.serving.ray:application"
    assert application["args"]["service"] == "medical-seg"


def test_import_path_of_the_ray_application_exists():
    ray_room = pathlib.Path(__file__).parents[2] / "shared/serving/ray.py"
    assert "def application(" in ray_room.read_text("utf8")


def test_gpu_is_asked_for_by_replica_and_worker():
    documents = render("services.llm-longctx.gpus=1")
    ray = named(documents, "RayService", "demo-llm-longctx")["spec"]["rayClusterConfig"]
    replica = ray["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    worker = named(documents, "Deployment", "demo-llm-longctx-worker")["spec"]["template"]["spec"]["containers"][0]
    assert replica["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_replicas_announce_the_address_of_their_pod():
    ray = named(render(), "RayService", "demo-medical-seg")["spec"]["rayClusterConfig"]
    env = ray["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "FOVEA_REPLICA_ADVERTISED_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}} in env


def test_environment_names_are_settings_that_exist():
    from shared.settings import Settings

    known = {f"FOVEA_{name.upper()}" for name in Settings.model_fields}
    for name, spec in pod_specs(render(*ALL_ON)):
        used = {e["name"] for c in spec["containers"] for e in c.get("env", [])}
        assert used <= known, (name, used - known)


def test_worker_is_scaled_on_queue_depth_of_its_own_service():
    [trigger] = named(render(), "ScaledObject", "demo-llm-longctx-worker")["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    assert 'service="llm-longctx"' in trigger["metadata"]["query"]


def test_own_redis_syncs_every_write_and_an_outside_one_starts_none():
    command = named(render(), "StatefulSet", "demo-redis")["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[command.index("--appendfsync") + 1] == "always"
    assert not [d for d in render("redis.url=redis://elsewhere:6379/0") if d["kind"] == "StatefulSet"]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("gateway.replicas=0", "minimum"),
        ("services.medical-seg.gpus=-1", "minimum"),
        ("services.unknown.enabled=true", "unknown"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("redis.url=http://x", "pattern"),
        ("typo=1", "typo"),
    ],
)
def test_values_schema_refuses_nonsense(bad, complaint):
    done = run_helm("template", "demo", str(CHART), "--set", bad, check=False)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_schema_describes_exactly_the_values():
    schema = json.loads((CHART / "values.schema.json").read_text("utf8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf8"))
    assert set(schema["properties"]) - {"global"} == set(values)
    assert set(schema["properties"]["services"]["properties"]) == set(values["services"]) == set(SIX)


def test_dashboard_asks_only_for_metrics_that_exist():
    import re

    from shared import telemetry

    names = {m._name for m in vars(telemetry).values() if hasattr(m, "_name")}
    panels = json.loads((CHART / "dashboards/fovea.json").read_text("utf8"))["panels"]
    asked = {w for p in panels for t in p["targets"] for w in re.findall(r"fovea_[a-z_]+", t["expr"])}
    assert {re.sub(r"_(total|bucket|sum|count)$", "", a) for a in asked} <= names
