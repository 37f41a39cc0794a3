"""Values that clusters need: each reaches its pods, and what a cluster would refuse is refused before it is sent."""

import json

import pytest
import yaml

from tests.deploy.test_chart import CHART, env_of, named, pod_specs, render, run_helm
from tests.deploy.tools import needs_helm

pytestmark = needs_helm
BUDGET = "PodDisruptionBudget"


def render_file(folder, values, **more):
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    done = run_helm("template", more.get("release", "demo"), str(CHART), "-f", str(path), check=False)
    return done if done.returncode else [d for d in yaml.load_all(done.stdout, yaml.CSafeLoader) if d]


def refusal(folder, values, **more):
    done = render_file(folder, values, **more)
    assert not isinstance(done, list), "the chart takes what a cluster refuses"
    return done.stderr


def service(**values):
    return {"services": {"medical-seg": values}}


def test_numbers_of_a_values_file_are_written_in_full(tmp_path):
    specs = dict(pod_specs(render_file(tmp_path, {"settings": {"A": 1_000_000_000, "B": 0.25, "C": True, "D": 0}})))
    texts = {"FOVEA_A": "1000000000", "FOVEA_B": "0.25", "FOVEA_C": "true", "FOVEA_D": "0"}
    for name in ("demo-gateway", "demo-medical-seg"):
        assert texts.items() <= env_of(specs[name]).items()


def test_what_would_not_work_is_refused_by_its_name(tmp_path):
    """Settings that the chart writes itself, least numbers above the most, a password in a URL."""
    own = ("REDIS_URL", "METRICS_PORT", "KEYS_FILE", "SHUTDOWN_GRACE_S", "TRAFFIC")
    for told, values in (
        *((f"settings.{name} can't be set", {"settings": {name: "x"}}) for name in own),
        ("gateway.replicas is", {"gateway": {"maxReplicas": 1}}),
        ("services.medical-seg.replicas.min is", service(replicas={"min": 9})),
        ("services.medical-seg.worker.min is", service(worker={"min": 9})),
        ("services.medical-seg.versions[next].min is", service(versions=[{"name": "next", "min": 9, "percent": 5}])),
        ("without a worker", service(replicas={"min": 0, "idleSeconds": 120}, worker={"enabled": False})),
        ("redis.passwordSecret", {"redis": {"url": "rediss://fovea:pw@cache:6380"}}),
    ):
        assert told in refusal(tmp_path, values)


def test_names_that_kuberay_refuses_are_refused_and_no_service_is_a_release(tmp_path):
    assert "takes 47" in refusal(tmp_path, {}, release="averyveryverylongreleasenameprod-for-everybody")
    dotted = service(versions=[{"name": "v1.2"}])
    assert "v1.2" in refusal(tmp_path, dotted) or "pattern" in refusal(tmp_path, dotted)
    assert render_file(tmp_path, service(versions=[{"name": "v1-2"}]))
    off = {name: {"enabled": False} for name in ("medical-seg", "llm-longctx")}
    documents = render_file(tmp_path, {"services": off})
    policies = [d["metadata"]["name"] for d in documents if d["kind"] == "NetworkPolicy"]
    assert policies == ["demo-inside", "demo-gateway"]


def test_no_pod_has_a_changing_label_and_a_budget_counts_pods_that_answer():
    template = json.dumps([one.get("spec") for one in render("services.medical-seg.versions[0].name=next")])
    assert not [label for label in ("helm.sh/chart", "app.kubernetes.io/version") if label in template]
    documents = render("services.medical-seg.replicas.min=3", "services.medical-seg.versions[0].name=next")
    selector = named(documents, BUDGET, "demo-medical-seg")["spec"]["selector"]["matchLabels"]
    for name, is_chosen in (("demo-medical-seg", True), ("demo-medical-seg-next", False)):
        (group,) = named(documents, "RayService", name)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        assert (selector.items() <= group["template"]["metadata"]["labels"].items()) is is_chosen
    budget = named(render("gateway.replicas=1"), BUDGET, "demo-gateway")["spec"]
    assert budget["maxUnavailable"] == 1
    assert "minAvailable" not in budget


