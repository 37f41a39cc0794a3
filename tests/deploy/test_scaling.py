"""Load on a real Ray: replicas that fit nowhere are demand that its autoscaler sees; a node that joins takes them."""

from __future__ import annotations

import pytest

from loadtests.chaos.cluster import SERVICE, Load, serve_config
from shared.jobs.redis_server import RedisServer
from shared.settings import Settings
from tests.deploy.ray_cluster import RayCluster

pytestmark = pytest.mark.slow
FIRST, *SPARE = ("127.0.0.2", "127.0.0.3", "127.0.0.5")


@pytest.fixture
def cluster(tmp_path_factory):
    """A head and one node of one CPU, as the chart's pods are sized; folders of short names, for sockets of Ray."""
    with RedisServer(Settings(data_dir=tmp_path_factory.mktemp("redis"), redis_url=None)) as server:
        made = RayCluster(tmp_path_factory.mktemp("ray"), server.url, FOVEA_SHUTDOWN_GRACE_S="2")
        try:
            made.start_head()
            made.add_node(FIRST)
            yield made
        finally:
            made.stop()


def test_replicas_that_fit_nowhere_are_pending_demand_until_a_node_joins(cluster):
    cluster.submit(serve_config(1, 3, busy_per_replica=4, upscale_delay_s=2))
    cluster.wait_replicas(SERVICE, 1, 240)
    assert cluster.wait_demand(0, 60)["launched"] == 0
    with Load(cluster.start_gateway(), 12, 0.5) as load:
        seen = cluster.wait_demand(2, 240)
        assert all(request["CPU"] == 0.1 for request in seen["requests"])
        assert seen["launched"] == 2  # one node each, although ten such replicas would fit into a CPU
        for node in SPARE:
            cluster.add_node(node)
        cluster.wait_replicas(SERVICE, 3, 300)
        cluster.wait_running(60)
        assert cluster.wait_demand(0, 60)["launched"] == 0
    assert load.figures()["lost"] == 0
