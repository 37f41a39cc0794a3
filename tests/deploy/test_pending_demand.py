"""A replica that finds no node is a demand that Ray's autoscaler sees, and answers with a node of the size of a pod."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from loadtests.chaos.cluster import SERVICE, serve_config
from tests.deploy.ray_cluster import HEAD, run_cluster, wait_for

pytestmark = pytest.mark.slow
POD = {"CPU": 1.0}
MOST = 3
PER_NODE = "node:__internal_implicit_resource_"
"""How Ray writes `max_replicas_per_node`: as a resource of which each node has 1."""


@pytest.fixture
def cluster(tmp_path_factory):
    """A head and one node."""
    with run_cluster(tmp_path_factory, "127.0.0.2") as made:
        yield made


def ask_autoscaler(cluster):
    """What waits for a node, and how many nodes the autoscaler would start; nothing while the head does not answer."""
    command = [sys.executable, "-m", "tests.deploy.nodes_asked_for"]
    place = [f"{HEAD}:{cluster.gcs}", json.dumps(POD), str(MOST)]
    done = subprocess.run(
        command + place, env=cluster.environment("asker"), capture_output=True, text=True, check=False, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"pending": [], "nodes": None}


def test_a_replica_without_a_node_asks_for_one_until_it_is_there(cluster):
    cluster.submit(serve_config(2, 2))
    cluster.wait_replicas(SERVICE, 1, 300)
    asked = wait_for(lambda: (found := ask_autoscaler(cluster))["pending"] and found, 300, "a replica waits")
    [demand] = asked["pending"]
    assert {name for name in demand if name.startswith(PER_NODE)}, demand
    assert demand["CPU"] < POD["CPU"]  # the node has room by CPU: it is the rule of one per node that asks
    assert asked["nodes"] == 1

    cluster.add_node("127.0.0.3")  # what the operator makes of it
    cluster.wait_replicas(SERVICE, 2, 300)
    wait_for(lambda: ask_autoscaler(cluster) == {"pending": [], "nodes": 0}, 120, "nothing waits any more")