def test_a_service_that_may_have_no_replicas_starts_at_zero_pods_and_the_gateway_knows(tmp_path):
    replicas = {"min": 0, "idleSeconds": 120}
    documents = render_file(tmp_path, service(replicas=replicas, versions=[{"name": "next"}]))
    for name, low in (("demo-medical-seg", 0), ("demo-medical-seg-next", 1), ("demo-llm-longctx", 1)):
        spec = named(documents, "RayService", name)["spec"]
        (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
        args = yaml.safe_load(spec["serveConfigV2"])["applications"][0]["args"]
        assert (args["min_replicas"], group["minReplicas"], group["replicas"]) == (low, low, low)
        assert args.get("idle_s") == (None if low else 120)
    assert env_of(dict(pod_specs(documents))["demo-gateway"])["FOVEA_ON_DEMAND_SERVICES"] == "medical-seg"
    enabled = env_of(dict(pod_specs(documents))["demo-gateway"])["FOVEA_ENABLED_SERVICES"].split(",")
    names = {kind: {d["metadata"]["name"] for d in documents if d["kind"] == kind} for kind in ("RayService", BUDGET)}
    assert {f"demo-{name}" for name in enabled} == names["RayService"] - {"demo-medical-seg-next"}
    assert "demo-medical-seg" not in names[BUDGET]


def test_placement_and_additions_reach_the_pods(tmp_path):
    more = {
        "tolerations": [{"key": "team", "operator": "Exists"}], "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1}], "priorityClassName": "high", "runtimeClassName": "nvidia",
        "env": [{"name": "FOVEA_LLM_MODEL", "value": "x"}], "volumes": [{"name": "weights", "emptyDir": {}}],
        "volumeMounts": [{"name": "weights", "mountPath": "/weights"}], "podAnnotations": {"team": "a"},
        "podLabels": {"team": "a"}, "gpus": 1,
    }  # fmt: skip
    documents = render_file(tmp_path, service(**more))
    specs = dict(pod_specs(documents))
    for name in ("demo-medical-seg", "demo-medical-seg-worker"):
        spec = specs[name]
        own = ["nvidia.com/gpu"] if name == "demo-medical-seg" else []  # workers hold no models
        assert [one["key"] for one in spec["tolerations"]] == [*own, "team"]
        assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("high", "nvidia")
        assert spec["affinity"] == more["affinity"]
        assert spec["topologySpreadConstraints"] == more["topologySpreadConstraints"]
        assert env_of(spec)["FOVEA_LLM_MODEL"] == "x"
    replica = specs["demo-medical-seg"]
    assert "weights" in {volume["name"] for volume in replica["volumes"]}
    assert "/weights" in {mount["mountPath"] for mount in replica["containers"][0]["volumeMounts"]}
    (group,) = named(documents, "RayService", "demo-medical-seg")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    metadata = group["template"]["metadata"]
    assert (metadata["annotations"], metadata["labels"]["team"]) == ({"team": "a"}, "a")
    assert metadata["labels"]["fovea.dev/version"] == "stable"
    assert "FOVEA_LLM_MODEL" not in env_of(specs["demo-llm-longctx"]), "a service's own setting is its own"
    placed = {"nodeSelector": {"kubernetes.io/arch": "arm64"}, "tolerations": more["tolerations"]}
    specs = dict(pod_specs(render_file(tmp_path, {"gateway": placed, "redis": placed, "ray": {"head": placed}})))
    for name in ("demo-gateway", "demo-redis", "demo-medical-seg-head"):
        assert {key: specs[name][key] for key in placed} == placed


def test_a_variable_of_a_service_replaces_that_of_the_chart(tmp_path):
    """A list with a name twice is refused where the server applies objects, as Helm 4 has it."""
    more = {"LOG_LEVEL": "DEBUG", "JUDGE_BASE_URL": "http://vllm:8000", "METHOD": "a"}
    env = [{"name": f"FOVEA_{name}", "value": value} for name, value in more.items()]
    values = {"services": {"relevance-judge": {"enabled": True, "env": env}}, "settings": {"LOG_LEVEL": "INFO"}}
    for name, spec in pod_specs(render_file(tmp_path, values)):
        names = [one["name"] for container in spec["containers"] for one in container.get("env", ())]
        assert len(names) == len(set(names)), name
        told = env_of(spec).items()
        is_own = name in {"demo-relevance-judge", "demo-relevance-judge-worker"}
        assert ({(one["name"], one["value"]) for one in env} <= told) is is_own, name
        assert is_own or ("FOVEA_LOG_LEVEL", "INFO") in told or name == "demo-redis"


def test_a_slice_of_a_gpu_is_tolerated_and_seen():
    sets = r"services.medical-seg.resources.limits.nvidia\.com/mig-1g\.10gb=1"
    spec = dict(pod_specs(render(sets)))["demo-medical-seg"]
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    for name in ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_worker_niceness", "RAY_memory_monitor_refresh_ms"):
        assert env_of(spec)[name] == "0"
    assert "tolerations" not in dict(pod_specs(render()))["demo-medical-seg"]


@pytest.mark.parametrize(("gpus", "pods", "per_pod"), [
    (0.25, (1, 3), 4), (0.5, (2, 5), 2), (0.3, (1, 4), 3), (0, (3, 10), 1), (1, (3, 10), 1),
])  # fmt: skip
def test_replicas_with_a_part_of_a_gpu_share_the_gpu_of_a_pod(tmp_path, gpus, pods, per_pod):
    documents = render_file(tmp_path, service(gpus=gpus, replicas={"min": 3, "max": 10}))
    assert "gpus" in refusal(tmp_path, service(gpus=gpus + 0.6)), "replicas can't span GPUs by parts"
    spec = named(documents, "RayService", "demo-medical-seg")["spec"]
    [application] = yaml.safe_load(spec["serveConfigV2"])["applications"]
    args = {name: application["args"][name] for name in ("num_gpus", "max_per_node", "min_replicas", "max_replicas")}
    assert args == {"num_gpus": gpus, "max_per_node": per_pod, "min_replicas": 3, "max_replicas": 10}
    [group] = spec["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (pods[0], *pods)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == (1 if gpus else None)
    ours = [d["spec"] for d in documents if d["metadata"]["name"] == "demo-medical-seg"]
    assert [one["minAvailable"] for one in ours if "minAvailable" in one] == [pods[0] - 1] * (pods[0] > 1)


def test_each_service_can_have_an_image_of_its_own_by_tag_or_digest(tmp_path):
    one, two = (f"sha256:{digit * 64}" for digit in "ab")
    own = service(
        image={"repository": "r.example/seg", "tag": "7", "digest": one},
        versions=[{"name": "next", "tag": "8"}, {"name": "after", "digest": two}],
    )
    values = {**own, "image": {"registry": "r.example/x", "tag": "6"}, "gateway": {"image": {"tag": "9"}}}
    found = {name: spec["containers"][0]["image"] for name, spec in pod_specs(render_file(tmp_path, values))}
    assert {found[f"demo-medical-seg{part}"] for part in ("", "-head", "-worker")} == {f"r.example/seg@{one}"}
    assert found["demo-medical-seg-next"] == "r.example/seg:8", "the digest is that of the stable version"
    assert found["demo-medical-seg-after"] == found["demo-medical-seg-after-head"] == f"r.example/seg@{two}"
    assert found["demo-llm-longctx"] == "r.example/x/fovea-llm-longctx:6"
    assert found["demo-gateway"] == "r.example/x/fovea-gateway:9"


def test_a_route_of_the_gateway_api_reaches_the_gateway_and_cuts_no_stream(tmp_path):
    parents = [{"name": "public", "namespace": "infra", "sectionName": "https"}]
    values = {"enabled": True, "parentRefs": parents, "hostnames": ["fovea.example"]}
    route = named(render_file(tmp_path, {"httpRoute": values}), "HTTPRoute", "demo-gateway")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert (route["spec"]["parentRefs"], route["spec"]["hostnames"]) == (parents, ["fovea.example"])
    [rule] = route["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s"}
    [target] = rule["backendRefs"]
    assert target["port"] in {port["port"] for port in named(render(), "Service", target["name"])["spec"]["ports"]}
    assert "HTTPRoute" not in {d["kind"] for d in render()}


def test_a_route_that_the_schema_of_the_gateway_api_refuses_is_refused_by_the_chart(tmp_path):
    """The bounds of HTTPRoute in the custom resource definition of Gateway API 1.0."""
    right = {"enabled": True, "parentRefs": [{"name": "p"}], "hostnames": ["*.fovea.example"], "timeout": "1h30m"}
    assert isinstance(render_file(tmp_path, {"httpRoute": right}), list)
    for wrong in (
        {"timeout": "1.5s"}, {"timeout": "100000h"}, {"hostnames": ["fovea.example:80"]}, {"hostnames": ["Fovea"]},
        {"hostnames": [f"h{n}.example" for n in range(17)]}, {"parentRefs": [{}]}, {"parentRefs": [{"name": ""}]},
        {"parentRefs": [{"name": "p", "namespace": "In.fra"}]}, {"parentRefs": [{"name": "p", "port": 0}]},
        {"parentRefs": [{"name": f"p{n}"} for n in range(33)]},
    ):  # fmt: skip
        assert "httpRoute" in refusal(tmp_path, {"httpRoute": {**right, **wrong}}), wrong


def egress(documents, name):
    return named(documents, "NetworkPolicy", name)["spec"].get("egress", [])


def test_networks_of_identity_providers_name_servers_and_clouds_are_reached(tmp_path):
    plain = render()
    rules = egress(plain, "demo-inside")
    names = next(rule for rule in rules if {"port": 53, "protocol": "UDP"} in rule.get("ports", ()))
    assert {"port": 5353, "protocol": "UDP"} in names["ports"]
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in names["to"]
    assert egress(plain, "demo-gateway") == []
    for issuer, port in (
        ("https://id.example/realm", 443), ("https://id.example:8443/x", 8443), ("https://10.0.0.5/x", 443),
        ("http://keycloak2/x", 80),
    ):  # fmt: skip
        documents = render_file(tmp_path, {"settings": {"OIDC_ISSUER": issuer}})
        assert egress(documents, "demo-gateway") == [{"ports": [{"port": port}]}]
    rules = egress(render("objectStore.url=s3://b/p", "objectStore.serviceAccount=fovea"), "demo-inside")
    assert any({"ipBlock": {"cidr": "169.254.170.23/32"}} in rule.get("to", []) for rule in rules)


def test_openshift_gives_pods_users_of_its_own(tmp_path):
    unset = {"podSecurityContext": dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"))}
    for _, spec in pod_specs(render_file(tmp_path, unset)):
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_upgrades_wait_for_what_can_answer_and_no_answer_is_no_empty_queue():
    documents = render("ray.deletionDelaySeconds=300", "ray.upgradeStrategy=None")
    spec = named(documents, "RayService", "demo-medical-seg")["spec"]
    assert (spec["rayClusterDeletionDelaySeconds"], spec["upgradeStrategy"]) == (300, {"type": "None"})
    assert "upgradeStrategy" not in named(render(), "RayService", "demo-medical-seg")["spec"]
    documents = render("keda.authModes=bearer", "keda.triggerAuthentication=thanos")
    scaled = named(documents, "ScaledObject", "demo-medical-seg-worker")
    (trigger,) = scaled["spec"]["triggers"]
    assert (trigger["metadata"]["ignoreNullValues"], trigger["metadata"]["authModes"]) == ("false", "bearer")
    assert (trigger["type"], trigger["authenticationRef"]) == ("prometheus", {"name": "thanos"})
    assert 'service="medical-seg"' in trigger["metadata"]["query"]
    assert "state=" not in trigger["metadata"]["query"], "jobs that wait and that run"
    assert scaled["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"


def test_an_ingress_and_further_objects_are_part_of_the_release(tmp_path):
    values = {
        "ingress": {"enabled": True, "host": "fovea.example", "tlsSecret": "tls", "className": "nginx"},
        "extraObjects": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}},
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-text\n",
        ],
    }
    documents = render_file(tmp_path, values)
    ingress = named(documents, "Ingress", "demo-gateway")["spec"]
    assert ingress["rules"][0]["host"] == "fovea.example"
    assert ingress["tls"] == [{"secretName": "tls", "hosts": ["fovea.example"]}]
    assert named(documents, "ConfigMap", "demo-more")
    assert named(documents, "ConfigMap", "demo-text")
    assert not [d for d in render() if d["kind"] == "Ingress"]


def test_pods_ask_for_what_they_were_measured_to_take():
    services = yaml.safe_load((CHART / "values.yaml").read_text())["services"]
    for name, megabytes in (("relevance-judge", 737), ("medical-seg", 1188), ("detection", 1525)):
        asked = services[name]["resources"]["requests"]["memory"]
        assert int(asked[:-2]) * {"Mi": 1, "Gi": 1024}[asked[-2:]] >= megabytes, name
