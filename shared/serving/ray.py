"""Replica placement on Ray Serve: starts, heals and scales replicas. The only module that imports ray.

Ray is the control plane only: a deployment is an actor that runs a `ReplicaServer`, which listens on ports of its own
and makes them known in Redis; request bytes never pass Ray (docs/adr/0002-replicas-outside-rays-proxy.md).
`python -m shared.serving.ray` starts a Ray of its own on this machine and runs until SIGTERM; under KubeRay,
`application` is the import path.
"""

import asyncio
import contextlib
import importlib
import logging
import math
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import uvloop
from pydantic import BaseModel

from shared import telemetry
from shared.registry.discovery import SERVICES, services_with_models
from shared.serving.heartbeat import tell_failed_start
from shared.serving.host import Host
from shared.serving.replica import ReplicaServer, load_app
from shared.serving.wanted import is_wanted
from shared.settings import Settings, export, settings
from shared.storage.private_files import make_files_private

_LOOPBACK = "127.0.0.1"

export(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # what makes Ray name itself by the loopback address, on any system
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # replicas that reserve no GPU still see it: services share one
    RAY_worker_niceness="0",  # Ray's default of 15 lets every other program on the machine go first
    RAY_memory_monitor_refresh_ms="0",  # it kills replicas because others use memory; MemoryGuard bounds each one
)
import ray  # noqa: E402  # it reads these variables when imported
from ray import serve  # noqa: E402

_OBJECT_STORE = 80 * 2**20  # bytes of shared memory; nothing of ours goes through it
_LOAD_POLL_S = 0.1
_MAX_BUSY_PER_REPLICA = 8  # requests in flight beyond which another replica is worth its memory
_REPLICA_CPUS = 0.1
# Ray's own folder, which it opens for everybody, inside of a private one; short, because paths of sockets are.
_INSIDE = "r"
# Longest temporary folder under which Ray's unix sockets still have a legal path.
_MAX_TEMP_PATH = 107 - len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")


class Placement(BaseModel):
    """Placement of a service: how many replicas, and the GPUs of each."""

    service: str
    app: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    num_gpus: float = 0
    max_per_node: int | None = None
    """Replicas on one node; a pod that was sized for one replica must not take the next one, too."""
    busy_per_replica: int = _MAX_BUSY_PER_REPLICA
    """Requests in flight per replica beyond which another replica is started."""
    upscale_delay_s: float = 10.0
    """Seconds that the load must last before a replica is added."""
    idle_s: float = 600.0
    """Seconds without a request after which the last replica goes, where `min_replicas` is 0."""
    must_load: bool = True
    """Whether a replica none of whose models load fails to start: an upgrade to it then never takes over."""


