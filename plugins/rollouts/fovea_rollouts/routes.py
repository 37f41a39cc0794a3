"""Traffic routes: which version of a service answers what share, and which is shadowed. They need the scope `admin`."""

from typing import Annotated, cast

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from fovea.errors import NotFound
from fovea_rollouts.traffic_plans import TrafficPlan, TrafficPlans
from services.gateway.http.openapi import PROBLEMS
from services.gateway.routes.dependencies import get_caller
from services.gateway.routing.replica_registry import ReplicaRegistry

router = APIRouter(prefix="/v1/admin/traffic", tags=["admin"], responses=PROBLEMS)

ServiceName = Annotated[str, Path(max_length=64, description="For example `detection`.")]


class ServiceTraffic(BaseModel):
    """The traffic of one service."""

    service: str
    plan: TrafficPlan | None = Field(description="Null while all versions answer alike.")
    versions: dict[str, int] = Field(description="Version → ready replicas; the empty name is the stable one.")


class TrafficList(BaseModel):
    """The traffic of all services."""

    services: list[ServiceTraffic]


@router.get("")
async def list_traffic(request: Request) -> TrafficList:
    """All services with their plans and versions."""
    registry: ReplicaRegistry = request.app.state.gateway.registry
    return TrafficList(services=[_describe(registry, name) for name in registry.services])


@router.put("/{service}")
async def set_traffic(request: Request, service: ServiceName, plan: TrafficPlan) -> ServiceTraffic:
    """Set the plan of a service, for all gateways within half a second."""
    return await _store(request, service, plan)


@router.delete("/{service}")
async def clear_traffic(request: Request, service: ServiceName) -> ServiceTraffic:
    """Go back to the plan of the settings, if there is one."""
    return await _store(request, service, None)


async def _store(request: Request, service: str, plan: TrafficPlan | None) -> ServiceTraffic:
    gateway, caller = request.app.state.gateway, get_caller(request)
    if service not in gateway.registry.services:
        known = ", ".join(gateway.registry.services) or "none yet"
        raise NotFound(f"There is no service {service[:64]!r}.", hint=f"Known: {known}.")
    await _find_plans(gateway.registry).set_plan(service, plan)
    stated = None if plan is None else plan.model_dump()
    gateway.audit.write(f"{caller.tenant}/{caller.key or 'local'}", "traffic set", service, plan=stated)
    return _describe(gateway.registry, service)


def _describe(registry: ReplicaRegistry, service: str) -> ServiceTraffic:
    ready = [replica for replica in registry.list_alive(service) if replica.record.ready]
    versions = {replica.record.version for replica in ready}
    counts = {name: sum(replica.record.version == name for replica in ready) for name in sorted(versions)}
    return ServiceTraffic(service=service, plan=_find_plans(registry).find(service), versions=counts)


def _find_plans(registry: ReplicaRegistry) -> TrafficPlans:
    return cast("TrafficPlans", registry.versions)
