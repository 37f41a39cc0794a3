"""Asks what Ray's autoscaler sees and the nodes it would start: `… GCS_ADDRESS POD MOST`.

The autoscaler's own scheduler decides, on the cluster's state as the head reports it; the provider that makes pods of
its decision is left out. POD is the resources of one node as JSON, MOST the number of nodes that may be.
Prints `{"pending": [resources, …], "nodes": number}`.
"""

import json
import logging
import sys

from ray._raylet import GcsClient
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.core.generated.autoscaler_pb2 import NodeStatus
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind


def main(address: str, pod: dict[str, float], most: int) -> None:
    """Print what waits for a node, and how many nodes would be started."""
    state = get_cluster_resource_state(GcsClient(address))
    kinds = {
        "head": NodeTypeConfig("head", min_worker_nodes=0, max_worker_nodes=1),
        "pod": NodeTypeConfig("pod", min_worker_nodes=0, max_worker_nodes=most, resources=pod),
    }
    alive = [node for node in state.node_states if node.status in {NodeStatus.RUNNING, NodeStatus.IDLE}]
    asked, there = list(state.pending_resource_requests), [to_instance(node) for node in alive]
    request = SchedulingRequest(
        disable_launch_config_check=True, node_type_configs=kinds, resource_requests=asked, current_instances=there
    )
    decision = ResourceDemandScheduler(AutoscalerEventLogger(logging.getLogger("quiet"))).schedule(request)
    started = sum(launch.count for launch in decision.to_launch if launch.instance_type == "pod")
    pending = [dict(each.request.resources_bundle) for each in asked for _ in range(each.count)]
    print(json.dumps({"pending": pending, "nodes": started}))


def to_instance(node):
    is_head = "node:__internal_head__" in node.total_resources
    instance = Instance(
        instance_id=node.node_id.hex(), status=Instance.RAY_RUNNING, instance_type="head" if is_head else "pod",
        node_kind=NodeKind.HEAD if is_head else NodeKind.WORKER,
    )  # fmt: skip
    return AutoscalerInstance(cloud_instance_id=instance.instance_id, ray_node=node, im_instance=instance)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
