"""Tenant of a request: who it is for, as the gateway says, and the store of what that tenant made."""

from starlette.requests import HTTPConnection

from shared.storage import ObjectStore


def get_tenant(request: HTTPConnection) -> str:
    """The tenant of a request, from the gateway's header; `local` where there is no gateway."""
    return request.headers.get("x-fovea-tenant", "local")


def tenant_store(request: HTTPConnection) -> ObjectStore:
    """The object store of the request's tenant."""
    objects: ObjectStore = request.app.state.objects
    return objects.of_tenant(get_tenant(request))
