"""The chart renders for every kind of cluster, validates against Kubernetes' schemas and keeps pods restricted."""

import copy
import json
import re
from functools import cache

import kubernetes_validate
import pytest
import yaml

from fovea_rollouts.traffic_plans import PLANS
from services.llm_longctx import generation_metrics
from shared.serving.metrics_server import GpuMemory
from shared.serving.tests.test_watchdog import TWO_DEVICES
from shared.settings import Settings
from shared.telemetry import metrics
from tests.deploy.tools import ROOT, helm, needs_helm, run

CHART = ROOT / "deploy/helm/fovea"
VERSION = "1.35"
SIX = ["vision-restoration", "medical-seg", "detection", "llm-longctx", "interpretability", "relevance-judge"]
ALL_ON = [f"services.{name}.enabled=true" for name in SIX]
SETTINGS = {
    "default": [],
    "all-six": ALL_ON,
    "gpu": ["services.llm-longctx.gpus=1", "services.medical-seg.gpus=1"],
    "outside-redis": ["redis.url=rediss://cache.example:6380/0", "redis.ports={6380}"],
    "redis-of-a-secret": [
        "redis.urlSecret.name=cache", "ray.faultTolerance.redisAddress=cache:6379",
        "ray.faultTolerance.passwordSecret=cache",
    ],
    "bare": [
        *("keda.enabled=false", "monitoring.enabled=false", "networkPolicy.enabled=false"),
        *("ray.auth=disabled", "ray.faultTolerance.enabled=false"),
    ],
    "narrow": ["networkPolicy.gatewayFrom[0].team=search", "image.registry=r.example", "image.pullSecrets[0].name=x"],
    "volume": ["objectStore.volume.enabled=true", "objectStore.volume.storageClass=nfs"],
    "bucket": [
        "objectStore.url=s3://models/fovea", "objectStore.credentialsSecret=aws", "objectStore.ports={443,9000}",
    ],
    "sentinel": [
        "redis.url=rediss+sentinel://a:26379\\,b:26379/master",
        *("redis.ports={26379,6380}", "redis.caSecret=cache-ca", "redis.passwordSecret=cache"),
        "ray.faultTolerance.redisAddress=rediss://cache:6380",
    ],
    "traced": ["tracing.endpoint=https://otel.example", "tracing.headersSecret=otel", "tracing.ports={443}"],
    "password": ["redis.passwordSecret=cache", "redis.maxMemory=2gb"],
    "placed": [
        *("ray.upgradeStrategy=NewCluster", "keda.authModes=bearer", "keda.triggerAuthentication=thanos"),
        *(
            "httpRoute.enabled=true", "httpRoute.parentRefs[0].name=public", "ingress.enabled=true",
            "ingress.host=fovea.example", "ingress.tlsSecret=tls", "gateway.priorityClassName=high",
        ),
        *("services.medical-seg.runtimeClassName=nvidia", "services.medical-seg.podAnnotations.team=a"),
        *("services.medical-seg.tolerations[0].key=team", "services.medical-seg.env[0].name=A"),
        *("redis.url=rediss://fovea@cache:6380", "redis.passwordSecret=cache"),
    ],
    "to-zero": [*ALL_ON, *(f"services.{name}.replicas.min=0" for name in SIX), "services.detection.gpus=1"],
    "many": ["services.medical-seg.replicas.min=3", "services.medical-seg.replicas.max=9", "gateway.preStopSeconds=0"],
}  # fmt: skip
CUSTOM = {"HTTPRoute", "RayService", "ScaledObject", "PodMonitor", "PrometheusRule"}
"""Kinds that Kubernetes' own schemas don't know."""
SAFE = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}

pytestmark = needs_helm


def run_helm(*args, check=True):
    return run(helm(), *args, check=check, timeout=60)


@cache
def template(*sets):
    return run_helm("template", "demo", str(CHART), *(f"--set={pair}" for pair in sets)).stdout


def render(*sets):
    return [d for d in yaml.load_all(template(*sets), yaml.CSafeLoader) if d]


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def documents(request):
    return render(*SETTINGS[request.param])


def pod_specs(documents):
    for doc in documents:
        if doc["kind"] in {"Deployment", "StatefulSet"}:
            yield doc["metadata"]["name"], doc["spec"]["template"]["spec"]
        if doc["kind"] == "RayService":
            cluster = doc["spec"]["rayClusterConfig"]
            head = copy.deepcopy(cluster["headGroupSpec"]["template"]["spec"])
            head["containers"].append(autoscaler(cluster, head))
            yield f"{doc['metadata']['name']}-head", head
            for group in cluster["workerGroupSpecs"]:
                yield doc["metadata"]["name"], group["template"]["spec"]


