"""What Ray's autoscaler sees of a cluster, and what it would start: `python -m tests.deploy.ray_demand GCS COUNT S`.

Waits for S seconds until COUNT replicas are pending; prints JSON, with the nodes of one CPU that the autoscaler would
launch for them. KubeRay's autoscaler container runs the same code on the same state.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from ray._raylet import GcsClient
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.sdk import get_cluster_resource_state

POD = NodeTypeConfig(name="pod", min_worker_nodes=0, max_worker_nodes=10, resources={"CPU": 1.0})


def main(address: str, count: str, seconds: str) -> int:
    """0 once so many replicas are pending."""
    client, end = GcsClient(address=address), time.monotonic() + float(seconds)
    while (pending := pending_requests(state := get_cluster_resource_state(client))) != int(count):
        if time.monotonic() > end:
            print(f"{pending} replicas are pending, not {count}: {state}", file=sys.stderr)
            return 1
        time.sleep(0.2)
    requests = [dict(each.request.resources_bundle) for each in state.pending_resource_requests]
    print(json.dumps({"pending": pending, "requests": requests, "launched": launched_nodes(state)}))
    return 0


def pending_requests(state: Any) -> int:
    """Actors that fit nowhere."""
    return sum(each.count for each in state.pending_resource_requests)


def launched_nodes(state: Any) -> int:
    """Nodes that the autoscaler would start for what is pending, besides those that are full."""
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs={POD.name: POD},
        max_num_nodes=10,
        resource_requests=list(state.pending_resource_requests),
    )
    return sum(each.count for each in ResourceDemandScheduler().schedule(request).to_launch)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
