"""A real Ray of a head and two nodes gets its configuration as from KubeRay: it asks for nodes, runs and answers."""

import importlib
import json
import sys

import httpx2
import pytest
import yaml

from loadtests.chaos.cluster import SERVICE, serve_config
from tests.deploy import one_request
from tests.deploy.ray_cluster import HEAD, run_cluster
from tests.deploy.test_chart import ALL_ON, SIX, named, render
from tests.deploy.tools import needs_helm, run
from tests.harness.language_model import share_language_model
from tests.harness.waiting import wait_until

# Ray's own use of pydantic, which it has to mend.
pytestmark = [needs_helm, pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")]
NODES = ("127.0.0.2", "127.0.0.3")
POD = {"CPU": 1.0}
MOST = 3
PER_NODE = "node:__internal_implicit_resource_"
"""How Ray writes `max_replicas_per_node`: as a resource of which each node has 1."""

WAIT_S = 300


@pytest.fixture(scope="module")
def configs():
    specs = {name: named(render(*ALL_ON), "RayService", f"demo-{name}")["spec"] for name in SIX}
    return {name: yaml.safe_load(spec["serveConfigV2"]) for name, spec in specs.items()}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, exported_graphs):
    """A head; tests add nodes, which stay."""
    with run_cluster(tmp_path_factory, FOVEA_GRAPHS_DIR=str(exported_graphs)) as made:
        yield made


def add_nodes(cluster, *nodes):
    for node in set(nodes) - cluster.sessions.keys():
        share_language_model(cluster.data_dir(node) / "cache")
        cluster.add_node(node)


def ask_autoscaler(cluster):
    """Resources that wait for a node, and nodes that the autoscaler would start; nothing while the head is silent."""
    command = [sys.executable, "-m", "tests.deploy.nodes_asked_for", f"{HEAD}:{cluster.gcs}", json.dumps(POD)]
    done = run(*command, str(MOST), env=cluster.environment("asker"), timeout=WAIT_S)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"pending": [], "nodes": None}


@pytest.mark.parametrize("service", SIX)
def test_every_serve_config_is_valid_and_becomes_an_application(configs, service):
    schema, ours = importlib.import_module("ray.serve.schema"), importlib.import_module("shared.serving.ray")
    [application] = schema.ServeDeploySchema.model_validate(configs[service]).applications
    built = ours.application(application.args)._bound_deployment
    assert built.name == service
    assert built._deployment_config.autoscaling_config.max_replicas == application.args["max_replicas"]


@pytest.mark.parametrize(("gpus", "bundles", "per_node"), [(0, None, 1), (0.25, None, 4), (1, None, 1), (4, [4], None)])
def test_gpus_that_hold_one_model_are_one_placement_group(gpus, bundles, per_node):
    ours = importlib.import_module("shared.serving.ray")
    built = ours.application({"service": "llm-longctx", "num_gpus": gpus, "max_per_node": per_node or 1})
    config = built._bound_deployment._replica_config
    group = config.placement_group_bundles
    assert (group and [one["GPU"] for one in group]) == bundles
    assert config.placement_group_strategy == ("STRICT_PACK" if bundles else None)
    assert (config.max_replicas_per_node, config.ray_actor_options["num_gpus"]) == (per_node, gpus)


def test_a_replica_without_a_node_asks_for_one_until_it_is_there(cluster):
    add_nodes(cluster, NODES[0])
    cluster.submit(serve_config(2, 2))
    cluster.wait_replicas(SERVICE, 1, WAIT_S)
    asked = wait_until(lambda: (found := ask_autoscaler(cluster))["pending"] and found, WAIT_S, "a replica waits", 1)
    [demand] = asked["pending"]
    assert {name for name in demand if name.startswith(PER_NODE)}, demand
    assert demand["CPU"] < POD["CPU"]  # the node has room by CPU: it is the rule of one per node that asks
    assert asked["nodes"] == 1
    add_nodes(cluster, NODES[1])  # what the operator makes of it
    cluster.wait_replicas(SERVICE, 2, WAIT_S)
    wait_until(lambda: ask_autoscaler(cluster) == {"pending": [], "nodes": 0}, WAIT_S, "nothing waits any more", 1)


def test_a_service_without_replicas_starts_one_for_a_request_and_loses_it_when_nobody_asks(cluster):
    add_nodes(cluster, NODES[0])
    url = cluster.start_gateway(FOVEA_ON_DEMAND_SERVICES=SERVICE, FOVEA_REQUEST_TIMEOUT_S="120")
    cluster.submit(serve_config(0, 1, idle_s=1))
    cluster.wait_replicas(SERVICE, 1, WAIT_S)  # the first shows what it serves
    wait_until(lambda: httpx2.get(f"{url}/readyz").json()["services"][SERVICE]["ready"], WAIT_S, "it is known")
    wait_until(lambda: not cluster.list_replicas(SERVICE), WAIT_S, "the replica stops, as nobody asks")
    assert httpx2.get(f"{url}/readyz").status_code == 200
    answer = httpx2.post(f"{url}/v1/echo", json={"text": "hello"}, timeout=WAIT_S)
    assert (answer.status_code, answer.json()["text"]) == (200, "hello")


@pytest.mark.parametrize(
    "services", [("medical-seg", "detection"), pytest.param(SIX, marks=pytest.mark.release)], ids=["two", "all six"]
)
def test_configs_of_the_chart_run_on_a_real_ray_and_answer_through_a_gateway(cluster, configs, services):
    add_nodes(cluster, *NODES)
    cluster.submit(*(configs[name] for name in services))
    cluster.wait_running(WAIT_S)
    for name in services:  # Ray calls an application running before its models answer
        cluster.wait_replicas(name, 1, WAIT_S)
    url = cluster.start_gateway()
    assert {name: one_request.main(url, name) for name in services} == dict.fromkeys(services, 0)