class _Replica:
    """The actor: runs a `ReplicaServer` on a thread and loop of its own, and reports its health."""

    def __init__(self, placement: Placement) -> None:
        config = settings()
        telemetry.configure_logs(config.log_level, config.log_format)
        telemetry.configure_tracing(config.traces_endpoint, f"fovea-{placement.service}")
        make_files_private(config.data_dir)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        if config.replica_host == _LOOPBACK:
            _keep_to_loopback()
        self._started: Future[ReplicaServer] = Future()
        self._stopping: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._main, args=(placement, config), name="replica", daemon=True)
        self._thread.start()
        self._server = self._started.result()
        # Ray takes a replica that has been made for one that can answer, and gives up the one before it.
        wait_until_loaded(self._server.host, must_load=placement.must_load)

    def _main(self, placement: Placement, config: Settings) -> None:
        try:
            uvloop.run(self._serve(placement, config))
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self, placement: Placement, config: Settings) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        with tell_failed_start(placement.service, config):
            app = load_app(placement.service, placement.app)
            server = ReplicaServer(
                app, config, before_withdrawal=lambda: _leave_node(config.shutdown_grace_s / 2), owns_process=True
            )
            await server.start()
        self._started.set_result(server)
        await self._stopping.wait()
        await server.stop()
        await asyncio.to_thread(telemetry.shut_down_tracing)

    def check_health(self) -> None:
        """Raise if the replica does not serve any more: Ray then replaces it."""
        if not (self._thread.is_alive() and self._server.alive):
            raise RuntimeError("the replica's server has ended")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Requests in flight, which Ray can't see, for `scale`."""
        return {"busy": float(self._server.in_flight)}

    async def __call__(self) -> str:
        """Where the replica listens; requests do not come this way."""
        return self._server.record().model_dump_json()

    def __del__(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(settings().shutdown_grace_s + 5)


def wait_until_loaded(host: Host, *, must_load: bool) -> None:
    """Wait until no model is loading any more. Raises RuntimeError: all models failed to load, and one must."""
    while host.is_loading:
        time.sleep(_LOAD_POLL_S)
    if must_load and not host.settled:
        raise RuntimeError(f"no model of {host.service} loads: {host.missing()}")


async def _leave_node(wait_s: float) -> None:
    """Ask Ray to drain this node, so that Serve starts a replica elsewhere before it stops the one here.

    Returns after `wait_s` at the latest; by then Serve has stopped this replica, or has no other node for it.
    """
    with contextlib.suppress(Exception):  # without a head that answers, the replica goes without a successor
        await asyncio.to_thread(_drain_node, wait_s)
        await asyncio.sleep(wait_s)


def _drain_node(timeout_s: float) -> None:
    """Do what Ray does when a node gets SIGTERM; it has no public call for that."""
    protocol: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    worker: Any = importlib.import_module("ray._private.worker").global_worker
    node, reason = ray.get_runtime_context().get_node_id(), protocol.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline_ms = int((time.time() + timeout_s) * 1000)
    worker.gcs_client.drain_node(node, reason, "The pod is about to stop.", deadline_ms, timeout=timeout_s)


def _keep_to_loopback() -> None:
    """Ray Serve gives each replica a gRPC port for calls between deployments, on all interfaces: put it on loopback.

    Nothing of ours uses that port; the suite checks that no process of ours listens anywhere else.
    """
    inside: Any = importlib.import_module("ray.serve._private.replica")
    add_port = inside.add_port_to_grpc_server
    inside.add_port_to_grpc_server = lambda server, _address: add_port(server, f"{_LOOPBACK}:0")


def scale(context: Any, busy_per_replica: int = _MAX_BUSY_PER_REPLICA, service: str = "") -> tuple[int, dict[str, Any]]:
    """Ray's autoscaling policy: as many replicas as keep each at no more than `busy_per_replica` requests in flight.

    A service that may have none has one while it is wanted, because what waits for the first replica is in none, and
    until the first one runs and reports: a slow start is not idleness.
    """
    busy = context.aggregated_metrics.get("busy", {}) if context.aggregated_metrics else {}
    replicas = math.ceil(sum(busy.values()) / busy_per_replica)
    low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    if not low and not replicas and (is_wanted(service) or (context.target_num_replicas and not busy)):
        replicas = 1
    return min(max(replicas, low), high), {}


def application(args: Mapping[str, Any] | Placement) -> serve.Application:
    """One service as a Ray Serve application (the `import_path` of a RayService).

    Ray hands over the mapping of the Serve config as it was read: the annotation of a module with postponed annotations
    is a text to it, so it makes no `Placement` of it.
    """
    placement = Placement.model_validate(args)
    scaling: dict[str, Any] = {"num_replicas": placement.min_replicas}
    if placement.max_replicas > placement.min_replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": placement.min_replicas,
                "max_replicas": placement.max_replicas,
                "upscale_delay_s": placement.upscale_delay_s,
                "policy": {
                    "policy_function": f"{__name__}:scale",
                    "policy_kwargs": {"busy_per_replica": placement.busy_per_replica, "service": placement.service},
                },
                # The first one shows what the service serves, also when nobody has asked for it yet.
                "initial_replicas": max(placement.min_replicas, 1),
                "downscale_to_zero_delay_s": placement.idle_s,
            }
        }
    actor = {"num_cpus": _REPLICA_CPUS, "num_gpus": placement.num_gpus}
    if placement.num_gpus > 1:
        # One group on one node: what holds a model together talks through that node's memory and links. A node whose
        # GPUs are taken gets no other replica, and Ray refuses a limit per node next to a group.
        scaling["placement_group_bundles"] = [{"CPU": _REPLICA_CPUS, "GPU": placement.num_gpus}]
        scaling["placement_group_strategy"] = "STRICT_PACK"
    elif placement.max_per_node is not None:
        scaling["max_replicas_per_node"] = placement.max_per_node
    deploy_as: Any = serve.deployment(
        name=placement.service,
        health_check_period_s=1.0,
        health_check_timeout_s=60.0,  # one that is starved of processor time is late; our watchdog ends a stuck one
        graceful_shutdown_timeout_s=settings().shutdown_grace_s + 5,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options=actor,
        **scaling,
    )
    return cast("serve.Application", deploy_as(_Replica).bind(placement))


def _make_folder(data_dir: Path) -> Path:
    """An empty folder that nobody else looks into: in the data folder, or a temporary one where that can't be it."""
    preferred = (data_dir / "ray").resolve()
    if len(str(preferred / _INSIDE)) <= _MAX_TEMP_PATH:
        shutil.rmtree(preferred, ignore_errors=True)  # what a killed Ray left
        with contextlib.suppress(OSError):
            preferred.mkdir(mode=0o700, parents=True)
            return preferred
    return Path(tempfile.mkdtemp(prefix="fovea-"))


def start(config: Settings) -> Path | None:
    """Start a Ray on loopback, without dashboard, proxy or telemetry; returns the folder to remove at the end."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    folder = _make_folder(config.data_dir)
    ray.init(
        num_cpus=len(SERVICES) * config.replicas,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE,
        logging_level=logging.WARNING,
        _temp_dir=str(folder / _INSIDE),
        _node_ip_address=_LOOPBACK,
        namespace="fovea",
    )
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
    return folder


def deploy(placements: Sequence[Placement]) -> None:
    """Place all services at once; returns when their replicas have loaded what loads."""
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    targets = [
        serve.RunTarget(application(placement), placement.service, route_prefix=None, logging_config=quiet)
        for placement in placements
    ]
    serve.run_many(targets)


def stop(folder: Path | None = None) -> None:
    """Drain the replicas, stop Ray and remove what it left."""
    with contextlib.suppress(Exception):
        serve.shutdown()  # type: ignore[no-untyped-call]  # ray leaves it without annotations
    ray.shutdown()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Place the services that have models, and keep them until SIGTERM or Ctrl-C."""
    config = settings()
    telemetry.configure_logs(config.log_level, config.log_format)
    stopping, folder = threading.Event(), start(config)
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray has set its own
        signal.signal(number, lambda *_: stopping.set())
    try:
        services, count = config.enabled_service_names or services_with_models(), config.replicas
        local = {"min_replicas": count, "max_replicas": count, "must_load": False}
        deploy([Placement.model_validate({"service": name, **local}) for name in services])
        telemetry.log().info("placed", services=", ".join(services))
        stopping.wait()
    finally:
        stop(folder)


if __name__ == "__main__":
    # Run the module under its own name, so that Ray's workers import the actor's class instead of being sent its code.
    importlib.import_module("shared.serving.ray").main()
