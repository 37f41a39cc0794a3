"""Usage route: what a tenant consumed, by day and model, as JSON or CSV."""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from redis.exceptions import RedisError

from fovea.api.csv_form import format_csv
from fovea.api.usage import CallerLimits, UsageList, UsageRecord
from fovea.errors import InvalidOption, NotReady
from services.gateway.http.openapi import PROBLEMS
from services.gateway.routes.dependencies import get_caller

MAX_DAYS = 400

router = APIRouter(prefix="/v1/usage", tags=["usage"], responses=PROBLEMS)

Day = Annotated[date | None, Query(description="A day, UTC.")]


@router.get("", response_model=UsageList, responses={200: {"content": {"text/csv": {}}}})
async def usage(
    request: Request,
    since: Day = None,
    until: Day = None,
    tenant: Annotated[str | None, Query(max_length=64, description="Another tenant, or `*`; needs `admin`.")] = None,
    format: Annotated[Literal["json", "csv"] | None, Query(description="Left out, as `Accept` says.")] = None,  # noqa: A002
) -> Response:
    """Consumption of the caller's tenant by day and model; the last 30 days unless other days are named."""
    caller = get_caller(request)
    if tenant not in {None, caller.tenant}:
        caller.require_scope("admin")
    end = until or datetime.now(UTC).date()
    start = since or end - min(timedelta(29), end - date.min)
    if not 0 <= (end - start).days <= MAX_DAYS:
        raise InvalidOption(f"From {start} to {end} is not a span of up to {MAX_DAYS} days.", field="since")
    name = None if tenant == "*" else tenant or caller.tenant
    try:
        records = await request.app.state.gateway.usage.read(name, start, end)
    except (RedisError, OSError, TimeoutError) as error:
        raise NotReady("The usage ledger can't be reached.", hint="Try again soon.", retry_after=2) from error
    if format == "csv" or (format is None and "text/csv" in request.headers.get("accept", "")):
        rows = [UsageRecord.model_fields, *(record.model_dump(mode="json").values() for record in records)]
        return Response(format_csv(rows), media_type="text/csv")
    return Response(UsageList(usage=records).model_dump_json(), media_type="application/json")


@router.get("/limits")
async def read_limits(request: Request) -> CallerLimits:
    """Read the caller's tenant and scopes, and how much of its limits is used."""
    caller = get_caller(request)
    limits = await request.app.state.gateway.limits.read(caller)
    return CallerLimits(tenant=caller.tenant, key=caller.key, scopes=sorted(caller.scopes), limits=limits)