def autoscaler(cluster, head):
    """The container that KubeRay puts next to the head where `enableInTreeAutoscaling` is set."""
    assert cluster["enableInTreeAutoscaling"]
    options = cluster["autoscalerOptions"]
    assert set(options) <= {"resources", "securityContext", "env", "volumeMounts"}
    command = ["/bin/bash", "-c", "--", "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME)"]
    return {"name": "autoscaler", "image": head["containers"][0]["image"], "command": command, **options}


def named(documents, kind, name):
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)


def env_of(spec):
    return {e["name"]: e.get("value") for container in spec["containers"] for e in container.get("env", [])}


@cache
def validate(text):
    """Validate a document, as JSON: most are the same in several kinds of cluster."""
    kubernetes_validate.validate(json.loads(text), VERSION, strict=True)


def test_every_core_document_and_pod_of_custom_resources_validates(documents):
    pods = ({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": x} for _, x in pod_specs(documents))
    for doc in (*(doc for doc in documents if doc["kind"] not in CUSTOM), *pods):
        validate(json.dumps(doc))


def test_every_pod_meets_the_restricted_standard_and_is_probed(documents):
    for name, spec in pod_specs(documents):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"], name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is name.endswith("-head"), name
        volumes = {volume["name"] for volume in spec.get("volumes", ())} | {"redis"}
        for container in spec["containers"]:
            assert SAFE.items() <= container["securityContext"].items(), name
            assert container["resources"]["limits"]["memory"], name
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name
            is_probed = not name.endswith("-worker") and container["name"] != "autoscaler"
            assert not is_probed or {"livenessProbe", "readinessProbe"} <= container.keys(), name


def ray_cluster(service, *sets):
    return named(render(*sets), "RayService", f"demo-{service}")["spec"]["rayClusterConfig"]


def test_the_head_has_what_kuberay_looks_for_and_its_state_is_in_the_redis_of_the_values():
    cluster = ray_cluster("medical-seg")
    [head] = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert (ports, cluster["authOptions"]) == ({"gcs": 6379, "dashboard": 8265, "serve": 8000}, {"mode": "token"})
    assert cluster["gcsFaultToleranceOptions"] == {"redisAddress": "redis://demo-redis:6379"}
    outside = ray_cluster("medical-seg", "redis.url=redis://cache")["gcsFaultToleranceOptions"]
    assert outside["redisAddress"] == "redis://cache:6379"


def test_our_redis_has_a_password_for_everybody_syncs_writes_and_is_not_started_beside_an_outside_one():
    documents = render("redis.passwordSecret=cache")
    secret = {"secretKeyRef": {"name": "cache", "key": "password"}}
    for name, spec in pod_specs(documents):
        for container in spec["containers"]:
            if "FOVEA_REDIS_URL" in (env := {e["name"]: e for e in container.get("env", ())}):
                assert env["FOVEA_REDIS_PASSWORD"]["valueFrom"] == secret, name
            if name == "demo-redis":
                assert env["REDIS_PASSWORD"]["valueFrom"] == secret
    options = ray_cluster("medical-seg", "redis.url=rediss://fovea@cache:6380", "redis.passwordSecret=cache")
    assert options["gcsFaultToleranceOptions"] == {
        "redisAddress": "rediss://cache:6380", "redisUsername": {"value": "fovea"},
        "redisPassword": {"valueFrom": secret},
    }  # fmt: skip
    done = run_helm("template", "demo", str(CHART), "--set", "redis.urlSecret.name=cache", check=False)
    assert "ray.faultTolerance.redisAddress" in done.stderr
    [command] = named(render(), "StatefulSet", "demo-redis")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--appendfsync always" in command
    assert "--maxmemory 768mb --maxmemory-policy noeviction" in command
    assert not [d for d in render("redis.url=redis://elsewhere:6379/0") if d["kind"] == "StatefulSet"]


def allowed(documents, labels, direction):
    """Rules of the policies that select a pod of these labels, as (peer, ports)."""
    kind = {"from": "ingress", "to": "egress"}[direction]
    for doc in documents:
        if doc["kind"] == "NetworkPolicy" and selects(doc["spec"]["podSelector"], labels):
            for rule in doc["spec"].get(kind, ()):
                ports = {port["port"] for port in rule.get("ports", ())}
                yield from ((json.dumps(peer), ports) for peer in rule.get(direction, ["anybody"]))


def selects(selector, labels):
    wanted = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return wanted and all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", ()))


def test_the_operator_reaches_the_dashboard_of_heads_and_of_nobody_else():
    documents = render("networkPolicy.operatorNamespace=operators")
    cluster = named(documents, "RayService", "demo-llm-longctx")["spec"]["rayClusterConfig"]
    head = cluster["headGroupSpec"]["template"]["metadata"]["labels"]
    replica = cluster["workerGroupSpecs"][0]["template"]["metadata"]["labels"]
    assert [ports for peer, ports in allowed(documents, head, "from") if '"operators"' in peer] == [{8265}]
    assert not [peer for peer, _ in allowed(documents, replica, "from") if '"operators"' in peer]
    assert [ports for peer, ports in allowed(documents, head, "to") if peer == '"anybody"'] == [{443, 6443}]
    assert not [peer for peer, _ in allowed(documents, replica, "to") if peer == '"anybody"']


def test_every_pod_with_metrics_has_the_port_that_the_monitor_names():
    documents = render(*ALL_ON)
    [endpoint] = named(documents, "PodMonitor", "demo")["spec"]["podMetricsEndpoints"]
    assert endpoint["honorLabels"] is True
    for name, spec in pod_specs(documents):
        if name.endswith(("-head", "-redis")):
            continue
        [container] = spec["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert env_of(spec)["FOVEA_METRICS_PORT"] == str(ports[endpoint["port"]]), name


def test_time_to_stop_is_longer_than_what_the_process_takes_and_variables_are_settings_that_exist():
    known = {f"FOVEA_{name.upper()}" for name in Settings.model_fields}
    for name, spec in pod_specs(render(*ALL_ON)):
        if grace := env_of(spec).get("FOVEA_SHUTDOWN_GRACE_S"):
            assert spec["terminationGracePeriodSeconds"] >= int(grace) + 10, name
        assert {variable for variable in env_of(spec) if variable.startswith("FOVEA_")} <= known, name


def test_no_pod_wants_a_shared_volume_unless_told_to(documents):
    claims = [d for d in documents if d["kind"] == "PersistentVolumeClaim"]
    mounted = [v for _, spec in pod_specs(documents) for v in spec.get("volumes", ()) if "persistentVolumeClaim" in v]
    assert bool(claims) == bool(mounted)
    if not claims:
        for _, spec in pod_specs(documents):
            env = env_of(spec)
            assert "FOVEA_REDIS_URL" not in env or {"FOVEA_JOB_INLINE_MAX_BYTES", "FOVEA_OBJECT_STORE"} & env.keys()


def test_certificates_of_redis_are_where_settings_and_ray_look_for_them():
    for name, spec in pod_specs(render(*("redis.url=rediss://cache:6380/0", "redis.caSecret=cache-ca"))):
        env = env_of(spec)
        [mount] = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "redis-ca"]
        assert env["FOVEA_REDIS_CA_FILE"] == f"{mount['mountPath']}/ca.crt"
        assert env.get("RAY_REDIS_CA_CERT") == (env["FOVEA_REDIS_CA_FILE"] if name.endswith("-head") else None)


def test_the_object_store_and_an_identity_of_the_cloud_reach_gateway_replicas_and_workers():
    for name, spec in pod_specs(render("objectStore.url=s3://models/fovea", "objectStore.credentialsSecret=aws")):
        container = spec["containers"][0]
        if not name.endswith(("-head", "-redis")):
            assert {"name": "FOVEA_OBJECT_STORE", "value": "s3://models/fovea"} in container["env"]
            assert container["envFrom"] == [{"secretRef": {"name": "aws"}}]
    for name, spec in pod_specs(render("objectStore.url=s3://models/fovea", "objectStore.serviceAccount=models")):
        assert spec.get("serviceAccountName") == (None if name.endswith(("-head", "-redis")) else "models"), name
    assert not any("serviceAccountName" in spec for _, spec in pod_specs(render(*ALL_ON)))


def test_all_processes_send_their_spans_to_the_collector_if_there_is_one():
    traced = render(*ALL_ON, "tracing.endpoint=http://otel:4318", "tracing.sampleRatio=0.1")
    for documents, expected in ((render(*ALL_ON), None), (traced, "http://otel:4318")):
        for name, spec in pod_specs(documents):
            if not name.endswith("-redis"):
                assert env_of(spec).get("OTEL_EXPORTER_OTLP_ENDPOINT") == expected, name
    assert {"ports": [{"port": 4318}]} in named(traced, "NetworkPolicy", "demo-inside")["spec"]["egress"]


def test_gateways_and_replicas_share_a_secret_and_judges_have_a_key():
    for name, spec in pod_specs(render(*ALL_ON)):
        if not name.endswith("-redis"):
            [entry] = [e for e in spec["containers"][0]["env"] if e["name"] == "FOVEA_REPLICA_SECRET"]
            assert entry["valueFrom"]["secretKeyRef"]["name"] == "fovea-replicas", name
    documents = render(*ALL_ON)
    [group] = ray_cluster("relevance-judge", *ALL_ON)["workerGroupSpecs"]
    env = {e["name"]: e for e in group["template"]["spec"]["containers"][0]["env"]}
    assert env["FOVEA_JUDGE_BASE_URL"]["value"] == "http://demo-gateway"
    assert env["FOVEA_JUDGE_API_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "fovea-judge"
    assert named(documents, "Service", "demo-gateway")["spec"]["ports"][0]["port"] == 80


def test_a_gpu_is_the_replicas_without_workers_the_jobs_too_and_each_has_a_process_of_a_language_model():
    specs = dict(pod_specs(render("services.llm-longctx.gpus=1")))
    limits = [specs[f"demo-llm-longctx{part}"]["containers"][0]["resources"]["limits"] for part in ("", "-worker")]
    assert (limits[0]["nvidia.com/gpu"], limits[1]) == (1, {"memory": "1Gi"})
    off = "services.medical-seg.worker.enabled=false"
    for sets, jobs in (((off,), "1"), ((), None)):
        assert env_of(dict(pod_specs(render(*sets)))["demo-medical-seg"]).get("FOVEA_JOBS_IN_REPLICA") == jobs
    assert not [d for d in render(off) if d["metadata"]["name"] == "demo-medical-seg-worker"]
    for service, gpus, processes in (("llm-longctx", 1, None), ("llm-longctx", 4, "4"), ("medical-seg", 2, None)):
        documents = render(f"services.{service}.gpus={gpus}")
        assert f"num_gpus: {gpus}" in named(documents, "RayService", f"demo-{service}")["spec"]["serveConfigV2"]
        assert env_of(dict(pod_specs(documents))[f"demo-{service}"]).get("FOVEA_LLM_TENSOR_PARALLEL") == processes


@pytest.mark.parametrize(("bad", "complaint"), [
    ("gateway.replicas=0", "minimum"), ("services.medical-seg.gpus=-1", "minimum"),
    ("services.medical-seg.image.digest=sha256:beef", "pattern"),
    ("httpRoute.enabled=true", "httpRoute.parentRefs"), ("services.unknown.enabled=true", "unknown"),
    ("image.pullPolicy=Sometimes", "pullPolicy"), ("redis.url=http://x", "pattern"), ("typo=1", "typo"),
])  # fmt: skip
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
    names = {m._name for room in (metrics, generation_metrics) for m in vars(room).values() if hasattr(m, "_name")}
    names |= {family.name for family in GpuMemory(TWO_DEVICES).collect()}
    panels = json.loads((CHART / "dashboards/fovea.json").read_text("utf8"))["panels"]
    asked = {w for p in panels for t in p["targets"] for w in re.findall(r"fovea_[a-z0-9_]+", t["expr"])}
    assert {re.sub(r"_(total|bucket|sum|count)$", "", a) for a in asked} <= names


def test_versions_are_services_of_their_own_and_the_gateway_knows_their_shares():
    canary = {"name": "canary", "tag": "0.3.0", "percent": 5}
    new = [
        f"services.medical-seg.versions[{place}].{name}={value}"
        for place, version in enumerate((canary, {"name": "next", "min": 2, "shadowPercent": 10}))
        for name, value in version.items()
    ]
    found, names = render(*new), [f"demo-medical-seg{suffix}" for suffix in ("", "-canary", "-next")]
    clusters = [named(found, "RayService", name)["spec"]["rayClusterConfig"] for name in names]
    assert [one["workerGroupSpecs"][0]["minReplicas"] for one in clusters] == [1, 1, 2]
    specs = dict(pod_specs(found))
    tags = [specs[name]["containers"][0]["image"].rpartition(":")[2] for name in names]
    assert [tag == "0.3.0" for tag in tags] == [False, True, False]
    assert [env_of(specs[name]).get("FOVEA_SERVICE_VERSION") for name in names] == [None, "canary", "next"]
    plans = PLANS.validate_json(env_of(specs["demo-gateway"])["FOVEA_TRAFFIC"])
    assert plans["medical-seg"].percent == {"canary": 5}
    assert (plans["medical-seg"].shadow, plans["medical-seg"].shadow_percent) == ("next", 10)
